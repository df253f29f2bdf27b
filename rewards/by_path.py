"""Finds the code that a setting names: `file.py:name` or `package.module:name`.

Every error message says what is wrong with the name.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from difflib import get_close_matches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


class CodeNameError(ValueError):
    """Named code cannot be found or used; the message says why."""


def resolve(target: str, *, what: str) -> str:
    """Returns `target` with the absolute path of its file, so that any process can find it later.

    Nothing is imported. `what` is the kind of code that messages name, such as "step reward".

    Raises:
        CodeNameError: the form of the target is wrong, or its file does not exist.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():
        raise CodeNameError(
            f"{what} {target!r}: {name!r} is not the name of a function or class; write "
            f"{(place if colon else target) or 'file.py'}:NAME"
        )
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise CodeNameError(f"{what} {target!r}: there is no file {place} in {Path.cwd()}")
        return f"{Path(place).resolve()}:{name}"
    if not all(part.isidentifier() for part in place.split(".")):
        raise CodeNameError(
            f"{what} {target!r}: {place!r} is neither a file.py nor a package.module"
        )
    return target


def find(target: str, *, what: str) -> object:
    """Imports and returns the object that `file.py:name` or `package.module:name` names.

    Raises:
        CodeNameError: `resolve` refuses the target, the module cannot be imported, or the module
            has no such name.
    """
    place, _, name = resolve(target, what=what).rpartition(":")
    module = _import(place)
    member = getattr(module, name, None)
    if member is None:
        there = _callables(module)
        near = get_close_matches(name, there, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CodeNameError(
            f"{place} has no {name!r}; it has: {', '.join(there) or 'no functions or classes'}"
            f"{hint}"
        )
    return member


def _import(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).resolve()
        # The module gets a unique name, so that a user's `random.py` does not replace Python's.
        # It is imported only once, even for several names, because it may load a model.
        name = f"_by_path_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
        if name in sys.modules:
            return sys.modules[name]
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be imported")
        module = module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look up the module here
        # The file can import other files of its folder, as a script can.
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except BaseException as error:  # a user's module may raise anything, SystemExit included
        if isinstance(error, KeyboardInterrupt):
            raise
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        own = [f for f in frames if not f.filename.startswith("<frozen")]
        line = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        raise CodeNameError(
            f"{place} cannot be imported: {type(error).__name__}: {error}{line}"
        ) from error


def _callables(module: ModuleType) -> list[str]:
    """Returns the names of the public functions and classes that the module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]
