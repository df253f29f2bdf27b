"""Finds what a policy's chat template puts around the words of a user and of an assistant.

A template is a program that comes with a model. It runs at the start only, with sentinels in place
of the words, and `prompts.py` builds all prompts from its output. Some templates read the clock.
Here the date is fixed, so that a run resumed tomorrow and an evaluation next year read the same
prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from environments.prompts import PROMPT_DATE
from srl.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
SEPARATOR = "\n\n"
"""The text between problem, steps, observations and title."""

TODAY = datetime.fromisoformat(PROMPT_DATE)
"""The default date for templates that print a date."""

_USER = "TheWordsOfTheUserStandHere"
_ASSISTANT = "TheWordsOfTheAssistantStandHere"


@dataclass(frozen=True)
class Frame:
    """The text before and after the user's words.

    Attributes:
        head: the text before them.
        tail: the text after them.
        system_prompt: the part of the head that does not come from the template. It is empty for
            plain text, which has no template.
        between: the text between the messages of worked examples: after a user's message, after
            the assistant's, after the next user's, and so on. `head` then stands before the first
            example.
    """

    head: str
    tail: str
    system_prompt: str = ""
    between: tuple[str, ...] = ()


def plain_frame(system_prompt: str | None, *, examples: int = 0) -> Frame:
    """Returns the frame for plain text, in which an end token closes each example."""
    head = system_prompt.strip() + SEPARATOR if system_prompt else ""
    return Frame(head, SEPARATOR, between=(SEPARATOR, "") * examples)


def chat_frame(
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    *,
    think: bool,
    day: datetime = TODAY,
    examples: int = 0,
) -> Frame:
    """Returns the chat template's text around the user's words.

    If the template refuses or drops the system prompt, the first user message begins with it.

    Args:
        tokenizer: the policy's.
        system_prompt: None sends no system message.
        think: passed to templates that use it.
        day: the date for templates that ask for it.
        examples: number of earlier turns of a user and an assistant before the user's words.

    Raises:
        UsageError: the template fails, drops the words, or shows them twice.
    """
    shown = [
        words
        for number in range(examples)
        for words in (f"{_USER}InExample{number}Here", f"{_ASSISTANT}InExample{number}Here")
    ]
    earlier = [
        {"role": "assistant" if place % 2 else "user", "content": words}
        for place, words in enumerate(shown)
    ]
    user = {"role": "user", "content": _USER}
    attempts = [[*earlier, user]]
    if system_prompt:
        system = {"role": "system", "content": system_prompt.strip()}
        first, *others = attempts[0]
        merged = {**first, "content": system_prompt.strip() + SEPARATOR + first["content"]}
        attempts = [[system, first, *others], [merged, *others]]
    problem = ""
    for messages in attempts:
        try:
            text = _written(tokenizer, messages, think=think, answer=True, day=day)
        except Exception as error:  # noqa: BLE001, a template is a foreign program
            problem = f"it raises {type(error).__name__}: {error}"
            continue
        lost = [words for words in shown if text.count(words) != 1]
        if lost:
            problem = "it drops or repeats earlier turns, which few_shot needs; give few_shot: 0"
        elif text.count(_USER) != 1 + examples:
            problem = f"it shows the user's message {text.count(_USER) - examples} times"
        elif system_prompt and system_prompt.strip() not in text:
            problem = "it drops the system prompt"
        else:
            # The user's words are the last to hold the sentinel.
            before, _, tail = text.rpartition(_USER)
            head, *between = _split_at(before, shown)
            tail += _channel(tokenizer, messages, tail, think=think, day=day)
            if not think and tail.rstrip().endswith(OPEN):
                tail = f"{tail.rstrip()}{SEPARATOR}{CLOSE}{SEPARATOR}"  # an empty thought
            system_text = system_prompt.strip() if system_prompt else ""
            return Frame(head, tail, system_text, tuple(between))
    raise UsageError(
        f"the policy's chat template cannot be used: {problem}; give template: plain, "
        "or another tokenizer"
    )


def _split_at(text: str, parts: Sequence[str]) -> list[str]:
    """Returns the text before, between and after parts that follow one another in `text`."""
    pieces = []
    for part in parts:
        piece, _, text = text.partition(part)
        pieces.append(piece)
    return [*pieces, text]


def _channel(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    tail: str,
    *,
    think: bool,
    day: datetime,
) -> str:
    """Returns what the template writes between `tail` and the assistant's words.

    The tail opens the assistant's turn. Harmony (GPT-OSS) opens a turn with the role alone, and the
    policy then writes a channel, analysis first. A step is an answer, so the prompt opens the
    channel of answers, which the template writes before an assistant's words. The result is empty
    if nothing stands between tail and words, as in most templates, or only blanks or a thought.
    """
    answered = [*messages, {"role": "assistant", "content": _ASSISTANT}]
    try:
        text = _written(tokenizer, answered, think=think, answer=False, day=day)
    except Exception:  # noqa: BLE001, a template is a foreign program
        return ""
    between = text.rpartition(_USER)[2].partition(_ASSISTANT)[0]
    more = between.removeprefix(tail)
    if not between.startswith(tail) or OPEN in more:
        return ""
    ids = tokenizer.encode(more, add_special_tokens=False, verbose=False)
    return more if _added_ids(tokenizer).intersection(ids) else ""


@dataclass(frozen=True)
class TurnEnd:
    """What a template writes after an assistant's words.

    Attributes:
        token: the first token that is not text.
        before: the white space before it.
        closes: the token ends the turn. If False, it begins the next turn, as `<|user|>` does, and
            the policy may never have learned to write it.
    """

    token: int
    before: str
    closes: bool


def turn_end(
    tokenizer: PreTrainedTokenizerBase, *, think: bool, day: datetime = TODAY
) -> TurnEnd | None:
    """Returns the token that follows an assistant's words; None if the template writes none.

    It often differs from EOS: `<|im_end|>` where a base model has `<|endoftext|>`, and
    `<end_of_turn>` or `<|end|>` in other families. Some templates close a turn only if another
    turn follows.
    """
    user = {"role": "user", "content": _USER}
    assistant = {"role": "assistant", "content": _ASSISTANT}
    added = _added_ids(tokenizer)
    for messages, least in (([user, assistant], 1), ([user, assistant, user], 2)):
        try:
            text = _written(tokenizer, messages, think=think, answer=False, day=day)
        except Exception:  # noqa: BLE001, a template is a foreign program
            continue
        _, marker, after = text.rpartition(_ASSISTANT)
        after = after.partition(_USER)[0]
        ids = tokenizer.encode(after, add_special_tokens=False, verbose=False)
        tokens = [token for token in ids if token in added and tokenizer.decode([token]).strip()]
        if marker and tokens:
            before = after.partition(tokenizer.decode([tokens[0]]).strip())[0]
            blanks = "" if before.strip() else before
            return TurnEnd(int(tokens[0]), blanks, closes=len(tokens) >= least)
    return None


def _standing_clock(day: datetime) -> str:
    """Returns a macro that replaces the time function of templates by a fixed day.

    It is a macro because transformers passes no functions to templates. Each `replace` writes the
    value of one directive on that day.
    """
    parts = [
        (letter, written)
        for directive in "aAbBcdeFHIjmMpSTuUVwWxXyY"
        for text in [day.strftime(f"%{directive}")]
        for letter, written in [(directive, text), (f"-{directive}", text.lstrip("0") or "0")]
    ]
    replaced = "".join(f"|replace('%{letter}', '{written}')" for letter, written in parts)
    macro = "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro %}"
    return macro + "{{ '' }}"


def _written(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    *,
    think: bool,
    answer: bool,
    day: datetime,
) -> str:
    """Returns the template's text for the messages; `answer` opens the assistant's next turn."""
    template = tokenizer.get_chat_template()
    text: str = tokenizer.apply_chat_template(
        list(messages),
        chat_template=(_standing_clock(day) if "strftime_now" in template else "") + template,
        tokenize=False,
        add_generation_prompt=answer,
        enable_thinking=think,
        date_string=f"{day:%d %b %Y}",
    )
    return text


def _added_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns the added and special tokens, which may end a turn, without the think tags."""
    return frozenset({*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}) - {
        tokenizer.unk_token_id,
        *(tokenizer.convert_tokens_to_ids(tag) for tag in (OPEN, CLOSE)),
    }
