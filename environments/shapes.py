"""Reads rows in the shapes that other tools write: chat messages, prompts with completions, steps.

The columns of a file's first row decide the shape. Rows with `problem` and `solution` or `steps`
have the shape of this project (`environments/files.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from environments.gsm8k import cleaned
from environments.prompt_chains import chains, without_placeholders
from environments.reading import NO_PROBLEM, NO_SOLUTION, NOT_TEXT, Row, UnusableRowError, text_of
from environments.types import Step

NO_EXPERT = "no solution, only a final answer"
LONE_STEP = "a single step that continues no other row"
LABELLED_WRONG = "labelled as wrong"
GIVEN_AWAY = "the problem contains the solution"

ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth")
"""Columns that may hold the final answer beside a solution; the first one with a value wins."""

# Columns by what they hold; the first one that a row has wins.
_PROBLEM = ("problem", "question", "query")
_SOLUTION = ("solution", "response", "output", "completion")
_TARGET = ("target_step", "teacher_step", "expert_step", "expert_action", "next_step")
# Columns of a row of one step that say which step it is.
_PLACE = ("previous_steps", "prompt", "k", "step_idx", "step_index", "step_id", "num_steps")

_POLICY = ("assistant", "gpt", "bot", "model", "function_call")
_SYSTEM = ("system", "developer")

# A shorter solution may stand in its problem by chance.
_SHORTEST_COPY = 40


@dataclass(frozen=True)
class ExpertRow:
    """An expert's solution as a row holds it.

    Attributes:
        problem: the problem's text.
        steps: the steps; a solution that is to be cut is one step with all of its text.
        whole: whether the solution is to be cut.
        answer: the final answer, where the shape has a place of its own for it.
        complete: whether the steps reach the end of the solution.
    """

    problem: str
    steps: tuple[Step, ...]
    whole: bool = False
    answer: str | None = None
    complete: bool = True


class Shape(NamedTuple):
    """One way to write solutions down.

    Attributes:
        name: what people call it.
        reading: how its columns are read, in a few words.
        columns: the columns that `read` uses.
        read: turns a row into the solution in it; raises UnusableRowError.
        gather: turns rows of one step each into rows of whole solutions; None if rows are whole.
    """

    name: str
    reading: str
    columns: Sequence[str]
    read: Callable[[Row], ExpertRow]
    gather: Callable[[Iterable[Row]], Iterator[Row]] | None = None


def shape_of(row: Row) -> Shape | None:
    """Returns the shape of a file's first row; None if it has none of the shapes here."""
    has = row.keys()
    target = next((one for one in _TARGET if one in has), None)
    problem = next((one for one in _PROBLEM if one in has), None)
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
    solution = next((one for one in _SOLUTION if one in has), None)
    for asked in (problem, "instruction", "prompt"):
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
    thought: str = ""


def _turns(value: object, column: str) -> list[_Turn]:
    """Reads messages in OpenAI's form (`role`, `content`) or ShareGPT's (`from`, `value`)."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise UnusableRowError(f"{column} is not a list of messages")
    turns = []
    for message in value:
        role = message.get("role") or message.get("from")
        if not isinstance(role, str):
            raise UnusableRowError(f"a message of {column} without a role")
        content = message.get("content")
        text = _content(message.get("value") if content is None else content)
        lines = [text] * bool(text) + [_call(one) for one in _calls(message)]
        turns.append(_Turn(role.lower(), "\n".join(lines), _thought(message)))
    return turns


def _thought(message: Mapping[str, object]) -> str:
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(thought := message.get(key), str) and thought.strip():
            return thought
    return ""


def _content(value: object) -> str:
    """Returns a message's text; one in parts is joined."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        parts = [one.get("text") if isinstance(one, Mapping) else one for one in value]
        if all(isinstance(one, str) for one in parts):
            return "\n".join(map(str, parts))
    if not isinstance(value, str):
        raise UnusableRowError(f"a message is {NOT_TEXT}")
    return value


def _calls(message: Mapping[str, object]) -> list[object]:
    """Returns the tool calls of a message, in any of the forms that are in use."""
    calls = message.get("tool_calls") or message.get("function_call")
    if isinstance(calls, str):
        try:
            calls = json.loads(calls)
        except ValueError:
            return [calls]
    if not calls:
        return []
    return list(calls) if isinstance(calls, list | tuple) else [calls]


def _call(value: object) -> str:
    """Returns a tool call as one line of JSON, without keys that are null.

    Tables give all calls of a column the same keys, and null to those that a call does not have.
    """
    call = value.get("function") or value if isinstance(value, Mapping) else value
    return json.dumps(_without_nulls(call), ensure_ascii=False, default=str)


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return value


