"""Checks at start-up that `rewards` and `environments` are our packages, not foreign ones.

Both names exist on PyPI. A foreign package can come first on `sys.path` (with an editable install,
anywhere outside the checkout). Or it can overwrite our files, and uninstalling it then deletes
them. In both cases later imports fail far from the cause, or they succeed with the wrong code. So
the command line and the lazy names of `srl` run this check first. The check imports nothing.
"""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path

from srl.errors import UsageError

DISTRIBUTION = "stepwise-srl"
SIBLINGS = ("rewards", "environments")


def check_packages_side_by_side() -> None:
    """Raises UsageError unless the sibling packages lie beside `srl` and are ours.

    Raises:
        UsageError: one is missing, comes from elsewhere, or was overwritten by another
            distribution; the message names the place and what to type.
    """
    home = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        folder = _directory(name)
        if folder is None:
            raise UsageError(
                f"the package {name!r} is missing: it belongs beside srl, in {home}. "
                f"Type: {_reinstall(home)}"
            )
        if folder.parent != home:
            raise UsageError(
                f"a foreign package {name!r} comes first: found {folder}, wanted {home / name}. "
                f"{_get_rid_of(name, folder)}, then: {_reinstall(home)}"
            )
        if _overwritten(name, folder):
            raise UsageError(
                f"the distribution {name!r} has written its files over ours in {folder}. "
                f"Type: pip uninstall -y {name}, then: {_reinstall(home)}"
            )


def _directory(name: str) -> Path | None:
    """Returns where `import name` would find its package or module; None if nowhere."""
    try:
        spec: ModuleSpec | None = find_spec(name)
    except ValueError:  # already in sys.modules without a spec: made by hand, not ours
        spec = None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def _overwritten(name: str, ours: Path) -> bool:
    """Returns whether a distribution called `name` is installed in our package's folder."""
    try:
        return Path(str(distribution(name).locate_file(name))).resolve() == ours
    except PackageNotFoundError:
        return False


def _get_rid_of(name: str, folder: Path) -> str:
    owners = sorted(set(packages_distributions().get(name, ())) - {DISTRIBUTION})
    if owners and "site-packages" in folder.parts:
        return f"Type: pip uninstall -y {' '.join(owners)}"
    return f"Rename it, or take {folder.parent} off PYTHONPATH"


def _reinstall(home: Path) -> str:
    """Returns the pip command that reinstalls srl, from the checkout or by its name."""
    source = f"-e {home}" if (home / "pyproject.toml").is_file() else DISTRIBUTION
    return f"pip install --force-reinstall --no-deps {source}"
