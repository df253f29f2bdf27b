"""Shows the progress of a run: a bar with the main figures on a terminal, else plain lines.

It also ends a training when a signal asks for it, with a checkpoint at the end of the step. It
warns when similarity, the proxy, rises while fewer problems are solved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from srl.console import clock, say
from srl.runs.stopping import StopSignals

# Smaller changes than these are noise on about sixty validation problems.
_RISE, _FALL = 0.01, 0.03


class ProgressReport(TrainerCallback):
    """Shows a run while it trains.

    Args:
        console: where the progress is shown.
        save_every_multiple_of: a signal stops the training after a step that is a multiple of this.
        first: functions that return lines to print when training begins.
        signals: the signals that may ask the training to stop; None handles no signals.
    """

    def __init__(
        self,
        console: Console,
        *,
        save_every_multiple_of: int = 1,
        first: Sequence[Callable[[], str]] = (),
        signals: StopSignals | None = None,
    ) -> None:
        self.console = console
        self._first, self._signals = first, signals
        self._multiple = save_every_multiple_of
        self._started = time.monotonic()
        self._first_step = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._first_eval: Mapping[str, float] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._started = time.monotonic()
        self._first_step = state.global_step
        for line in self._first:
            say(self.console, line())
        if self._signals is not None:
            self._signals.after_this_step(self.console.print)
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=self.console,
            )
            self._task = self._progress.add_task(
                "the first step", total=state.max_steps, completed=state.global_step
            )
            self._progress.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        if not logs or "seconds/update" not in logs:  # not a line about steps
            return
        done = state.global_step - self._first_step
        seconds_a_step = (time.monotonic() - self._started) / max(1, done)
        left = seconds_a_step * (state.max_steps - state.global_step)
        seconds = logs.get("seconds/collect", 0.0) + logs["seconds/update"]
        if "reward" in logs:
            words = (
                f"reward {_number(logs['reward'])}"
                f"  {_rewards(logs)}"
                f"  failures {_share(logs['format_failures'])}"
                f"  groups {logs['groups_kept']:.0f}/{logs['groups_tried']:.0f}"
            )
        else:  # no new rollouts: fine-tuning, or a further pass over the same ones
            words = f"loss {_number(logs['loss'])}"
        if "tokens" in logs:
            words += f"  {logs['tokens'] / max(seconds, 1e-9):,.0f} tokens/s"
        words += f"  {clock(left)} left"
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, description=words)
        else:
            say(self.console, f"step {state.global_step}/{state.max_steps}  {words}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        if self._signals is not None and (
            control.should_save or args.save_strategy == SaveStrategy.BEST
        ):
            self._signals.hold()  # a checkpoint is saved next
        if not metrics or "eval_accuracy" not in metrics:
            return
        words = (
            f"validation after step {state.global_step}: solved {_share(metrics['eval_accuracy'])}"
            f" (short ones {_share(metrics['eval_accuracy_short'])})"
        )
        if "eval_loss" in metrics:
            words += f"  loss {_number(metrics['eval_loss'])}"
        else:
            words += (
                f"  similarity {_number(metrics.get('eval_rewards/similarity', math.nan))}"
                f"  exact steps {_share(metrics.get('eval_exact', math.nan))}"
                f"  failures {_share(metrics.get('eval_format_failures', math.nan))}"
            )
        say(self.console, words)
        if self._first_eval is None:
            self._first_eval = dict(metrics)
            return
        key = "eval_rewards/similarity"
        rise = metrics.get(key, math.nan) - self._first_eval.get(key, math.nan)
        fall = self._first_eval["eval_accuracy"] - metrics["eval_accuracy"]
        if rise > _RISE and fall > _FALL:
            self.console.print(
                f"warning: since the first validation similarity rose by {rise:.3f} while "
                f"{fall:.1%} fewer problems are solved: the policy learns what a step looks like, "
                "not what is right. Look at the records, lower the learning rate, or choose "
                "another reward",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._signals is None:
            return
        self._signals.release()
        if self._signals.asked is not None and state.global_step % self._multiple == 0:
            control.should_save = True
            control.should_log = True  # a checkpoint lacks figures that are not logged
            control.should_training_stop = True
            # Otherwise it would be saved only if it is the best, or be deleted at the end.
            if args.save_strategy == SaveStrategy.BEST:
                args.save_strategy = SaveStrategy.STEPS
            if args.save_total_limit == 1:
                args.save_total_limit = 2
        if control.should_save and not control.should_evaluate:
            self._signals.hold()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._signals is not None:
            self._signals.release()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the progress bar; safe to call twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _rewards(logs: Mapping[str, float]) -> str:
    """Returns the mean of each reward, similarity first."""
    start = "rewards/"
    names = [name.removeprefix(start) for name in logs if name.startswith(start)]
    names.sort(key=lambda name: name != "similarity")
    return "  ".join(f"{name} {_number(logs[start + name])}" for name in names)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
