"""The words that a chat template, or plain text, puts around the user's words and after the
policy's.

A template is a foreign program: it is run on marked messages, and what it wrote around the marks is
kept as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from environments.prompts import PROMPT_DATE
from srl.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
SEPARATOR = "\n\n"
"""Stands between problem, steps, observations and title."""

# What `strftime` may be asked for, letter by letter.
_DATE_PARTS = "aAbBcdDeFgGHIjmMnpRStTuUVwWxXyYzZf"

_USER, _ASSISTANT = "TheWordsOfTheUserStandHere", "TheWordsOfThePolicyStandHere"

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Frame:
    """What stands around the user's words, and after the policy's.

    Attributes:
        head: what comes before the user's words: pieces that the template wrote, and at odd places
            the system prompt.
        tail: what comes between the user's words and the policy's.
        end: what comes after the policy's words, up to the control token that ends them; empty
            where the template ends them with none.
    """

    head: tuple[str, ...]
    tail: str
    end: str = ""


def plain_frame(system_prompt: str | None) -> Frame:
    """Plain text: the system prompt and a blank line, as they stand."""
    return Frame((system_prompt.strip() + SEPARATOR if system_prompt else "",), SEPARATOR)


def chat_frame(
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    *,
    think: bool,
    prompt_date: str = PROMPT_DATE,
) -> Frame:
    """The chat template around the user's words, with the system prompt wherever it can stand.

    Args:
        tokenizer: it has the template.
        system_prompt: None for no system message.
        think: what the template is told of thinking, where it asks.
        prompt_date: the day that a template which asks for the date is told, YYYY-MM-DD.

    Raises:
        UsageError: no use of the template shows the user's words and the system prompt once each.
    """
    day = date.fromisoformat(prompt_date)
    source = _dated(tokenizer, day)

    def render(messages: Messages, *, go_on: bool = True) -> str:
        text: object = tokenizer.apply_chat_template(
            messages,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=go_on,
            enable_thinking=think,
            date_string=day.strftime("%d %b %Y"),
        )
        return str(text)

    system = system_prompt.strip() if system_prompt else ""
    user = {"role": "user", "content": _USER}
    attempts = [[user]]
    if system:
        merged = {"role": "user", "content": system + SEPARATOR + _USER}
        attempts = [[{"role": "system", "content": system}, user], [merged]]
    problem = ""
    for messages in attempts:
        try:
            text = render(messages)
        except Exception as error:  # noqa: BLE001, a template is a foreign program
            problem = f"it raises {type(error).__name__}: {error}"
            continue
        if text.count(_USER) != 1:
            problem = f"it shows the user's message {text.count(_USER)} times"
        elif system and system not in text:
            problem = "it drops the system prompt"
        else:
            head, _, tail = text.partition(_USER)
            if not think and tail.rstrip().endswith(OPEN):
                tail = f"{tail.rstrip()}{SEPARATOR}{CLOSE}{SEPARATOR}"  # an empty thought
            before, said, after = head.rpartition(system) if system else (head, "", "")
            end = _turn_end(render, messages, tokenizer)
            return Frame((before, said, after), tail, end)
    raise UsageError(
        f"the policy's chat template cannot be used: {problem}; give template: plain, "
        "or another tokenizer"
    )


def _dated(tokenizer: PreTrainedTokenizerBase, day: date) -> str:
    """The template's source, with a clock that stands at `day` at midnight.

    A macro, because transformers hands no functions on to a template. Its line end belongs to the
    tag, so that what follows still stands at the beginning of a line.
    """
    source = str(tokenizer.get_chat_template())
    if "strftime_now" not in source:
        return source
    parts = [*(f"%{mark}{letter}" for letter in _DATE_PARTS for mark in ("", "-")), "%%"]
    told = " | ".join(f"replace({part!r}, {day.strftime(part)!r})" for part in parts)
    return f"{{% macro strftime_now(format) %}}{{{{ format | {told} }}}}{{% endmacro %}}\n" + source


def _turn_end(
    render: Callable[..., str], messages: Messages, tokenizer: PreTrainedTokenizerBase
) -> str:
    """What the template writes after an assistant's words, up to and with its first control token.

    Some templates close a turn only when another follows. One that closes none, and marks the
    beginning of the next instead, has no end.
    """
    control = re.compile("|".join(map(re.escape, _longest_first(added_texts(tokenizer)))) or "(?!)")
    again = {"role": "user", "content": _USER}
    for words in (_ASSISTANT, f"{OPEN}{SEPARATOR}{CLOSE}{SEPARATOR}{_ASSISTANT}"):
        said = [*messages, {"role": "assistant", "content": words}]
        for following, least in (([], 1), ([again], 2)):
            try:
                text = render([*said, *following], go_on=False)
            except Exception:  # noqa: BLE001, a template is a foreign program
                continue
            after = text.rpartition(_ASSISTANT)[2].partition(_USER)[0]
            if _ASSISTANT not in text or len(control.findall(after)) < least:
                continue
            found = control.match(after, len(after) - len(after.lstrip()))
            if found is not None:
                return after[: found.end()]
    return ""


def added_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The texts of all tokens beside the ordinary vocabulary, less blank ones and think tags."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    texts = {*added, *map(str, tokenizer.all_special_tokens)}
    return {text for text in texts if text.strip()} - {OPEN, CLOSE}


def _longest_first(texts: set[str]) -> list[str]:
    return sorted(texts, key=lambda text: (-len(text), text))
