"""Reads chat messages: a question, and the turns of an assistant who solves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from environments.reading import (
    NO_PROBLEM,
    NO_SOLUTION,
    NOT_TEXT,
    ExpertRow,
    Row,
    UnusableRowError,
    text_of,
)
from environments.types import Step

_POLICY = ("assistant", "gpt", "bot", "model", "function_call")
SYSTEM = ("system", "developer")


class Turn(NamedTuple):
    """One message: who says it, its text, and the thought that the message holds apart from it."""

    role: str
    text: str
    thought: str = ""


def turns_of(value: object, column: str) -> list[Turn]:
    """Reads messages in OpenAI's form (`role`, `content`) or ShareGPT's (`from`, `value`)."""
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        raise UnusableRowError(f"{column} is not a list of messages")
    turns = []
    for message in value:
        role = message.get("role") or message.get("from")
        if not isinstance(role, str):
            raise UnusableRowError(f"a message of {column} without a role")
        content = message.get("content")
        text = _content(message.get("value") if content is None else content)
        lines = [text] * bool(text) + [_call(call) for call in _calls(message)]
        turns.append(Turn(role.lower(), "\n".join(lines), _thought(message)))
    return turns


def thought_beside(row: Row, solution: str) -> str:
    """Returns the thought that a row holds beside its column `solution`, or an empty text.

    Some data sets have a switch in `reasoning`, such as "on": one word is no thought.
    """
    for key in ("reasoning_content", "reasoning", "thinking"):
        thought = row.get(key)
        if key == solution or not isinstance(thought, str):
            continue
        if key == "reasoning_content" or " " in thought.strip():
            return thought
    return ""


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
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        if all(isinstance(part, str) for part in parts):
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
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def conversation(turns: Sequence[Turn]) -> ExpertRow:
    """Returns the solution in a conversation.

    What stands before the assistant's first turn is the problem. Each turn of the assistant is a
    step, and what the user or a tool says next is its observation. A single turn is a solution
    that is to be cut.
    """
    spoken = [turn for turn in turns if turn.role not in SYSTEM]
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


def _joined(turns: Sequence[Turn]) -> str:
    return "\n\n".join(turn.text for turn in turns if turn.text.strip())


def chat(column: str) -> Callable[[Row], ExpertRow]:
    return lambda row: conversation(turns_of(row.get(column), column))


def question_of(row: Row, column: str) -> str:
    """Returns a prompt's text; of messages all that is said, without the system message."""
    value = row.get(column)
    if isinstance(value, str) or value is None:
        return text_of(row, column, missing=NO_PROBLEM)
    prompt = _joined([turn for turn in turns_of(value, column) if turn.role not in SYSTEM])
    if not prompt:
        raise UnusableRowError(NO_PROBLEM)
    return prompt
