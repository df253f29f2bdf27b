"""Filters of a step log, against plain Python over the same records."""

from __future__ import annotations

import argparse
import operator
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_logs import RECORD, random_records, write_log

from rewards.similarity import normalize
from srl.errors import UsageError
from srl.logs.filters import Filter, add_filters, in_order
from srl.logs.index import Log
from srl.runs.records import StepRecord

RECORDS = random_records(11)
Test = Callable[[StepRecord], bool]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log.open(write_log(tmp_path_factory.mktemp("log"), RECORDS))


def filter_of(words: str) -> Filter:
    parser = argparse.ArgumentParser()
    add_filters(parser)
    return Filter.from_args(parser.parse_args(words.split()))


def exact(record: StepRecord) -> bool | None:
    if record.format_failure is not None:
        return None
    return normalize(record.action) == normalize(record.expert_step)


def copied(record: StepRecord) -> bool | None:
    if record.format_failure is not None or record.previous_step is None:
        return None
    return normalize(record.action) == normalize(record.previous_step)


CASES: list[tuple[str, Test]] = [
    ("", lambda r: r.phase == "train"),
    ("--phase all", lambda r: True),
    ("--phase eval", lambda r: r.phase == "eval"),
    ("--train-step 3", lambda r: r.phase == "train" and r.train_step == 3),
    ("--step 3", lambda r: r.phase == "train" and r.train_step == 3),
    ("--phase all --train-step 2:5", lambda r: 2 <= r.train_step <= 5),
    ("--phase all --train-step 5:", lambda r: r.train_step >= 5),
    ("--phase all --train-step :2", lambda r: r.train_step <= 2),
    ("--phase all --step-index 0", lambda r: r.step_index == 0),
    ("--phase all --steps-left 0", lambda r: r.step_index == r.num_steps - 1),
    ("--phase all --num-steps 5:", lambda r: False),
    ("--phase all --group 1:2", lambda r: 1 <= r.group_id <= 2),
    ("--phase all --problem 0000000000000003", lambda r: r.problem_id.endswith("3")),
    ("--phase all --problem 00000000", lambda r: True),
    ("--phase all --problem 3", lambda r: False),
    ("--phase all --kept false", lambda r: not r.kept),
    ("--kept true", lambda r: r.kept),
    ("--phase all --exact true", lambda r: exact(r) is True),
    ("--phase all --exact false", lambda r: exact(r) is False),
    ("--phase all --copied true", lambda r: copied(r) is True),
    ("--phase all --truncated true", lambda r: r.truncated),
    ("--phase all --failure any", lambda r: r.format_failure is not None),
    ("--phase all --failures-only", lambda r: r.format_failure is not None),
    ("--phase all --failure none", lambda r: r.format_failure is None),
    ("--phase all --failure truncated", lambda r: r.format_failure == "truncated"),
    ("--phase all --failure nonsense", lambda r: False),
    ("--phase all --tokens ge:30", lambda r: r.completion_tokens >= 30),
    ("--phase all --reward eq:-1", lambda r: r.reward == -1),
    ("--phase all --reward ne:-1", lambda r: r.reward != -1),
    (
        "--reward ge:0.2 --reward lt:0.5 --kept true",
        lambda r: r.kept and r.reward is not None and 0.2 <= r.reward < 0.5,
    ),
    (
        "--phase all --similarity le:0.5",
        lambda r: (v := r.rewards["similarity"]) is not None and v <= 0.5,
    ),
    (
        "--phase all --reward equation:gt:0.5",
        lambda r: (v := r.rewards["equation"]) is not None and v > 0.5,
    ),
    ("--phase all --lift lt:0", lambda r: r.metrics["lift"] is not None and r.metrics["lift"] < 0),
    ("--advantage gt:1", lambda r: r.advantage is not None and r.advantage > 1),
    ("--group-std gt:0.4", lambda r: r.group_std is not None and r.group_std > 0.4),
]


@pytest.mark.parametrize(("words", "wanted"), CASES, ids=[words for words, _ in CASES])
def test_a_filter_against_plain_python(log: Log, words: str, wanted: Test) -> None:
    assert filter_of(words).rows(log).tolist() == [k for k, r in enumerate(RECORDS) if wanted(r)]


def test_sources_are_named_whole(log: Log) -> None:
    parser = argparse.ArgumentParser()
    add_filters(parser)
    args = parser.parse_args(["--source", "teacher 1", "--phase", "all"])
    rows = Filter.from_args(args).rows(log).tolist()
    assert rows == [k for k, r in enumerate(RECORDS) if r.source == "teacher 1"]
    args = parser.parse_args(["--source", "teacher", "--phase", "all"])
    assert not len(Filter.from_args(args).rows(log))


