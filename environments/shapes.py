"""Reads rows in the shapes of other tools: chat messages, prompts with completions, steps.

The columns of a file's first row decide its shape. Rows with `problem` and `solution` or `steps`
do not need this module (`environments/files.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import NamedTuple, cast

from environments.reading import (
    NO_PROBLEM,
    NO_SOLUTION,
    NOT_TEXT,
    Row,
    UnusableRowError,
    answer_of,
    text_of,
)
from environments.types import Step

NO_EXPERT = "no solution, only a final answer"
LONE_STEP = "a single step that continues no other row"

# Column names by content; the first name that a row has is used.
_PROBLEM = ("problem", "question", "query")
_ANSWER = ("answer", "final_answer", "expected_answer", "ground_truth")
_SOLUTION = ("solution", "response", "output", "completion")
_TARGET = ("target_step", "teacher_step", "expert_step", "expert_action", "next_step")

_POLICY = ("assistant", "gpt", "bot", "model", "function_call")
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class ExpertRow:
    """An expert's solution as a row holds it.

    Attributes:
        problem: the problem's text.
        steps: its steps; a solution that is to be cut is one step with all of its text.
        whole: whether the solution is to be cut.
        answer: the final answer, where the row states one besides the solution.
        complete: whether the steps go on to the end.
    """

    problem: str
    steps: tuple[Step, ...]
    whole: bool = False
    answer: str | None = None
    complete: bool = True


class Shape(NamedTuple):
    """A format in which files hold solutions.

    Attributes:
        name: the usual name of the format.
        reading: how its columns are read, in a few words.
        columns: the columns that `read` uses.
        read: a row -> the solution in it; raises UnusableRowError.
        gather: rows of one step each -> rows of whole solutions; None if rows are whole already.
    """

    name: str
    reading: str
    columns: Sequence[str]
    read: Callable[[Row], ExpertRow]
    gather: Callable[[Iterable[Row]], Iterator[Row]] | None = None


def shape_of(row: Row) -> Shape | None:
    """Returns the shape of a file's first row, or None if it has none of these shapes."""
    has = row.keys()
    target = next((one for one in _TARGET if one in has), None)
    problem = next((one for one in _PROBLEM if one in has), None)
    if target is not None and problem is not None and "previous_steps" in has:
        return _gathered("a step a row", f"`previous_steps` and `{target}`", problem, target)
    if target is not None and problem is not None and "steps" in has:
        return _repeated(problem, target)
    if target is not None and "prompt" in has:
        return _chained(target)
    if problem == "problem" and has & {"solution", "steps"}:
        return None
    for needed, shape in _FIXED:
        if needed <= has:
            return shape
    solution = next((one for one in _SOLUTION if one in has), None)
    for asked in (problem, "prompt", "instruction"):
        if asked in has and solution is not None:
            return _pair(str(asked), solution)
    return None


def is_gsm8k(row: Row) -> bool:
    """Returns whether a row is one of GSM8K's own, whose solution ends in `#### 18`."""
    answer = row.get("answer")
    return "question" in row and isinstance(answer, str) and "\n#### " in answer


# ---- chats ---------------------------------------------------------------------------------------


class _Turn(NamedTuple):
    role: str
    text: str
    thought: str


def _turns(value: object, column: str) -> list[_Turn]:
    """Reads messages of OpenAI's (`role`, `content`) or ShareGPT's (`from`, `value`) format."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise UnusableRowError(f"{column} is not a list of messages")
    found = []
    for one in value:
        role = one.get("role", one.get("from"))
        if not isinstance(role, str):
            raise UnusableRowError(f"a message of {column} without a role")
        thought = one.get("reasoning_content") or one.get("thinking") or ""
        text = _content(one.get("content", one.get("value")))
        calls = one.get("tool_calls") or ()
        if isinstance(calls, list | tuple):
            text = "\n".join([text] * bool(text) + [_call(call) for call in calls])
        found.append(_Turn(role.lower(), text, thought if isinstance(thought, str) else ""))
    return found


def _content(value: object) -> str:
    """Returns a message's text; a list of parts is joined."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        parts = [one.get("text") if isinstance(one, Mapping) else one for one in value]
        if all(isinstance(one, str) for one in parts):
            return "\n".join(map(str, parts))
    if not isinstance(value, str):
        raise UnusableRowError(f"a message is {NOT_TEXT}")
    return value


