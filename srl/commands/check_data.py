"""Checks trajectories without a model, for the command `check-data`.

It counts the rows kept and the rows dropped by reason. It tests that every expert step scores
exactly 1.0 against itself, and that the final answers of solutions not judged right verify against
themselves. It measures each reward on this data: the spread over the expert's own steps, and the
floors. Floors are what cheap steps earn, such as a step of another problem, a copy of the previous
step, or the right step with one step too many. A reward can only be interpreted beside its floors
(paper section 3.2 gives the reward, not the floors).
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from environments import ENVIRONMENTS
from environments.answers import stated_answer
from environments.asking import verdict_on
from environments.types import LoadReport, Trajectory
from rewards import RewardSum, StepContext
from rewards.similarity import similarity
from srl.commands.score import Values, built_ins_and, make_rewards
from srl.console import visible
from srl.data.prompts import why_uncopyable
from srl.data.rows import uncopyable
from srl.data.steps import StepExample
from srl.errors import UsageError


@dataclass(frozen=True)
class Spread:
    """The minimum, median and maximum of some counts."""

    low: int
    median: float
    high: int


TRICKS = (
    "one step more",
    "all the rest",
    "step before",
    "problem",
    "other step",
    "1 + 1 = 2",
    "look-alikes",
)
"""Cheap ways to write a step, in this order: the right step with the next one; the right step with
all that follow; the previous step again; the problem's text; a step of another problem; a true but
irrelevant claim; the right step with letters and digits from other alphabets."""

# The most steps in "all the rest": without a limit, a long solution would take hours.
_REST = 20

# Cyrillic and full-width characters that look like these.
_LOOK_ALIKE = str.maketrans("aceopxy0123456789", "асеорху０１２３４５６７８９")


@dataclass(frozen=True)
class MeasuredReward:
    """One reward, measured on data.

    Attributes:
        own: its values for the expert's own steps.
        tricks: a name in `TRICKS` -> its values for that trick; there are no steps of another
            problem if the data has only one.
        failed: how many of the expert's own steps it failed on.
        failed_on_tricks: how many of the cheap steps it failed on.
    """

    own: Values
    tricks: dict[str, Values]
    failed: int
    failed_on_tricks: int


@dataclass(frozen=True)
class DataCheck:
    """The results of the check.

    Attributes:
        rows: rows read.
        kept: rows that became trajectories.
        dropped: reason -> rows dropped for it.
        notes: what the loader changed in rows that it kept -> rows.
        trajectories: trajectories checked.
        problems: distinct problems of the trajectories.
        steps: expert steps.
        steps_per_trajectory: steps of a trajectory, as a spread.
        step_chars: characters of a step, as a spread.
        with_answer: trajectories that state a final answer.
        with_thoughts: trajectories with thoughts before steps.
        uncopyable: why a copy of a step breaks the format, so that it is no training row -> steps.
        repeated_steps: steps equal to the one before them (copying would score 1.0).
        self_score_min: the smallest score of an expert step against itself; must be 1.0.
        self_score_failures: steps that do not score exactly 1.0 against themselves.
        judged_right: expert solutions that their environment judges as right.
        unstated: solutions in words that have an answer and do not end with a step that states one.
        unverified: final answers that do not verify against themselves.
        pairs: number of places at which the rewards were measured.
        rewards: name -> the reward's values there.
        read_as: how sources in other tools' formats were read.
        example: the first trajectory.
    """

    rows: int
    kept: int
    dropped: Counter[str]
    notes: Counter[str] = field(repr=False)
    trajectories: int
    problems: int
    steps: int
    steps_per_trajectory: Spread
    step_chars: Spread
    with_answer: int
    with_thoughts: int
    uncopyable: Counter[str]
    repeated_steps: int
    self_score_min: float
    self_score_failures: int
    judged_right: int
    unstated: int
    unverified: list[str]
    pairs: int
    rewards: dict[str, MeasuredReward]
    read_as: list[str]
    example: Trajectory


def check_data(
    trajectories: Sequence[Trajectory],
    report: LoadReport,
    *,
    rewards: Mapping[str, object] | None = None,
    seed: int = 0,
    max_pairs: int = 500,
    tell: Callable[[str], None] = lambda _: None,
) -> DataCheck:
    """Checks every step against itself, and measures the rewards at up to `max_pairs` places.

    A place is a pair of neighbouring steps. Places are drawn without repeats. Equal seeds give
    equal floors.

    Args:
        trajectories: the trajectories to check.
        report: how many of their rows were kept and dropped.
        rewards: rewards to measure beside the built-in ones.
        seed: of the draw.
        max_pairs: the most places.
        tell: called with a line about the progress.

    Raises:
        UsageError: there are no trajectories, `max_pairs` is not positive, or a reward is unknown.
    """
    if not trajectories:
        raise UsageError("There are no trajectories to check; see the reasons in the load report.")
    if max_pairs < 1:
        raise UsageError(f"max_pairs is {max_pairs}; it must be 1 or more.")
    self_scores: list[float] = []
    for number, trajectory in enumerate(trajectories):
        self_scores += [similarity(step, step) for step in trajectory.texts]
        tell(f"{number + 1:,} of {len(trajectories):,} solutions")
    places = [
        (row, index)
        for row, trajectory in enumerate(trajectories)
        for index in range(1, len(trajectory.steps))
    ]
    rng = random.Random(seed)
    drawn = rng.sample(places, min(max_pairs, len(places)))
    notes: Counter[str] = Counter()
    for trajectory in trajectories:
        noted = trajectory.metadata.get("notes")
        if isinstance(noted, tuple):
            notes.update(str(note) for note in noted)
    summed = make_rewards(built_ins_and(rewards or {}))
    others = [trajectory for trajectory in trajectories if not _is_right(trajectory)]
    return DataCheck(
        rows=report.rows,
        kept=report.kept,
        dropped=Counter(report.dropped),
        notes=notes,
        trajectories=len(trajectories),
        problems=len({trajectory.problem_id for trajectory in trajectories}),
        steps=len(self_scores),
        steps_per_trajectory=_spread(len(trajectory.steps) for trajectory in trajectories),
        step_chars=_spread(len(step) for trajectory in trajectories for step in trajectory.texts),
        with_answer=sum(trajectory.answer is not None for trajectory in trajectories),
        with_thoughts=sum(
            any(step.thought for step in trajectory.steps) for trajectory in trajectories
        ),
        uncopyable=Counter(
            uncopyable(failure)
            for trajectory in trajectories
            for step in trajectory.texts
            if (failure := why_uncopyable(step, think=True)) is not None
        ),
        repeated_steps=sum(
            trajectories[row].steps[index].text == trajectories[row].steps[index - 1].text
            for row, index in places
        ),
        self_score_min=min(self_scores, default=1.0),
        self_score_failures=sum(score != 1.0 for score in self_scores),
        judged_right=len(trajectories) - len(others),
        unstated=sum(map(_is_unstated, others)),
        unverified=_unverified(others),
        pairs=len(drawn),
        rewards=_measure(trajectories, drawn, rng, summed, tell),
        read_as=list(report.read_as),
        example=trajectories[0],
    )


def _measure(
    trajectories: Sequence[Trajectory],
    drawn: Sequence[tuple[int, int]],
    rng: random.Random,
    summed: RewardSum,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, MeasuredReward]:
    """Measures every reward at the drawn places, for the expert's own steps and the tricks."""
    own: list[StepContext] = []
    tricks: dict[str, list[StepContext]] = {name: [] for name in TRICKS}
    others = _unrelated(trajectories, drawn, rng)
    for number, (row, index) in enumerate(drawn):
        trajectory = trajectories[row]
        here, before = StepExample(trajectory, index), StepExample(trajectory, index - 1)
        expert, last = trajectory.texts[index], trajectory.texts[index - 1]
        own.append(here.context(expert, ""))
        tricks["one step more"].append(before.context(f"{last}\n{expert}", ""))
        tricks["all the rest"].append(
            before.context("\n".join(trajectory.texts[index - 1 : index - 1 + _REST]), "")
        )
        tricks["step before"].append(here.context(last, ""))
        tricks["problem"].append(here.context(trajectory.problem, ""))
        tricks["1 + 1 = 2"].append(here.context("1 + 1 = 2", ""))
        tricks["look-alikes"].append(here.context(expert.translate(_LOOK_ALIKE), ""))
        if others:
            tricks["other step"].append(here.context(others[number], ""))
    own_scores = summed.score(own)
    trick_scores = {}
    for trick, steps in tricks.items():
        tell(f"what rewards pay for {trick!r}")
        trick_scores[trick] = summed.score(steps)
    return {
        name: MeasuredReward(
            Values.of(score.rewards[name] for score in own_scores),
            {
                trick: Values.of(score.rewards[name] for score in scores)
                for trick, scores in trick_scores.items()
            },
            sum(name in score.failures for score in own_scores),
            sum(name in score.failures for scores in trick_scores.values() for score in scores),
        )
        for name in summed.names
    }


