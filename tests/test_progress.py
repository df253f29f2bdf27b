"""Live progress: plain lines away from a terminal, a bar on one, and the warning of a run-away."""

from __future__ import annotations

import io
import math
import signal

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from srl.runs.stopping import Stopped, StopSignals
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
        self.signals = StopSignals()
        self.report = ProgressReport(console, save_every_multiple_of=multiple, signals=self.signals)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_asks_for_a_checkpoint_at_the_end_of_the_step(number: int) -> None:
    shown = Shown(multiple=2)
    with shown.signals:
        shown.call("on_train_begin")
        shown.state.global_step = 3
        signal.raise_signal(number)
        said = shown.file.getvalue()
        assert "stopping after this step, with a checkpoint" in said
        assert ("Ctrl-C again" in said) is (number == signal.SIGINT)
        shown.call("on_step_end")
        assert not shown.control.should_training_stop  # in the middle of a batch of two passes
        shown.state.global_step = 4
        shown.call("on_step_end")
        assert shown.control.should_training_stop
        assert shown.control.should_save
        assert shown.control.should_log  # what waits for its line is in no checkpoint
        assert shown.signals.asked == number


def test_nothing_stops_a_checkpoint_from_becoming_whole() -> None:
    """A second Ctrl-C waits for it; what schedulers and closing terminals repeat stops nothing."""
    shown = Shown()
    with shown.signals:
        shown.call("on_train_begin")
        shown.state.global_step = 1
        shown.control.should_save = True  # by save_steps
        shown.call("on_step_end")
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        with pytest.raises(Stopped) as stop:
            shown.call("on_save")
    assert stop.value.exit_code == 130


def test_a_checkpoint_that_was_asked_for_is_saved_and_stays() -> None:
    """Whatever `save_strategy` and `save_total_limit` would do with it."""
    shown = Shown()
    shown.args = TrainingArguments(
        output_dir="unused", use_cpu=True, report_to="none", save_total_limit=1,
        save_strategy="best", metric_for_best_model="accuracy", load_best_model_at_end=False,
    )  # fmt: skip
    with shown.signals:
        shown.call("on_train_begin")
        signal.raise_signal(signal.SIGTERM)
        shown.call("on_step_end")
    assert shown.control.should_save
    assert (shown.args.save_strategy, shown.args.save_total_limit) == ("steps", 2)


def test_outside_of_steps_a_signal_stops_at_once() -> None:
    with StopSignals(), pytest.raises(Stopped, match="stopped") as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with StopSignals() as signals:
        signals.after_this_step(lambda words: None)
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(Stopped) as stop:
            signals.at_once()  # it came when the last step was over
    assert stop.value.exit_code == 129


def test_signals_that_the_shell_has_set_aside_stay_so() -> None:
    """nohup ignores SIGHUP, and a shell SIGINT for what it starts in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
