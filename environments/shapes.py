"""Reads rows in the shapes that other tools write: chat messages, prompts with completions, steps.

The columns of a file's first row decide the shape. Rows with `problem` and `solution` or `steps`
have the shape of this project (`environments/files.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from environments.chats import chat, question_of
from environments.gsm8k import cleaned
from environments.pairs import ANSWERS, pair_of
from environments.prompt_chains import chains, without_placeholders
from environments.reading import (
    NO_PROBLEM,
    ExpertRow,
    Row,
    UnusableRowError,
    text_of,
)
from environments.step_labels import SHEPHERD_MARK, prm800k, process_bench, shepherd, stepwise
from environments.types import Step

NO_EXPERT = "no solution, only a final answer"
LONE_STEP = "a single step that continues no other row"

# Columns by what they hold; the first one that a row has wins.
_PROBLEM = ("problem", "question", "query")
_TARGET = ("target_step", "teacher_step", "expert_step", "expert_action", "next_step")
# Columns of a row of one step that say which step it is.
_PLACE = ("previous_steps", "prompt", "k", "step_idx", "step_index", "step_id", "num_steps")


class Shape(NamedTuple):
    """One way to write solutions down.

    Attributes:
        name: what people call it.
        reading: how its columns are read, in a few words.
        columns: the columns that `read` uses.
        answers: the columns that may hold the final answer; the first one with a value wins.
        read: turns a row into the solution in it; raises UnusableRowError.
        gather: turns rows of one step each into rows of whole solutions; None if rows are whole.
    """

    name: str
    reading: str
    columns: Sequence[str]
    read: Callable[[Row], ExpertRow]
    gather: Callable[[Iterable[Row]], Iterator[Row]] | None = None
    answers: Sequence[str] = ANSWERS


def shape_of(row: Row) -> Shape | None:
    """Returns the shape of a file's first row; None if it has none of the shapes here."""
    has = row.keys()
    target = next((column for column in _TARGET if column in has), None)
    problem = next((column for column in _PROBLEM if column in has), None)
    for fits, shape in _LABELLED:
        if fits(row):
            return shape
    if problem == "problem" and "solution" in has:
        return None
    if target is not None and problem is not None and "steps" in has:
        return _repeated(problem, target)
    if target is not None and problem is not None and "previous_steps" in has:
        return _gathered(problem, target)
    if problem == "problem" and "steps" in has:
        return None
    if target is not None and "prompt" in has:
        return _chained(target)
    for needed, shape in _FIXED:
        if needed <= has:
            return shape
    if (pair := pair_of(row)) is None:
        return None
    name = f"{pair.problem} and {pair.solution}"
    return Shape(name, pair.reading, pair.columns, pair.read)


# ---- verl ------------------------------------------------------------------------------------


def _verl(row: Row) -> ExpertRow:
    """Reads verl's rows, whose solution is in `extra_info` if there is one."""
    extra, judged = row.get("extra_info"), row.get("reward_model")
    extra = extra if isinstance(extra, Mapping) else {}
    asked = extra.get("question")
    problem = asked if isinstance(asked, str) and asked.strip() else question_of(row, "prompt")
    truth = judged.get("ground_truth") if isinstance(judged, Mapping) else None
    answer = str(truth).strip() if isinstance(truth, str | int | float) else None
    for column in ("solution", "answer", "response"):
        text = extra.get(column)
        if isinstance(text, str) and text.strip() and text.strip() != answer:
            return ExpertRow(problem, (Step(cleaned(text)),), whole=True, answer=answer)
    raise UnusableRowError(NO_EXPERT)


_LABELLED: list[tuple[Callable[[Row], bool], Shape]] = [
    (
        lambda row: {"prompt", "completions", "labels"} <= row.keys(),
        Shape(
            "stepwise supervision",
            "the problem is `prompt`, the steps are `completions` up to the first wrong one",
            ["prompt", "completions", "labels"],
            stepwise,
        ),
    ),
    (
        lambda row: (
            {"problem", "steps", "label"} <= row.keys()
            and bool(row.keys() & {"final_answer_correct", "generator"})
        ),
        Shape(
            "ProcessBench",
            "the problem is `problem`, the steps are `steps` up to the first wrong one",
            ["problem", "steps", "label", "final_answer_correct"],
            process_bench,
        ),
    ),
    (
        lambda row: (
            isinstance(row.get("question"), Mapping) and isinstance(row.get("label"), Mapping)
        ),
        Shape(
            "PRM800K",
            "the problem is `question.problem`, the steps are those chosen in `label.steps` up to "
            "the first wrong one",
            ["question", "label"],
            prm800k,
            answers=(),
        ),
    ),
    (
        lambda row: "label" in row and SHEPHERD_MARK in str(row.get("input")),
        Shape(
            "Math-Shepherd",
            f"`input` is the problem with its steps, each before {SHEPHERD_MARK}, up to the first "
            "wrong one",
            ["input", "label"],
            shepherd,
        ),
    ),
]