def _is_unstated(trajectory: Trajectory) -> bool:
    """Returns whether a solution of `gsm8k` or `files` has an answer that its end does not state.

    These sources have the option `answer_step`.
    """
    return (
        trajectory.environment in (ENVIRONMENTS["gsm8k"], ENVIRONMENTS["files"])
        and trajectory.answer is not None
        and stated_answer(trajectory.steps[-1].text, trajectory.problem) is None
    )


def _is_right(trajectory: Trajectory) -> bool:
    """Returns whether the environment judges the expert's own solution as right."""
    return bool(verdict_on(trajectory, trajectory.steps).correct)


def _unverified(trajectories: Sequence[Trajectory]) -> list[str]:
    """Returns final answers that the reward `answer` would refuse although they are right.

    The caller leaves out solutions that are judged right; their answers need no check.
    """
    answers = sorted(
        {trajectory.answer for trajectory in trajectories if trajectory.answer is not None}
    )
    stated = [
        StepContext("", (), f"\\boxed{{{answer}}}", "", answer, 0, 1, answer=answer)
        for answer in answers
    ]
    verifier = RewardSum({"answer": 1.0})
    scores = verifier.score(stated)
    verifier.close()
    return [answer for answer, score in zip(answers, scores, strict=True) if score.reward != 1.0]