def _call(value: object) -> str:
    """Returns a call of a tool as one line of JSON."""
    call = value.get("function", value) if isinstance(value, Mapping) else value
    return json.dumps(call, ensure_ascii=False)


def _conversation(turns: Sequence[_Turn]) -> ExpertRow:
    """Reads a conversation: each turn of the assistant is a step, a single turn a solution to cut.

    The messages before its first turn are the problem. Other messages between two steps are the
    observation of the earlier step.
    """
    spoken = [turn for turn in turns if turn.role not in _SYSTEM]
    first = next((i for i, turn in enumerate(spoken) if turn.role in _POLICY), None)
    if first is None:
        raise UnusableRowError(NO_SOLUTION)
    problem = _joined(spoken[:first])
    if not problem:
        raise UnusableRowError(NO_PROBLEM)
    steps: list[Step] = []
    at = first
    while at < len(spoken):
        end = at + 1
        while end < len(spoken) and spoken[end].role not in _POLICY:
            end += 1
        said = _joined(spoken[at + 1 : end])
        steps.append(Step(spoken[at].text, spoken[at].thought, said if end < len(spoken) else ""))
        at = end
    return ExpertRow(problem, tuple(steps), whole=len(steps) == 1)


def _joined(turns: Sequence[_Turn]) -> str:
    return "\n\n".join(turn.text for turn in turns if turn.text.strip())


def _chat(column: str) -> Callable[[Row], ExpertRow]:
    def read(row: Row) -> ExpertRow:
        found = _conversation(_turns(row.get(column), column))
        return _answered(found, row)

    return read


def _asked(row: Row, column: str) -> str:
    """Returns a prompt's text; of messages, the last one of the user."""
    value = row.get(column)
    if isinstance(value, str) or value is None:
        return text_of(row, column, missing=NO_PROBLEM)
    said = [turn.text for turn in _turns(value, column) if turn.role not in (*_POLICY, *_SYSTEM)]
    if not said or not said[-1].strip():
        raise UnusableRowError(NO_PROBLEM)
    return said[-1]


def _answered(row: ExpertRow, columns: Row) -> ExpertRow:
    """Returns the row with the final answer from a column of its own, if there is one."""
    column = next((one for one in _ANSWER if columns.get(one) is not None), None)
    if column is None:
        return row
    return replace(row, answer=answer_of(columns, column))


# ---- prompts and completions ---------------------------------------------------------------------


def _pair(asked: str, solution: str) -> Shape:
    """Returns the shape of a problem in one column and its solution in another.

    Either column may hold messages.
    """

    def read(row: Row) -> ExpertRow:
        prompt, given = row.get(asked), row.get(solution)
        if isinstance(given, list | tuple):  # TRL's conversational form
            before = _turns(prompt, asked) if not isinstance(prompt, str) else []
            asking = before or [_Turn("user", text_of(row, asked, missing=NO_PROBLEM), "")]
            return _answered(_conversation([*asking, *_turns(given, solution)]), row)
        problem = _asked(row, asked)
        if asked == "instruction" and str(row.get("input") or "").strip():
            problem = f"{problem}\n{row['input']}"
        text = text_of(row, solution, missing=NO_SOLUTION)
        own = _earlier(row.get("history"))
        if own:  # LLaMA-Factory's: earlier questions with their answers
            turns = [*own, _Turn("user", problem, ""), _Turn("assistant", text, "")]
            return _answered(_conversation(turns), row)
        return _answered(ExpertRow(problem, (Step(text),), whole=True), row)

    more = (" and `input`", ["input", "history"]) if asked == "instruction" else ("", [])
    return Shape(
        f"{asked} and {solution}",
        f"the problem is `{asked}`{more[0]}, the solution `{solution}`",
        [asked, solution, *more[1], *_ANSWER],
        read,
    )


def _earlier(value: object) -> list[_Turn]:
    if not isinstance(value, list | tuple):
        return []
    found = []
    for pair in value:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            found += [_Turn("user", str(pair[0]), ""), _Turn("assistant", str(pair[1]), "")]
    return found


