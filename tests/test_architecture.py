"""The house stands as ARCHITECTURE.md draws it: imports point one way, torch stays where needed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"srl", "rewards", "environments", "tests", "experiments"}
ALLOWED = {
    "rewards": {"rewards"},
    "environments": {"environments"},
    "srl": {"srl", "rewards", "environments"},
}
# The one place where the two leaves touch: where a text states its final answer.
TOUCHES = {("rewards/answer.py", "environments"), ("rewards/scalars.py", "environments")}
# The floors of `srl/`, from the ground up: a module imports its own floor and those before it. What
# lies in `srl/` itself is named; a package stands for all of its modules.
FLOORS = (
    (
        *("srl.errors", "srl.console", "srl.redaction", "srl.guard", "srl.stats"),
        *("srl.sample_metrics", "srl.threads"),
    ),
    ("srl.config",),
    ("srl.runs",),
    ("srl.logs",),
    ("srl.data",),
    ("srl.models",),
    ("srl.rollout",),
    ("srl.evaluation",),
    ("srl.training",),
    ("srl.compare",),
    ("srl.trl_adapter",),
    ("srl.commands",),
)
# The package itself, which looks public names up when they are asked for, and `python -m srl`.
ABOVE_ALL = {"srl", "srl.__main__"}
MOST_MODULES_IN_SRL = 14
# Views are opened on machines that only hold a run's folder.
VIEWS_SEE = {"srl.logs", "srl.runs", *FLOORS[0]}
# What must work, and be quick to start, on a machine without torch.
WITHOUT_TORCH = [
    "srl",
    "srl.errors",
    "srl.guard",
    "srl.runs.records",
    "srl.runs.folder",
    "srl.data.steps",
    "srl.commands.check_data",
    "srl.training.advantages",
    "srl.models.prefix_tree",
    "srl.evaluation.behaviour",
    "srl.sample_metrics",
    "srl.evaluation.benchmarks.figures",
    "srl.compare.figures",
]
HEAVY = {"torch", "transformers", "trl", "accelerate", "datasets"}


def imports(source: str) -> set[str]:
    """Top-level names of everything the code imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def backward_edges(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root).as_posix()} imports {name}"
        for package, allowed in ALLOWED.items()
        for path in sorted((root / package).rglob("*.py"))
        for name in sorted(imports(path.read_text(encoding="utf-8")) & OURS - allowed)
        if (path.relative_to(root).as_posix(), name) not in TOUCHES
    ]


def test_no_import_points_back() -> None:
    assert backward_edges(ROOT) == []


def test_the_check_finds_an_edge_that_points_back(tmp_path: Path) -> None:
    for package in ALLOWED:
        (tmp_path / package).mkdir()
    (tmp_path / "rewards" / "a.py").write_text("def f():\n    from srl.records import FIELDS\n")
    (tmp_path / "environments" / "b.py").write_text("import rewards.types, os\n")
    (tmp_path / "srl" / "c.py").write_text("import rewards, environments\nimport tests.conftest\n")
    assert backward_edges(tmp_path) == [
        "rewards/a.py imports srl",
        "environments/b.py imports rewards",
        "srl/c.py imports tests",
    ]


def floor_of(module: str) -> int:
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    raise AssertionError(f"{module} stands on no floor: give it a room in FLOORS")


def imported_modules(source: str) -> set[str]:
    """Modules of `srl` that the code imports, wherever in it the import stands.

    `from srl.x import y` counts as `srl.x.y` too where that is a module: see `climbing_edges`.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("srl.")}


def climbing_edges(root: Path) -> list[str]:
    """Imports inside `srl/` that point up, and those of views that see more than a run's folder."""
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / "srl").rglob("*.py"))
    }
    edges = []
    for module, path in paths.items():
        if module in ABOVE_ALL:
            continue
        wanted = imported_modules(path.read_text(encoding="utf-8")) & paths.keys()
        for name in sorted(wanted):
            blind = module.startswith("srl.logs") and not any(
                name == seen or name.startswith(f"{seen}.") for seen in VIEWS_SEE
            )
            if floor_of(name) > floor_of(module) or blind:
                edges.append(f"{module} imports {name}")
    return edges


def test_imports_point_down() -> None:
    assert climbing_edges(ROOT) == []


def test_the_check_finds_an_import_that_points_up(tmp_path: Path) -> None:
    for name, source in {
        "__init__": "",
        "errors": "def f():\n    from srl.data import steps\n",
        "data/__init__": "",
        "data/steps": "import srl.errors\nfrom srl.runs.records import FIELDS\n",
        "runs/__init__": "",
        "runs/records": "from srl.data.steps import StepExample\n",
        "logs/__init__": "from srl.config import settings",
        "config/__init__": "",
        "config/settings": "",
    }.items():
        path = tmp_path / "srl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    assert climbing_edges(tmp_path) == [
        "srl.errors imports srl.data",
        "srl.errors imports srl.data.steps",
        "srl.logs imports srl.config",
        "srl.logs imports srl.config.settings",
        "srl.runs.records imports srl.data.steps",
    ]


def test_few_modules_lie_beside_the_packages() -> None:
    assert len(list((ROOT / "srl").glob("*.py"))) <= MOST_MODULES_IN_SRL


def modules_of(package: str) -> list[str]:
    names = [path.stem for path in sorted((ROOT / package.replace(".", "/")).glob("*.py"))]
    return [package if name == "__init__" else f"{package}.{name}" for name in names]


@pytest.mark.parametrize(
    "package",
    ["rewards", "environments", "srl", "srl.logs", "srl.logs.terminal", "srl.logs.report"],
)
def test_works_without_torch(package: str) -> None:
    modules = WITHOUT_TORCH if package == "srl" else modules_of(package)
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = {HEAVY!r} & sys.modules.keys()\n"
        "    assert not loaded, f'{name} imports {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_packages_that_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ALLOWED
        for path in (ROOT / package).rglob("__init__.py")
    }
    packages = project["tool"]["setuptools"]["packages"]
    assert set(packages) == found, "a package inside a package must be listed in pyproject.toml"
    # The three import names are other people's distributions on PyPI.
    assert project["project"]["name"] not in ALLOWED


def test_the_pins_are_inside_the_ranges() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    wanted = [Requirement(one) for one in project["dependencies"] + extras["dev"]]
    for own in [one for one in wanted if one.name == project["name"]]:  # `dev` takes other extras
        wanted += [Requirement(one) for extra in own.extras for one in extras[extra]]
        wanted.remove(own)
    for requirement in wanted:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} does not admit {pin}"


def test_the_version_is_said_once() -> None:
    import srl

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == srl.__version__
