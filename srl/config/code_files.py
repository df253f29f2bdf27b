"""Finds the files of code that settings name, and the files that it imports, without importing.

For installed packages only the named file counts, because packages have versions.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

_INSTALLED = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")}
_OURS = {"srl", "rewards", "environments"}  # these belong to a package, which has a version


def code_file(place: str) -> Path | None:
    """Returns the file of `file.py` or `package.module` without importing it.

    The result is None if there is no such Python file, and for modules of this project.
    """
    if place.endswith(".py"):
        return Path(place).resolve() if Path(place).is_file() else None
    parts = place.split(".")
    if parts[0] in _OURS:
        return None
    where: list[str] | None = [*sys.path, str(Path.cwd())]
    origin = None
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), where)
        if spec is None:
            return None
        where, origin = spec.submodule_search_locations, spec.origin
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def with_imports(file: Path) -> set[Path]:
    """Returns a file and all files that it imports from its folder or the current one.

    This includes indirect imports.
    """
    files, waiting = set[Path](), [file]
    while waiting:
        file = waiting.pop()
        if file in files:
            continue
        files.add(file)
        if any(file.is_relative_to(folder) for folder in _INSTALLED):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # the real import reports the error
            continue
        waiting += [path for name, above in _imports(tree) for path in _beside(file, name, above)]
    return files


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields each dotted name that a file imports, with the level of a relative import, else 0."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from ((f"{module}.{alias.name}".strip("."), node.level) for alias in node.names)


def _beside(file: Path, name: str, above: int) -> Iterator[Path]:
    """Yields the files that a dotted name may stand for, including its parent packages."""
    parts = name.split(".")
    if not above and parts[0] in _OURS:
        return
    roots = [file.parents[above - 1]] if above else [file.parent, Path.cwd()]
    for root in roots:
        for count in range(1, len(parts) + 1):
            place = root.joinpath(*parts[:count])
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                if path.is_file():
                    yield path.resolve()