def _stepwise(row: Row) -> ExpertRow:
    """Reads TRL's stepwise supervision: the steps before the first one labelled wrong."""
    problem = _asked(row, "prompt")
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list | tuple) or not all(isinstance(one, str) for one in steps):
        raise UnusableRowError("completions is not a list of texts")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise UnusableRowError("not as many labels as completions")
    good = next((i for i, label in enumerate(labels) if not _is_right(label)), len(labels))
    found = ExpertRow(problem, tuple(map(Step, steps[:good])), complete=good == len(steps))
    return _answered(found, row)


def _is_right(label: object) -> bool:
    """Returns whether a label means right; labels are booleans, or scores from 0 to 1."""
    if not isinstance(label, bool | int | float):
        raise UnusableRowError("a label that is no boolean and no number")
    return label >= 0.5


def _verl(row: Row) -> ExpertRow:
    """Reads verl's rows: the solution, where there is one, is a column of `extra_info`."""
    extra, judged = row.get("extra_info"), row.get("reward_model")
    extra = extra if isinstance(extra, Mapping) else {}
    asked = extra.get("question")
    problem = asked if isinstance(asked, str) and asked.strip() else _asked(row, "prompt")
    truth = judged.get("ground_truth") if isinstance(judged, Mapping) else None
    answer = str(truth).strip() if isinstance(truth, str | int | float) else None
    for column in ("solution", "answer", "response"):
        text = extra.get(column)
        if isinstance(text, str) and text.strip() and text.strip() != answer:
            return ExpertRow(problem, (Step(text),), whole=True, answer=answer)
    raise UnusableRowError(NO_EXPERT)


_FIXED: list[tuple[set[str], Shape]] = [
    (
        {"prompt", "completions", "labels"},
        Shape(
            "stepwise supervision",
            "the problem is `prompt`, the steps are `completions` up to the first wrong one",
            ["prompt", "completions", "labels", *_ANSWER],
            _stepwise,
        ),
    ),
    (
        {"prompt", "reward_model"},
        Shape(
            "verl",
            "the problem is `prompt`, the solution `extra_info.answer`, the answer "
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
                "the first question is the problem, what the assistant writes the solution; of "
                "several turns each is a step",
                [column, *_ANSWER],
                _chat(column),
            ),
        )
        for column in ("messages", "conversations", "conversation")
    ),
]


# ---- a step a row --------------------------------------------------------------------------------


# Replaces a row without a step, so that the row is counted.
_NOTHING: Row = {"problem": "", "steps": []}


def _listed(row: Row) -> ExpertRow:
    """Reads a row that `gather` has put together."""
    steps = cast(list[str], row["steps"])
    return _answered(ExpertRow(str(row["problem"]), tuple(map(Step, steps))), row)


def _gathered(name: str, what: str, problem: str, target: str) -> Shape:
    """Returns the shape of rows with a problem, the steps so far and the next step."""

    def gather(rows: Iterable[Row]) -> Iterator[Row]:
        by_problem: dict[str, dict[tuple[str, ...], Row]] = {}
        for row in rows:
            before, step, text = row.get("previous_steps"), row.get(target), row.get(problem)
            if isinstance(before, str):  # none, or one text with all of them
                before = [before] if before.strip() else []
            steps = (*before, step) if isinstance(before, list | tuple) else (step,)
            if isinstance(text, str) and all(isinstance(one, str) for one in steps):
                by_problem.setdefault(text, {})[cast(tuple[str, ...], steps)] = row
            else:
                yield _NOTHING
        for text, told in by_problem.items():
            begun = {steps[:-1] for steps in told}
            for steps, row in told.items():
                if steps not in begun:  # no row continues these steps
                    yield {**_plain(row, problem, target), "problem": text, "steps": list(steps)}

    reading = f"rows of one problem are put together by {what}"
    return Shape(name, reading, ["problem", "steps", *_ANSWER], _listed, gather)