def _unrelated(
    trajectories: Sequence[Trajectory], drawn: Sequence[tuple[int, int]], rng: random.Random
) -> list[str]:
    """Returns a random step of another problem per place; nothing if there is one problem."""
    ids = [trajectory.problem_id for trajectory in trajectories]
    if len(set(ids)) < 2:
        return []
    steps: list[str] = []
    for row, _ in drawn:
        other = rng.randrange(len(trajectories))
        while ids[other] == ids[row] or not trajectories[other].steps:
            other = rng.randrange(len(trajectories))
        steps.append(rng.choice(trajectories[other].texts))
    return steps


def left_out(trajectories: Sequence[Trajectory], model: str, max_completion_length: int) -> str:
    """Returns a line on the rows that a training of this policy would leave out, and why.

    Args:
        trajectories: the expert solutions.
        model: a folder or a hub name; only its tokenizer and its config are read.
        max_completion_length: the longest step in tokens.

    Raises:
        UsageError: the model cannot be read, the length is not positive, or no row fits.
    """
    from srl.config.parts import RowSettings
    from srl.data.prompts import PromptFormat
    from srl.data.rows import Rows, dropped
    from srl.models.loading import read_tokenizer

    args = RowSettings(targets="all", max_completion_length=max_completion_length)
    tokenizer, limit = read_tokenizer(model)
    rows = Rows.of(
        trajectories, PromptFormat(tokenizer, system_prompt=args.system_prompt), args, limit
    )
    context = "no limit" if limit is None else f"{limit:,} tokens"
    return (
        f"for {model} (context: {context}, max_completion_length {max_completion_length:,}): "
        f"{len(rows.examples):,} rows{dropped(rows.dropped)}"
    )


def _spread(counts: Iterable[int]) -> Spread:
    values = list(counts) or [0]
    return Spread(min(values), statistics.median(values), max(values))


