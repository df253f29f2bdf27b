"""What people write in files and on command lines: read as meant, or refused in one message."""

from __future__ import annotations

import math
import time
import typing
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import refused, train, write_config
from hypothesis import given
from hypothesis import strategies as st

from srl.commands.cli import main
from srl.compare.plan_file import load_plan
from srl.config.experiment import load_experiment, parse_experiment
from srl.config.parts import setting_names
from srl.config.settings import SRLConfig
from srl.config.strict_yaml import read_value
from srl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("-5", -5), ("+3", 3), ("1_000", 1000), ("0x1F", 31),
        ("1e-4", 1e-4), ("1e5", 1e5), ("1.", 1.0), (".5", 0.5), ("-.5e3", -500.0),
        (".inf", math.inf), ("true", True), ("yes", True), ("no", False), ("~", None), ("", None),
        # Numbers and dates of YAML 1.1 that nobody means, and what only looks like a number.
        ("010", "010"), ("0o17", "0o17"), ("0b11", "0b11"), ("1:30", "1:30"), ("1:30.5", "1:30.5"),
        ("12:30:45", "12:30:45"), ("2026-01-01", "2026-01-01"), ("2026-13-99", "2026-13-99"),
        ("2026-01-01 12:00:00", "2026-01-01 12:00:00"), ("1.2.3", "1.2.3"), ("1e", "1e"),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}), ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
    ],
)  # fmt: skip
def test_values(text: str, value: object) -> None:
    found = read_value(text, "--x")
    assert found == value
    assert type(found) is type(value)


def bomb(line: str) -> str:
    return "a0: &a0 {x: 1}\n" + "".join(
        f"a{k}: &a{k} {line.format(','.join([f'*a{k - 1}'] * 9))}\n" for k in range(1, 40)
    )


UNREADABLE = [
    ("!!int x", r"line 1 has a tag \(!!int\)"),
    ("!!int ''", "tag"),
    ("!!timestamp x", "tag"),
    ("!!float ''", "tag"),
    ("!!bool x", "tag"),
    ("!!binary é", "tag"),
    ("!!set {a}", "tag"),
    ("!!omap [a: 1]", "tag"),
    ("a: 1\nb: !!python/object/apply:os.system [id]", "line 2 has a tag"),
    ("!own x", r"line 1 has a tag \(!own\)"),
    ("&a [*a]", r"line 1: \*a stands inside of itself"),
    ("&a {b: *a}", "stands inside of itself"),
    (bomb("[{}]"), "line 5: these are more than 10,000 values"),
    (bomb("{{<<: [{}]}}"), "more than 10,000 values"),
    ("[" * 60 + "]" * 60, "line 1: it is nested too deeply"),
    ("[" * 5_000, "nested too deeply"),
    ("{a: 1, b: {2: x}}", "the key 2 is no text; put it in quotes"),
    ("{null: 1}", "the key None is no text"),
    ("? [a]\n: b", "is no text"),
    ("{true: 1}", "the key True is no text"),
    ("a: 1\nb: 2\na: 3", "the key 'a' stands twice in the block of line 1"),
    ("1" * 5000, "4300 digits"),
    ("*x", "undefined alias"),
    ("{<<: 5}", "mapping"),
    ("--- a\n--- b", "single document"),
    ("\0", "unacceptable character"),
    ("'", "unexpected end"),
    ("a: b: c", "not allowed here"),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE)
def test_what_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(UsageError, match=f"(?s)--x: .* cannot be read: .*{message}"):
        read_value(text, "--x")
    file = tmp_path / "e.yaml"
    file.write_text(text, encoding="utf-8")
    for load in (load_experiment, load_plan):
        with pytest.raises(UsageError, match=f"(?s)e.yaml is not YAML: .*{message}"):
            load(file)
    assert time.process_time() - started < 5  # not the hours, nor the gigabytes, of a bomb


@given(st.text(alphabet="ab1.-:[]{}&*!<>|%#'\"?,~ \n\t0eE_é\u2028\0", max_size=30))
def test_any_text(text: str) -> None:
    with suppress(UsageError):
        read_value(text, "--x")


# ---- values of settings -------------------------------------------------------------------------

HINTS = typing.get_type_hints(SRLConfig)
ANYTHING = (
    math.inf, -math.inf, math.nan, "nan", "1e400", -(10**400), 10**400, 2**63, 1e308, 5e-324, -1,
    -0.5, 0, 0.5, True, False, None, "", "x", "0x10", "1:30", b"x", [], [1], {}, {"a": 1}, {1: 2},
)  # fmt: skip


def parse(**settings: object) -> SRLConfig:
    values = {"model": "m", "data": {"source": "word_problems"}, "use_cpu": True, **settings}
    return parse_experiment(values, where="x.yaml").args  # type: ignore[return-value]


@pytest.mark.parametrize("name", [*setting_names(SRLConfig), "model", "data", "rewards", "lora"])
def test_any_value_of_any_setting(name: str) -> None:
    for value in ANYTHING:
        with suppress(UsageError):
            args = parse(**{name: value})
            if HINTS.get(name) in (int, float):
                kept = getattr(args, name)
                assert type(kept) is not bool
                assert math.isfinite(kept)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", (-1.0,)),
        ("weight_decay", (-0.1,)),
        ("adam_beta1", (-0.1, 1.0)),
        ("adam_beta2", (-0.1, 1.0)),
        ("adam_epsilon", (-1e-8,)),
        ("max_grad_norm", (-1.0,)),
        ("num_train_epochs", (0, -1, 1e308)),
        ("max_steps", (-2, 2**31)),
        ("logging_steps", (0, -1)),
        ("save_steps", (0, -1, -0.5)),
        ("eval_steps", (0, -1)),
        ("save_total_limit", (-1,)),
        ("temperature", (0, 5e-324, 1e308)),
        ("reward_deadline", (0, 5e-324, 1e308)),
        ("reward_workers", (0, -1, 2**31)),
        ("format_failure_reward", (1e308, -1e308)),
        ("neftune_noise_alpha", (-1, 1e308)),
        ("epsilon", (-1, 1e308)),
        ("epsilon_high", (-1, 1e308)),
        ("delta", (0.5, 1e308)),
        ("beta", (-1, 1e308)),
        ("entropy_coef", (-1e308, 1e308)),
    ],
)
def test_numbers_that_no_trainer_can_use(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"^x.yaml: {name} is "):
            parse(**{name: value})


def test_code_is_looked_for_before_data_are_read(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "some_code.py").write_text("def some(x):\n    return 1.0\n")
    (home / "data.jsonl").write_text("no JSON")
    for words in (
        ["--loss_type", "some_code.py:nope"],
        ["--rewards.some_code.py:nope", "1"],
        ["--data.source", "some_code.py:nope"],
    ):
        refused(capsys, train(*words), r"some_code.py has no 'nope'; it has: some")
    write_config(home / "config.yaml", model="none", loss_type="some_code.py:nope")
    refused(capsys, main(["train", "--config", "config.yaml"]), "some_code.py has no 'nope'")
