"""Code by name, and step rewards by name: which are called with one step and which with a batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest

from rewards import BUILT_INS, RewardSum, StepContext
from rewards.by_path import CodeNameError, find, resolve
from rewards.loading import LoadedReward, RewardSpec, bind, load_reward


def single_unnamed(s): ...  # type: ignore[no-untyped-def]
def single_annotated(s: StepContext) -> float: ...  # type: ignore[empty-body]
def batch_named(steps): ...  # type: ignore[no-untyped-def]
def batch_list(s: list[StepContext]) -> list[float]: ...  # type: ignore[empty-body]
def batch_sequence(s: Sequence[StepContext]) -> list[float]: ...  # type: ignore[empty-body]
def any_number(*s): ...  # type: ignore[no-untyped-def]


class BatchCall:
    def __call__(self, s: list[StepContext]) -> list[float]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "batched"),
    [
        (single_unnamed, False),
        (single_annotated, False),
        (any_number, False),
        (batch_named, True),
        (batch_list, True),
        (batch_sequence, True),
        (BatchCall, True),
        (BatchCall(), True),
    ],
)
def test_how_a_batched_function_is_told(function: object, batched: bool) -> None:
    assert bind(function, {}, "it").batched is batched


def test_built_ins_load() -> None:
    for name in BUILT_INS:
        loaded = load_reward(RewardSpec(name, name))
        assert isinstance(loaded, LoadedReward)
        assert not loaded.batched


def test_an_unknown_reward_is_a_wrong_name() -> None:
    with pytest.raises(CodeNameError):
        RewardSum({"similarty": 1.0})


# Code by path, of whatever kind


def test_code_is_found_by_file_and_by_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("import beside\nclass World:\n    size = beside.SIZE\n")
    (tmp_path / "beside.py").write_text("SIZE = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    absolute = resolve("mine.py:World", what="environment")
    assert absolute == f"{tmp_path / 'mine.py'}:World"
    monkeypatch.chdir("/")
    found = find(absolute, what="environment")
    assert found.size == 3  # type: ignore[attr-defined]
    assert find(absolute, what="environment") is found  # imported once
    assert find("fractions:Fraction", what="environment") is Fraction


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine.py:Wrld", r"mine.py has no 'Wrld'; it has: World; did you mean 'World'\?"),
        ("none.py:World", "environment 'none.py:World': there is no file none.py in "),
        ("mine.py", "environment 'mine.py': 'mine.py' is not the name .*; write mine.py:NAME"),
        ("mine.py:a b", "'a b' is not the name of a function or class; write mine.py:NAME"),
        ("not there:World", "'not there' is neither a file.py nor a package.module"),
        ("no_such_module_here:World", "cannot be imported: ModuleNotFoundError"),
        ("broken.py:World", r"broken.py cannot be imported: SystemExit: 3 \(broken.py, line 2\)"),
    ],
)
def test_a_wrong_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text("class World: ...\n")
    (tmp_path / "broken.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(CodeNameError, match=message):
        find(target, what="environment")
