"""Runs `srl play`: the user takes the policy's place.

Problems of an experiment's data are shown one step at a time, with the policy's context. The
experiment's rewards score the typed step, and it is shown beside the expert's step. The expert's
step then joins the context. This is the quickest way to see what a reward pays for, and how it can
be exploited.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from rich.console import Console

from environments.types import LoadReport
from srl.commands.score import show
from srl.config.experiment import Experiment
from srl.console import say_titled
from srl.data.steps import StepExample, build_examples
from srl.data.stream import PromptStream
from srl.errors import UsageError
from srl.rollout.rollouts import try_rewards

HELP = (
    "Type the next step and press Enter; :skip or an empty line shows the expert's, :next another "
    "problem, :quit ends."
)


def play(experiment: Experiment, answers: TextIO, console: Console) -> None:
    """Plays until `:quit` or the end of the input, then prints the mean reward.

    A line that ends in a backslash continues in the next line.

    Raises:
        UsageError, DataError: the rewards or the data cannot be used.
    """
    rewards = experiment.sum_rewards()
    examples = build_examples(
        experiment.load_trajectories(LoadReport()),
        targets=experiment.args.targets,
        step_title=experiment.args.step_title,
    )
    if not examples:
        raise UsageError("the data has no step to play: each solution has one step only")
    try_rewards(rewards, examples[0])
    earned: list[float] = []
    console.print(HELP, highlight=False)
    lines = _typed(answers, console)
    skip_problem = False
    for example, is_new in _rows(examples, experiment.args.seed):
        if skip_problem and not is_new:
            continue
        skip_problem = False
        _show_context(example, is_new, console)
        typed = next(lines, ":quit")
        if typed == ":quit":
            break
        if typed == ":next":
            skip_problem = True
        elif typed in (":skip", ""):
            say_titled(console, "expert", example.expert_step)
        else:
            step = example.context(typed, thought="")
            score = rewards.score([step])[0]
            earned.append(score.reward)
            show(step, score, rewards, console)
    mean = f", mean reward {sum(earned) / len(earned):.3f}" if earned else ""
    console.print(f"{len(earned)} steps played{mean}", highlight=False)


def _rows(examples: list[StepExample], seed: int) -> Iterator[tuple[StepExample, bool]]:
    """Yields steps, problem by problem and without end, and whether each begins its problem."""
    by_problem: dict[int, list[StepExample]] = {}
    for example in examples:
        by_problem.setdefault(id(example.trajectory), []).append(example)
    problems = list(by_problem.values())
    stream = PromptStream(len(problems), seed)
    while True:
        for place, example in enumerate(problems[stream.take(1)[0]]):
            yield example, place == 0


def _show_context(example: StepExample, is_new: bool, console: Console) -> None:
    if is_new:
        console.rule(style="dim")
        say_titled(console, "problem", example.problem)
    # Within a problem, only the step that was added to the context is shown.
    before = example.previous if is_new else example.previous[-1:]
    for number, step in enumerate(before, start=example.step_index - len(before) + 1):
        say_titled(console, f"step {number}", step.text)
        if step.observation:
            say_titled(console, "observed", step.observation)
    if example.title is not None:
        say_titled(console, "title", example.title)


def _typed(answers: TextIO, console: Console) -> Iterator[str]:
    """Yields the steps that are typed."""
    while True:
        console.print("step> ", end="", style="bold")
        text = answers.readline()
        if not text:
            return
        while text.endswith("\\\n"):
            text = text[:-2] + "\n" + answers.readline()
        yield text.strip()