def _conversation(turns: Sequence[_Turn]) -> ExpertRow:
    """Returns the solution in a conversation.

    What stands before the assistant's first turn is the problem. Each turn of the assistant is a
    step, and what the user or a tool says next is its observation. A single turn is a solution
    that is to be cut.
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
        reply = _joined(spoken[at + 1 : end])
        steps.append(Step(spoken[at].text, spoken[at].thought, reply if end < len(spoken) else ""))
        at = end
    return ExpertRow(problem, tuple(steps), whole=len(steps) == 1)


def _joined(turns: Sequence[_Turn]) -> str:
    return "\n\n".join(turn.text for turn in turns if turn.text.strip())


def _chat(column: str) -> Callable[[Row], ExpertRow]:
    return lambda row: _conversation(_turns(row.get(column), column))


def _asked(row: Row, column: str) -> str:
    """Returns a prompt's text; of messages all that is said, without the system message."""
    value = row.get(column)
    if isinstance(value, str) or value is None:
        return text_of(row, column, missing=NO_PROBLEM)
    prompt = _joined([turn for turn in _turns(value, column) if turn.role not in _SYSTEM])
    if not prompt:
        raise UnusableRowError(NO_PROBLEM)
    return prompt


# ---- prompts and completions ---------------------------------------------------------------------


def _pair(asked: str, solution: str) -> Shape:
    """Returns the shape of a problem in one column and its solution in another.

    Either may be messages.
    """
    beside = ("input", "context") if asked == "instruction" else ()

    def read(row: Row) -> ExpertRow:
        if row.get("label") is False:  # TRL's unpaired preference data
            raise UnusableRowError(LABELLED_WRONG)
        prompt, given = row.get(asked), row.get(solution)
        if isinstance(prompt, list | tuple):
            turns = _turns(prompt, asked)
        else:
            problem = _asked(row, asked)
            more = [str(row[one]) for one in beside if str(row.get(one) or "").strip()]
            turns = [*_earlier(row.get("history")), _Turn("user", "\n".join([problem, *more]))]
        if isinstance(given, list | tuple):
            return _conversation([*turns, *_turns(given, solution)])
        text = text_of(row, solution, missing=NO_SOLUTION)
        found = _conversation([*turns, _Turn("assistant", text)])
        if len(text.strip()) >= _SHORTEST_COPY and text.strip() in found.problem:
            raise UnusableRowError(GIVEN_AWAY)
        return found

    added = " with ".join(["", *(f"`{one}`" for one in beside)][:2])
    return Shape(
        f"{asked} and {solution}",
        f"the problem is `{asked}`{added}, the solution `{solution}`",
        [asked, solution, *beside, "history", *ANSWERS],
        read,
    )


def _earlier(value: object) -> list[_Turn]:
    """Returns LLaMA-Factory's `history`: earlier questions with their answers."""
    if not isinstance(value, list | tuple):
        return []
    turns = []
    for pair in value:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            turns += [_Turn("user", str(pair[0])), _Turn("assistant", str(pair[1]))]
    return turns


def _stepwise(row: Row) -> ExpertRow:
    """Reads TRL's stepwise supervision: the steps before the first one that is labelled wrong."""
    problem = _asked(row, "prompt")
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list | tuple) or not all(isinstance(one, str) for one in steps):
        raise UnusableRowError("completions is not a list of texts")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise UnusableRowError("not as many labels as completions")
    good = next((i for i, label in enumerate(labels) if not _is_right(label)), len(labels))
    return ExpertRow(problem, tuple(map(Step, steps[:good])), complete=good == len(steps))


def _is_right(label: object) -> bool:
    """Returns whether a label, a boolean or a score from 0 to 1, calls a step right."""
    if not isinstance(label, bool | int | float):
        raise UnusableRowError("a label that is no boolean and no number")
    return label >= 0.5


def _verl(row: Row) -> ExpertRow:
    """Reads verl's rows, whose solution is in `extra_info` if there is one."""
    extra, judged = row.get("extra_info"), row.get("reward_model")
    extra = extra if isinstance(extra, Mapping) else {}
    asked = extra.get("question")
    problem = asked if isinstance(asked, str) and asked.strip() else _asked(row, "prompt")
    truth = judged.get("ground_truth") if isinstance(judged, Mapping) else None
    answer = str(truth).strip() if isinstance(truth, str | int | float) else None
    for column in ("solution", "answer", "response"):
        text = extra.get(column)
        if isinstance(text, str) and text.strip() and text.strip() != answer:
            return ExpertRow(problem, (Step(cleaned(text)),), whole=True, answer=answer)
    raise UnusableRowError(NO_EXPERT)


_FIXED: list[tuple[set[str], Shape]] = [
    (
        {"prompt", "completions", "labels"},
        Shape(
            "stepwise supervision",
            "the problem is `prompt`, the steps are `completions` up to the first wrong one",
            ["prompt", "completions", "labels", *ANSWERS],
            _stepwise,
        ),
    ),
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
                [column, *ANSWERS],
                _chat(column),
            ),
        )
        for column in ("messages", "conversations", "conversation")
    ),
]


# ---- a step a row --------------------------------------------------------------------------------

_NAME = "a step a row"
_READ = ["problem", "steps", *ANSWERS]
# In place of a row that holds no step, so that it is counted.
_NOTHING: Row = {"problem": "", "steps": []}


def _listed(row: Row) -> ExpertRow:
    """Reads a row that `gather` has put together."""
    steps = row.get("steps")
    if not isinstance(steps, list | tuple) or not all(isinstance(one, str) for one in steps):
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
    if isinstance(before, list | tuple) and all(isinstance(one, str) for one in before):
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
                prompt, step = _asked(row, "prompt"), text_of(row, target, missing="")
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
