"""An object by its place: `file.py:name` or `package.module:name`.

Whatever may be a user's own code (a reward, a loss, an environment) is found here. Everything that
can be wrong with the place is said with what there is instead.
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
    """Code that cannot be found or imported; the message says what there is instead."""


def whole_target(target: str, *, what: str, example: str) -> str:
    """The target with a file's whole path, so that it is found from any folder; imports nothing.

    Args:
        target: `file.py:name` or `package.module:name`.
        what: what is looked for, for messages: "step reward".
        example: what could be written instead, for messages: "my_file.py:my_reward".

    Raises:
        CodeNameError: no name after a colon, a file that is not there, or no place at all.
    """
    place, colon, name = target.rpartition(":")
    if not colon:
        raise CodeNameError(f"no {what} is called {target!r}; write one of your own as {example}")
    if not name.isidentifier():
        raise CodeNameError(
            f"{what} {target!r}: {name!r} is not the name of a function; write "
            f"{place or 'file.py'}:NAME"
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


def find(target: str, *, what: str, example: str) -> object:
    """Import the place and hand over what stands there under the name; arguments as above.

    Raises:
        CodeNameError: as `whole_target`; or it cannot be imported, or has no such name.
    """
    place, _, name = whole_target(target, what=what, example=example).rpartition(":")
    module = _import(place)
    if (found := getattr(module, name, None)) is not None:
        return found
    there = _callables(module)
    near = get_close_matches(name, there, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise CodeNameError(
        f"{place} has no {name!r}; it has: {', '.join(there) or 'no functions or classes'}{hint}"
    )


def _import(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).resolve()
        # Under a name of its own: a user's `random.py` must not stand in for Python's. Once,
        # however many objects are taken from it: it may load a model.
        name = f"_by_path_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
        if name in sys.modules:
            return sys.modules[name]
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be imported")
        module = module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look the module up
        # Its neighbours can be imported, as in a script that is run.
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
    """Public functions and classes that the module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]