def render(check: DataCheck) -> str:
    """Returns the check as text: counts in two columns, the first solution, tables of rewards."""
    lines: list[tuple[str, str]] = [
        ("rows read", f"{check.rows:,}"),
        ("rows kept", f"{check.kept:,}"),
        ("rows dropped", f"{check.dropped.total():,}"),
        *((f"  {reason}", f"{count:,}") for reason, count in check.dropped.most_common()),
        *((f"note: {note}", f"{count:,}") for note, count in check.notes.most_common()),
        ("trajectories", f"{check.trajectories:,}"),
        ("different problems", f"{check.problems:,}"),
        ("with a final answer", f"{check.with_answer:,}"),
        ("with thoughts", f"{check.with_thoughts:,}"),
        ("expert steps", f"{check.steps:,}"),
        ("steps per trajectory", _render_spread(check.steps_per_trajectory)),
        ("characters per step", _render_spread(check.step_chars)),
        *((f"no training row: {why}", f"{n:,}") for why, n in check.uncopyable.most_common()),
        ("steps that repeat the one before", f"{check.repeated_steps:,}"),
        ("expert step against itself", _render_self_score(check)),
        ("expert solutions judged right", _render_judged(check)),
        ("answers that verify", _render_unverified(check)),
    ]
    width = max(len(name) for name, _ in lines)
    aligned_lines = [f"{name:<{width}}  {value}".rstrip() for name, value in lines]
    return "\n".join(
        [
            *check.read_as,
            *aligned_lines,
            "",
            *_render_example(check.example),
            "",
            *_render_rewards(check),
        ]
    )


# How many steps of the first solution are shown, and how many characters of a text.
_SHOWN_STEPS, _SHOWN_CHARS = 6, 200


def _render_example(trajectory: Trajectory) -> list[str]:
    """Returns lines that show the first solution as it was read."""
    lines = ["the first solution:", f"  problem  {_short(trajectory.problem)}"]
    for number, step in enumerate(trajectory.steps[:_SHOWN_STEPS], 1):
        lines += [f"  thought  {_short(step.thought)}"] * bool(step.thought)
        lines.append(f"  step {number}   {_short(step.text)}")
        lines += [f"  world    {_short(step.observation)}"] * bool(step.observation)
    if (more := len(trajectory.steps) - _SHOWN_STEPS) > 0:
        lines.append(f"  and {more:,} more steps")
    return [
        *lines,
        f"  answer   {'none' if trajectory.answer is None else _short(trajectory.answer)}",
    ]


def _short(text: str) -> str:
    line = visible(" ".join(text.split()))
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 1]}…"


def _render_judged(check: DataCheck) -> str:
    if not check.unstated:
        return f"{check.judged_right:,}"
    return (
        f"{check.judged_right:,}; {check.unstated:,} others do not end with a step that states the "
        "answer (--answer_step true adds one to complete solutions)"
    )


def _render_unverified(check: DataCheck) -> str:
    if not check.unverified:
        return "all of them, against themselves"
    shown = ", ".join(repr(answer) for answer in check.unverified[:5])
    return f"all but {len(check.unverified):,}: {shown}"


def _render_rewards(check: DataCheck) -> list[str]:
    """Returns two tables with a line per reward: the expert's own steps, and the tricks."""
    names = max(len(name) for name in (*check.rewards, "reward"))
    lines = [
        f"rewards of the expert's own steps at {check.pairs:,} places:",
        f"{'reward':<{names}}  {'n':>5}  {'mean':>6}  {'5 %':>6}  {'median':>6}  {'95 %':>6}",
    ]
    for name, reward in check.rewards.items():
        own = reward.own
        figures = "  ".join(f"{_figure(v):>6}" for v in (own.mean, own.low, own.median, own.high))
        failed = f"  FAILED on {reward.failed:,}" if reward.failed else ""
        lines.append(f"{name:<{names}}  {own.n:>5}  {figures}{failed}")
    lines += [
        "",
        "what they pay for a cheap step in its place (mean):",
        "  ".join([f"{'reward':<{names}}", *TRICKS]),
    ]
    for name, reward in check.rewards.items():
        paid = [f"{_figure(reward.tricks[trick].mean):>{len(trick)}}" for trick in TRICKS]
        failed = f"FAILED on {reward.failed_on_tricks:,}" if reward.failed_on_tricks else ""
        lines.append("  ".join([f"{name:<{names}}", *paid, failed]).rstrip())
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _render_spread(spread: Spread) -> str:
    return f"{spread.low:,} to {spread.high:,}, median {spread.median:g}"


def _render_self_score(check: DataCheck) -> str:
    if check.self_score_failures == 0:
        return "exactly 1.0 for every step"
    return (
        f"FAILS for {check.self_score_failures:,} steps, lowest {check.self_score_min:.4f}: "
        "they can never be fully rewarded"
    )
