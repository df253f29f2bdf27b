from __future__ import annotations

import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import srl
from srl import guard
from srl.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


def guarded(*first_on_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the guard in a fresh interpreter with these directories first on sys.path."""
    code = (
        "import sys\n"
        f"sys.path[:0] = {[str(path) for path in first_on_path]!r}\n"
        "from srl.guard import check_packages_side_by_side\n"
        "try:\n"
        "    check_packages_side_by_side()\n"
        "finally:\n"
        "    assert not {'rewards', 'environments', 'torch'} & sys.modules.keys()\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


def package(directory: Path, name: str, text: str = "") -> Path:
    (directory / name).mkdir(parents=True)
    (directory / name / "__init__.py").write_text(text)
    return directory


def test_our_packages_pass() -> None:
    guard.check_packages_side_by_side()
    done = guarded(ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", guard.SIBLINGS)
def test_a_foreign_package_is_named_and_not_imported(tmp_path: Path, name: str) -> None:
    package(tmp_path, name, "raise SystemExit('the foreign package was imported')")
    done = guarded(tmp_path, ROOT)
    assert done.returncode == 1
    assert "UsageError" in done.stderr
    assert str(tmp_path / name) in done.stderr
    assert "pip install --force-reinstall" in done.stderr


def test_a_single_foreign_file_is_caught(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("")
    done = guarded(tmp_path, ROOT)
    assert "a foreign package 'rewards' comes first" in done.stderr
    assert str(tmp_path / "rewards.py") in done.stderr


def test_an_installed_intruder_is_named_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = package(tmp_path / "site-packages", "rewards")
    metadata = site / "other_rewards-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-rewards\nVersion: 2.0\n")
    (metadata / "top_level.txt").write_text("rewards\n")
    monkeypatch.syspath_prepend(str(site))
    # Not the copy that the tests have imported already, but what a new process would find.
    monkeypatch.setattr(guard, "find_spec", PathFinder.find_spec)
    with pytest.raises(UsageError, match="pip uninstall -y other-rewards, then: pip install"):
        guard.check_packages_side_by_side()


def test_files_written_over_ours_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install rewards` into the folder that holds our own `rewards`."""
    for name in ("srl", *guard.SIBLINGS):
        package(tmp_path, name)
    metadata = tmp_path / "rewards-0.1.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rewards\nVersion: 0.1.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "srl" / "guard.py"))
    monkeypatch.setattr(guard, "find_spec", PathFinder.find_spec)
    with pytest.raises(UsageError, match="written its files over ours.*pip uninstall -y rewards"):
        guard.check_packages_side_by_side()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "srl")
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "srl" / "guard.py"))
    monkeypatch.setattr(guard, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="'rewards' is missing.*reinstall --no-deps stepwise-srl"):
        guard.check_packages_side_by_side()


def test_lazy_names_ask_the_guard_first(tmp_path: Path) -> None:
    package(tmp_path, "environments")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; "
        "import srl; srl.load_trajectories"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert "a foreign package 'environments' comes first" in done.stderr


def test_public_names() -> None:
    assert set(srl.__all__) <= set(dir(srl))
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = srl.Trainer
