"""Start-up guard: `rewards` and `environments` must be ours, not other people's packages.

Both names exist on PyPI. Installed beside ours, a foreign package either wins on `sys.path` (with
an editable install, anywhere outside the checkout) or has overwritten our files, and uninstalling
it then deletes them. Either way the imports that follow fail far from the cause, or worse, succeed.
So the command line and the lazy names of `srl` ask here first. Nothing is imported to find out.
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
    """Refuse to start unless the sibling packages stand beside `srl` and are ours.

    Raises:
        UsageError: one is missing, comes from elsewhere, or was overwritten by another
            distribution; the message names the place and what to type.
    """
    home = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        found = _directory(name)
        if found is None:
            raise UsageError(
                f"the package {name!r} is missing: it belongs beside srl, in {home}. "
                f"Type: {_reinstall(home)}"
            )
        if found.parent != home:
            raise UsageError(
                f"a foreign package {name!r} comes first: found {found}, wanted {home / name}. "
                f"{_get_rid_of(name, found)}, then: {_reinstall(home)}"
            )
        if _overwritten(name, found):
            raise UsageError(
                f"the distribution {name!r} has written its files over ours in {found}. "
                f"Type: pip uninstall -y {name}, then: {_reinstall(home)}"
            )


def _directory(name: str) -> Path | None:
    """Where `import name` would find its package or module; None where it would find nothing."""
    try:
        spec: ModuleSpec | None = find_spec(name)
    except ValueError:  # already in sys.modules, without a spec: made by hand, not ours
        spec = None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def _overwritten(name: str, ours: Path) -> bool:
    """Whether a distribution called `name` is installed into the very folder of our package."""
    try:
        return Path(str(distribution(name).locate_file(name))).resolve() == ours
    except PackageNotFoundError:
        return False


def _get_rid_of(name: str, found: Path) -> str:
    owners = sorted(set(packages_distributions().get(name, ())) - {DISTRIBUTION})
    if owners and "site-packages" in found.parts:
        return f"Type: pip uninstall -y {' '.join(owners)}"
    return f"Rename it, or take {found.parent} off PYTHONPATH"


def _reinstall(home: Path) -> str:
    """A checkout is installed from itself; anything else by the distribution's name."""
    source = f"-e {home}" if (home / "pyproject.toml").is_file() else DISTRIBUTION
    return f"pip install --force-reinstall --no-deps {source}"
