"""Live progress: plain lines away from a terminal, a bar on one, and the warning of a run-away."""

from __future__ import annotations

import io
import math
import signal

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from srl.training.progress import ProgressReport

LOGS = {
    "reward": 0.25,
    "rewards/similarity": 0.5,
    "format_failures": 0.125,
    "groups_kept": 4,
    "groups_tried": 6,
    "tokens": 300,
    "seconds/collect": 1.0,
    "seconds/update": 2.0,
}
EVAL = {
    "eval_accuracy": 0.5,
    "eval_accuracy_short": 0.75,
    "eval_rewards/similarity": 0.6,
    "eval_exact": 0.25,
    "eval_format_failures": 0.0,
}


class Shown:
    """A report, and what it has printed."""

    def __init__(self, *, terminal: bool = False, multiple: int = 1) -> None:
        self.file = io.StringIO()
        console = Console(file=self.file, force_terminal=terminal, width=200)
        self.report = ProgressReport(console, save_every_multiple_of=multiple)
        self.args = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
        self.state = TrainerState(global_step=0, max_steps=10)
        self.control = TrainerControl()

    def call(self, event: str, **kwargs: object) -> str:
        """What an event prints."""
        start = len(self.file.getvalue())
        getattr(self.report, event)(self.args, self.state, self.control, **kwargs)
        return self.file.getvalue()[start:]


@pytest.fixture(autouse=True)
def handler_given_back() -> object:
    before = signal.getsignal(signal.SIGINT)
    yield
    after = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert after is before


def test_plain_lines_away_from_a_terminal() -> None:
    shown = Shown()
    shown.call("on_train_begin")
    shown.state.global_step = 3
    line = shown.call("on_log", logs=LOGS)
    assert line.startswith(
        "step 3/10  reward 0.250  similarity 0.500  failures 12.5%  groups 4/6  100 tokens/s  "
    )
    assert line.endswith(" left\n")
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert shown.call("on_log", logs={"eval_reward": 0.1}) == ""
    assert shown.call("on_log", logs={"loss": 0.1, "kl": 0.2}) == ""  # a second pass
    shown.call("on_train_end")


def test_a_bar_on_a_terminal() -> None:
    shown = Shown(terminal=True)
    shown.call("on_train_begin")
    shown.state.global_step = 3
    shown.call("on_log", logs=LOGS)
    shown.call("on_train_end")
    assert "3/10" in shown.file.getvalue()
    assert "reward 0.250" in shown.file.getvalue()
    shown.report.close()  # a second time


def test_what_is_not_there_is_a_dash() -> None:
    shown = Shown()
    shown.call("on_train_begin")
    nothing = {**LOGS, "rewards/similarity": math.nan, "format_failures": 1.0}
    assert "similarity -  failures 100.0%" in shown.call("on_log", logs=nothing)
    unknown = {**EVAL, "eval_accuracy_short": math.nan, "eval_exact": math.nan}
    del unknown["eval_rewards/similarity"]
    line = shown.call("on_evaluate", metrics=unknown)
    assert "solved 50.0% (short ones -)  similarity -  exact steps -  failures 0.0%" in line
    shown.report.close()


@pytest.mark.parametrize(
    ("similarity", "accuracy", "warned"),
    [(0.7, 0.4, True), (0.7, 0.5, False), (0.7, 0.6, False), (0.6, 0.4, False), (0.5, 0.4, False)],
)
def test_a_run_away_is_told(similarity: float, accuracy: float, warned: bool) -> None:
    shown = Shown()
    assert "warning" not in shown.call("on_evaluate", metrics=EVAL)
    later = {**EVAL, "eval_rewards/similarity": similarity, "eval_accuracy": accuracy}
    said = shown.call("on_evaluate", metrics=later)
    assert ("warning: since the first validation similarity rose" in said) is warned
    if warned:
        assert "rose by 0.100 while 10.0% fewer problems are solved" in said


def test_ctrl_c_asks_for_a_checkpoint_at_the_end_of_the_step() -> None:
    shown = Shown(multiple=2)
    shown.call("on_train_begin")
    shown.state.global_step = 3
    signal.raise_signal(signal.SIGINT)
    assert "stopping after this step, with a checkpoint" in shown.file.getvalue()
    shown.call("on_step_end")
    assert not shown.control.should_training_stop  # in the middle of a batch of two passes
    shown.state.global_step = 4
    shown.call("on_step_end")
    assert shown.control.should_training_stop
    assert shown.control.should_save
    assert shown.control.should_log  # what waits for its line is in no checkpoint
    assert shown.report.interrupted
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    shown.report.close()


def test_closing_what_never_began_leaves_ctrl_c_alone() -> None:
    Shown().report.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