def _repeated(problem: str, target: str) -> Shape:
    """Returns the shape of rows that each give one step and also hold all steps."""

    def gather(rows: Iterable[Row]) -> Iterator[Row]:
        seen: set[str] = set()
        for row in rows:
            key = json.dumps([row.get(problem), row.get("steps")], default=str)
            if key not in seen:
                seen.add(key)
                steps = row.get("steps")
                plain = _plain(row, problem, target)
                yield {**plain, "problem": row.get(problem), "steps": steps}

    def read(row: Row) -> ExpertRow:
        steps = row.get("steps")
        if not isinstance(steps, list | tuple) or not all(isinstance(one, str) for one in steps):
            raise UnusableRowError("steps is not a list of texts")
        text = text_of(row, "problem", missing=NO_PROBLEM)
        return _answered(ExpertRow(text, tuple(map(Step, steps))), row)

    reading = "each solution is taken once, with all of `steps`"
    return Shape("a step a row", reading, ["problem", "steps", *_ANSWER], read, gather)


def _chained(target: str) -> Shape:
    """Returns the shape of rows with a prompt and the next step.

    A later prompt continues an earlier one.
    """

    def gather(rows: Iterable[Row]) -> Iterator[Row]:
        asked = []
        for row in rows:
            try:
                asked.append((_asked(row, "prompt"), text_of(row, target, missing=""), row))
            except UnusableRowError:
                yield _NOTHING
        tail = _shared_end([prompt for prompt, _, _ in asked])
        told = {
            (_packed(text), _packed(step)): _Told(text, step, row)
            for text, step, row in (
                (prompt[: len(prompt) - tail].rstrip(), step, row) for prompt, step, row in asked
            )
        }
        # Sorted, a prompt comes after all prompts that it begins with, the longest of them last.
        begun: list[tuple[str, str]] = []
        for prompt, step in sorted(told):
            while begun and not prompt.startswith(begun[-1][0]):
                begun.pop()
            before = next((one for one in reversed(begun) if _goes_on(prompt, *one)), None)
            if before is not None:
                told[prompt, step].before = told[before]
                told[before].is_last = False
            begun.append((prompt, step))
        for one in told.values():
            if one.is_last:
                yield {**_plain(one.row, "prompt", target), **one.solution()}

    def read(row: Row) -> ExpertRow:
        if len(cast(list[str], row["steps"])) == 1:
            raise UnusableRowError(LONE_STEP)
        return _listed(row)

    reading = f"a prompt that goes on from an earlier one and its `{target}` is the next step"
    return Shape("a step a row", reading, ["problem", "steps", *_ANSWER], read, gather)


@dataclass
class _Told:
    """A prompt and the step that follows it."""

    prompt: str
    step: str
    row: Row
    before: _Told | None = None
    is_last: bool = True

    def solution(self) -> dict[str, object]:
        """Returns all steps up to this one; the first one's prompt is the problem."""
        line = [self]
        while (before := line[0].before) is not None:
            line.insert(0, before)
        return {"problem": line[0].prompt, "steps": [one.step for one in line]}


def _packed(text: str) -> str:
    return "".join(text.split())


# The most characters that a later prompt may add between an earlier prompt and its step, such as
# the step's number or its title.
_BETWEEN = 24


def _goes_on(prompt: str, earlier: str, step: str) -> bool:
    """Returns whether a prompt is an earlier one and its step, all without white space."""
    between = len(prompt) - len(earlier) - len(step)
    return 0 <= between <= _BETWEEN and prompt.startswith(earlier) and prompt.endswith(step)


def _shared_end(texts: Sequence[str]) -> int:
    """Returns the number of characters that all texts share at their end, in whole lines.

    The number is 0 if all texts are equal.
    """
    if len(set(texts)) < 2:
        return 0
    backwards = sorted(text[::-1] for text in texts)  # what the first and the last share, all share
    shared = takewhile(
        lambda pair: pair[0] == pair[1], zip(backwards[0], backwards[-1], strict=False)
    )
    end = "".join(sign for sign, _ in shared)[::-1]
    cut = end.find("\n")
    return 0 if cut < 0 else len(end) - cut


def _plain(row: Row, *without: str) -> dict[str, object]:
    """Returns a row's other columns."""
    left_out = {*without, "previous_steps", "steps", "prompt", "step_idx", "step_index", "k"}
    return {name: value for name, value in row.items() if name not in left_out}
