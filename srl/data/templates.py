"""What a policy's chat template puts around the words of a user and of an assistant.

A template is a program that came with a model. It is asked once, with sentinels in place of the
words, and never again: prompts are then pieced together from what it wrote (`prompts.py`). Some
templates read the clock; here it stands still, so that a run resumed tomorrow and an evaluation
next year read the same prompts.
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
"""Stands between problem, steps, observations and title."""

TODAY = datetime.fromisoformat(PROMPT_DATE)
"""The date in every prompt whose template prints one, where the settings name no other."""

_USER = "TheWordsOfTheUserStandHere"
_ASSISTANT = "TheWordsOfTheAssistantStandHere"


@dataclass(frozen=True)
class Frame:
    """What stands before and after the user's words.

    Attributes:
        head: before them.
        tail: after them.
        said: the part of the head that is no template's: the system prompt it was given. In plain
            text there is no template, and a system prompt stands as it is.
        between: of worked examples, what stands behind each message before the next one: behind a
            user's, behind the assistant's, behind the next user's, and so on. `head` then stands
            before the first example.
    """

    head: str
    tail: str
    said: str = ""
    between: tuple[str, ...] = ()


def plain_frame(system_prompt: str | None, *, examples: int = 0) -> Frame:
    """The frame of a policy without a chat template; an end token closes each example."""
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
    """The chat template around the user's words, with the system prompt wherever it can stand.

    Args:
        tokenizer: the policy's.
        system_prompt: None sends no system message.
        think: passed to templates that ask for it.
        day: what a template is told that asks for the date.
        examples: earlier turns of a user and an assistant before the user's words.

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
            said = system_prompt.strip() if system_prompt else ""
            return Frame(head, tail, said, tuple(between))
    raise UsageError(
        f"the policy's chat template cannot be used: {problem}; give template: plain, "
        "or another tokenizer"
    )


def _split_at(text: str, parts: Sequence[str]) -> list[str]:
    """What stands before, between and behind parts that come one after another."""
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
    """What the template writes between `tail`, which opens the assistant's turn, and its words.

    Harmony (GPT-OSS) opens a turn with the role alone, and the policy then writes a channel,
    analysis first. A step is an answer, so the prompt opens the channel of answers, which the
    template writes before an assistant's words. Empty where tail and words meet, as in most
    templates, and where only blanks or a thought stand between them.
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
    """What a template writes behind an assistant's words.

    Attributes:
        token: the first token that is no text.
        before: the blanks before it.
        closes: it ends the turn; else it begins the next one, as `<|user|>` does, and the policy
            may never have been taught to write it.
    """

    token: int
    before: str
    closes: bool


def turn_end(
    tokenizer: PreTrainedTokenizerBase, *, think: bool, day: datetime = TODAY
) -> TurnEnd | None:
    """What shows that an assistant's words are over; None where the template writes no token.

    It is often another one than EOS: `<|im_end|>` where a base model has `<|endoftext|>`, and
    `<end_of_turn>` or `<|end|>` in other families. Some templates close a turn only when another
    one follows.
    """
    user = {"role": "user", "content": _USER}
    assistant = {"role": "assistant", "content": _ASSISTANT}
    added = _added_ids(tokenizer)
    for messages, least in (([user, assistant], 1), ([user, assistant, user], 2)):
        try:
            text = _written(tokenizer, messages, think=think, answer=False, day=day)
        except Exception:  # noqa: BLE001, a template is a foreign program
            continue
        _, found, after = text.rpartition(_ASSISTANT)
        after = after.partition(_USER)[0]
        ids = tokenizer.encode(after, add_special_tokens=False, verbose=False)
        tokens = [one for one in ids if one in added and tokenizer.decode([one]).strip()]
        if found and tokens:
            before = after.partition(tokenizer.decode([tokens[0]]).strip())[0]
            blanks = "" if before.strip() else before
            return TurnEnd(int(tokens[0]), blanks, closes=len(tokens) >= least)
    return None


def _standing_clock(day: datetime) -> str:
    """In place of the function that templates ask for the time.

    A macro, because transformers hands no functions to templates; each `replace` writes what the
    directive means on that day.
    """
    parts = [
        (letter, written)
        for directive in "aAbBcdeFHIjmMpSTuUVwWxXyY"
        for told in [day.strftime(f"%{directive}")]
        for letter, written in [(directive, told), (f"-{directive}", told.lstrip("0") or "0")]
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
    """What the template makes of the messages; `answer` opens the assistant's next turn."""
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
    """The tokens that are no part of words: what may end a turn."""
    return frozenset({*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}) - {
        tokenizer.unk_token_id,
        *(tokenizer.convert_tokens_to_ids(tag) for tag in (OPEN, CLOSE)),
    }