@given(
    st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]),
    st.one_of(st.floats(-1, 1), st.sampled_from([float(r.reward or 0) for r in RECORDS])),
)
def test_comparisons(log: Log, relation: str, number: float) -> None:
    compare = getattr(operator, relation)
    rows = filter_of(f"--phase all --reward {relation}:{number!r}").rows(log).tolist()
    assert rows == [
        k for k, r in enumerate(RECORDS) if r.reward is not None and compare(r.reward, number)
    ]


def test_words_say_what_was_asked() -> None:
    words = "--train-step 3:9 --step-index 2 --problem ab --kept true --failure any --reward lt:0.5"
    assert filter_of(words).words == words.replace("--failure any --reward lt:0.5", "").replace(
        "--kept true ", "--kept true --reward lt:0.5 --failure any --phase train"
    )


def test_words_are_read_again_as_they_were(log: Log) -> None:
    parser = argparse.ArgumentParser()
    add_filters(parser)
    for source in ("teacher 1", "it's", "-x", "", "a  b\\"):
        first = Filter.from_args(parser.parse_args([f"--source={source}", "--lift=lt:-0.5"]))
        again = Filter.from_args(parser.parse_args(shlex.split(first.words)))
        assert again == first
        assert again.names == {"source": source}
    assert filter_of("--source teacher_1").words == "--source teacher_1 --phase train"


def test_a_log_without_records_has_none_that_pass(tmp_path: Path) -> None:
    empty = Log.open(write_log(tmp_path, []))
    assert not len(filter_of("--reward similarity:lt:1").rows(empty))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--step-index x", "--step-index x: a number, or a range such as 40:60, 40: or :60"),
        ("--train-step :", "--train-step :: a number, or a range"),
        ("--train-step 9:3", "--train-step 9:3: the range is empty; try --train-step 3:9"),
        ("--train-step 99999999999999999999", "99999999999999999999: numbers go up to 2147483647"),
        ("--group :3000000000", "--group :3000000000: numbers go up to 2147483647"),
        ("--reward 0.2", "--reward 0.2: a comparison such as lt:0.2, or NAME:lt:0.2"),
        ("--reward under:0.2", "allowed: lt, le, gt, ge, eq, ne, then a colon and a number"),
        ("--reward lt:nan", "--reward lt:nan: a comparison"),
        ("--lift equation:lt:0.5", "--lift equation:lt:0.5: a comparison such as lt:0.2; allowed"),
    ],
)
def test_what_cannot_be_read(words: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        filter_of(words)
    assert said in str(error.value)


def test_an_unknown_reward_names_those_there_are(log: Log) -> None:
    with pytest.raises(UsageError, match="no record has a reward 'units'; .*similarity, equation"):
        filter_of("--reward units:lt:1").rows(log)


def test_a_reward_whose_name_has_colons(tmp_path: Path) -> None:
    name = "my_rewards.py:units"
    path = write_log(tmp_path, [replace(RECORD, rewards={name: v}) for v in (0.1, 0.9)])
    assert filter_of(f"--reward {name}:gt:0.5").rows(Log.open(path)).tolist() == [1]


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(
    "name", ["reward", "lift", "similarity", "train_step", "problem_id", "completion_tokens"]
)
def test_order(log: Log, name: str, down: bool) -> None:
    rows = filter_of("--phase all").rows(log)

    def key(record: StepRecord) -> object:
        named = {**record.rewards, **record.metrics}
        return named[name] if name in named else getattr(record, name)

    known = [k for k, r in enumerate(RECORDS) if key(r) is not None]
    unknown = [k for k, r in enumerate(RECORDS) if key(r) is None]
    expected = sorted(known, key=lambda k: key(RECORDS[k]), reverse=down)  # type: ignore[arg-type,return-value]
    if down:  # sorted(reverse=True) keeps ties in order too
        assert expected == sorted(expected, key=lambda k: key(RECORDS[k]), reverse=True)  # type: ignore[arg-type,return-value]
    assert in_order(log, rows, f"-{name}" if down else name).tolist() == expected + unknown
    assert in_order(log, rows, None).tolist() == rows.tolist()


def test_what_cannot_be_sorted_by(log: Log) -> None:
    for name in ("start", "thought", "--", "phase"):
        with pytest.raises(
            UsageError, match="allowed are train_step, .* similarity, equation; a m"
        ):
            in_order(log, filter_of("").rows(log), name)