_FIXED: list[tuple[set[str], Shape]] = [
    (
        {"prompt", "reward_model"},
        Shape(
            "verl",
            "the problem is `prompt`, the solution is in `extra_info`, the answer is "
            "`reward_model.ground_truth`",
            ["prompt", "reward_model", "extra_info"],
            _verl,
        ),
    ),
    *(
        (
            {column},
            Shape(
                f"chat messages in `{column}`",
                "the first question is the problem, what the assistant writes is the solution; of "
                "several turns each is a step",
                [column],
                chat(column),
            ),
        )
        for column in ("messages", "conversations", "conversation")
    ),
]


# ---- a step a row --------------------------------------------------------------------------------

_NAME = "a step a row"
_READ = ["problem", "steps"]
# In place of a row that holds no step, so that it is counted.
_NOTHING: Row = {"problem": "", "steps": []}


def _listed(row: Row) -> ExpertRow:
    """Reads a row that `gather` has put together."""
    steps = row.get("steps")
    if not isinstance(steps, list | tuple) or not all(isinstance(step, str) for step in steps):
        raise UnusableRowError("steps is not a list of texts")
    return ExpertRow(text_of(row, "problem", missing=NO_PROBLEM), tuple(map(Step, steps)))


def _chain_row(row: Row) -> ExpertRow:
    """Reads a row that was put together from prompts."""
    if len(cast(list[str], row["steps"])) == 1:
        raise UnusableRowError(LONE_STEP)
    return _listed(row)


def _repeated(problem: str, target: str) -> Shape:
    """Returns the shape of rows of one step each that hold all steps of the solution too."""

    def gather(rows: Iterable[Row]) -> Iterator[Row]:
        seen: set[str] = set()
        for row in rows:
            whole = {name: value for name, value in row.items() if name not in (target, *_PLACE)}
            key = json.dumps(whole, default=str, sort_keys=True)
            if key not in seen:
                seen.add(key)
                yield {**whole, "problem": row.get(problem)}

    return Shape(_NAME, "each solution is taken once, with all of `steps`", _READ, _listed, gather)


def _gathered(problem: str, target: str) -> Shape:
    """Returns the shape of rows with the problem, the steps so far, and the next step."""

    def gather(rows: Iterable[Row]) -> Iterator[Row]:
        known: list[tuple[str, list[str] | str, str, Row]] = []
        for row in rows:
            before, step, text = _previous(row), row.get(target), row.get(problem)
            if before is None or not isinstance(step, str) or not isinstance(text, str):
                yield _NOTHING
            else:
                known.append((text, before, step, row))
        if any(isinstance(before, str) for _, before, _, _ in known):
            yield from chains(
                [
                    ("\n".join([text, before if isinstance(before, str) else "\n".join(before)]),
                     step, _plain(row, problem, target))
                    for text, before, step, row in known
                ]
            )  # fmt: skip
            return
        by_problem: dict[str, dict[tuple[str, ...], Row]] = {}
        for text, before, step, row in known:
            by_problem.setdefault(text, {})[(*before, step)] = row
        for text, solutions in by_problem.items():
            begun = {steps[:-1] for steps in solutions}
            for steps, row in solutions.items():
                if steps not in begun:  # no other row continues it
                    yield {**_plain(row, problem, target), "problem": text, "steps": list(steps)}

    reading = f"rows of one problem are put together by `previous_steps` and `{target}`"
    return Shape(_NAME, reading, _READ, _listed, gather)


def _previous(row: Row) -> list[str] | str | None:
    """Returns the steps so far, a list or one text; None if they are neither."""
    before = row.get("previous_steps")
    if isinstance(before, str):
        try:
            read = json.loads(before)
        except ValueError:
            read = None
        before = read if isinstance(read, list) else before
    if before is None or (isinstance(before, str) and not without_placeholders(before).strip()):
        return []
    if isinstance(before, list | tuple) and all(isinstance(step, str) for step in before):
        return list(before)
    return before if isinstance(before, str) else None


def _chained(target: str) -> Shape:
    """Returns the shape of rows with a prompt and the next step.

    A later prompt contains an earlier prompt and its step.
    """

    def gather(rows: Iterable[Row]) -> Iterator[Row]:
        asked = []
        for row in rows:
            try:
                prompt, step = question_of(row, "prompt"), text_of(row, target, missing="")
            except UnusableRowError:
                yield _NOTHING
            else:
                asked.append((prompt, step, _plain(row, "prompt", target)))
        yield from chains(asked)

    reading = f"a prompt that continues an earlier one and its `{target}` is the next step"
    return Shape(_NAME, reading, _READ, _chain_row, gather)


def _plain(row: Row, *without: str) -> dict[str, object]:
    """Returns the columns of a row that do not say which step it is."""
    left_out = {*without, *_PLACE, "steps"}
    return {name: value for name, value in row.items() if name not in left_out}
