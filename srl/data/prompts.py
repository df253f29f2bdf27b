"""Turns contexts into prompt tokens, and completion tokens into thoughts and actions.

Every part of a context (problem, each step, the observation after it, the template's tail) is
tokenised on its own. So the prompt of step k without its tail is a token prefix of the prompt of
step k+1. Shared work can be computed once, and no token merges across the border of two parts.

Completions are decoded with their special tokens, because `<think>` is a special token for some
policies and plain text for others, and some chat templates end the prompt with the opening tag.
The format is one leading ``<think>...</think>`` followed by one step that is not empty (arXiv
2510.25992, section 3 and its appendix of prompts). Anything else is a format failure with a name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal, get_args

from environments.prompts import PAPER_EVALUATION_PROMPT, PROMPT_DATE
from environments.types import Step, Trajectory, as_steps
from srl.config.format_failures import FAILURES
from srl.data.plain_text import PlainText, leading_ids
from srl.data.templates import CLOSE, OPEN, SEPARATOR, Frame, chat_frame, plain_frame, turn_end
from srl.data.text_limits import StepEnd, TextLimits
from srl.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from srl.data.steps import StepExample

Template = Literal["auto", "chat", "plain"]

TAG = re.compile(f"({OPEN}|{CLOSE})")
_STEP_MARK = re.compile(r"^(?P<indent>[ \t]*)(?P<number>\d{1,4})\.[ \t]+\*\*(?=\S)", re.MULTILINE)


@dataclass(frozen=True)
class ParsedStep:
    """A completion, split into its thought and its action.

    Attributes:
        thought: the monologue between the tags; it may be empty.
        action: the step after the monologue.
        failure: None, or one of `FAILURES`. After a failure, thought and action hold what could be
            read, for the log only.
    """

    thought: str
    action: str
    failure: str | None = None


class PromptFormat:
    """Encodes the prompts of one policy, and parses its completions.

    Attributes:
        opens_thought: the prompt already ends in `<think>`, so completions lack it.
        think: the policy writes a monologue before its step.
        template: "chat" or "plain", after "auto" was resolved.
        end_id: the token that ends the expert's text as a training target.
        stop_ids: tokens that end a completion, including `end_id`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None,
        template: Template = "auto",
        think: bool = True,
        whole_system_prompt: str | None = PAPER_EVALUATION_PROMPT,
        stop_ids: Collection[int] | None = None,
        prompt_date: str = PROMPT_DATE,
        open_thought: bool = False,
        think_budget: int = 0,
        step_ends_at: StepEnd = "turn",
        shots: Sequence[StepExample] = (),
        source_tag: str | None = None,
        solve_as: str | None = None,
    ) -> None:
        """Reads the tokenizer's template once and splits it around the user's words.

        Args:
            tokenizer: the policy's.
            system_prompt: for one step; None sends no system message (a template may still add
                one of its own). If a template cannot show it, it is put in front of the user's
                words.
            template: "chat" needs a chat template, "plain" is text alone, "auto" takes "chat" if
                there is a chat template.
            think: False for a policy without monologue: the whole completion is the step.
            whole_system_prompt: the same as `system_prompt`, for whole solutions.
            stop_ids: tokens that end a completion, besides the token that the chat template writes
                after an assistant's words. The default is the tokenizer's EOS alone, though a
                generation config often lists more.
            prompt_date: the date, YYYY-MM-DD, for templates that ask for it.
            open_thought: prompts end in `<think>`, whether the template writes it or not.
            think_budget: tokens after which a thought that is still open is closed; 0 is never.
            step_ends_at: what ends a step besides an end token.
            shots: worked examples. A prompt for a step starts with the context and the step of
                each example, as one message of the user and one of the policy. A prompt for a
                whole solution starts with the problem and the whole expert solution of each.
            source_tag: the tag of solutions that prompts show after the problem, such as "length";
                None shows no tag.
            solve_as: the tag's value in prompts where the policy solves a problem by itself; None
                takes the value of the given solution.

        Raises:
            UsageError: `template` is unknown, no token ends a completion, the chat template is
                missing or cannot be used, or `think_budget` is set but no prompt opens a thought.
        """
        if template not in get_args(Template):
            raise UsageError(f"template is {template!r}; allowed: {', '.join(get_args(Template))}")
        if template == "chat" and not tokenizer.chat_template:
            raise UsageError(
                "template is 'chat', but the policy's tokenizer has no chat template; "
                "give template: plain (or auto)"
            )
        if stop_ids is None:
            stop_ids = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.tokenizer = tokenizer
        self.think = think
        self.template: Literal["chat", "plain"]
        self.shots = tuple(shots)
        self.source_tag, self.solve_as = source_tag, solve_as
        ending = None
        if template == "plain" or not tokenizer.chat_template:
            self.template = "plain"
            self._first_ids = leading_ids(tokenizer)
            self._step_frame = plain_frame(system_prompt, examples=len(shots))
            self._whole_frame = plain_frame(whole_system_prompt, examples=len(shots))
        else:
            self.template = "chat"
            self._first_ids = []  # the template writes BOS itself if the policy wants one
            day = datetime.fromisoformat(prompt_date)
            self._step_frame, self._whole_frame = (
                chat_frame(tokenizer, words, think=think, day=day, examples=len(shots))
                for words in (system_prompt, whole_system_prompt)
            )
            ending = turn_end(tokenizer, think=think, day=day)
        self.stop_ids = frozenset({*stop_ids, *([] if ending is None else [ending.token])})
        if not self.stop_ids:
            raise UsageError(
                "the policy's tokenizer has no EOS token, so no completion could end; "
                "set tokenizer.eos_token in the policy's tokenizer_config.json"
            )
        if ending is not None and (ending.closes or ending.token in stop_ids):
            before_end, self.end_id = ending.before, ending.token
        else:
            eos = tokenizer.eos_token_id
            before_end, self.end_id = "", int(eos if eos in stop_ids else min(self.stop_ids))
        template_opens = think and self._step_frame.tail.rstrip().endswith(OPEN)
        self.opens_thought = template_opens or (think and open_thought)
        if think_budget and not self.opens_thought:
            raise UsageError(
                f"think_budget is {think_budget}, but nothing opens a thought in the prompt that "
                "could be closed after so many tokens; set open_thought: true"
                + ("" if think else " and think: true")
            )
        self._outer_ids = self.stop_ids | _special_ids(tokenizer)
        self._text = PlainText(tokenizer, _control_ids(tokenizer, self._outer_ids))
        # Some templates put a space or a line end before the end token.
        self._end_ids = [*self._text.next(before_end), self.end_id]
        opens_itself = self.opens_thought and not template_opens
        self._opening = list(self._text.next(f"{OPEN}\n")) if opens_itself else []
        self._step_limits = TextLimits(
            read=self.read,
            ends_at=step_ends_at,
            end_ids=frozenset() if step_ends_at == "turn" else tokens_with(tokenizer, "\n"),
            think=think,
            opens_thought=self.opens_thought,
            think_budget=think_budget,
            close_ids=tuple(self._text.next(f"\n{CLOSE}\n")) if think_budget else (),
        )
        self._starts: dict[Frame, list[int]] = {}  # the tokens that all prompts of a frame share

    def encode(
        self, problem: str, previous_steps: Sequence[Step | str], title: str | None = None
    ) -> list[int]:
        """Returns the prompt for the step after `previous_steps`, as token ids.

        Args:
            problem: the problem's text.
            previous_steps: the steps so far, by the expert or by the policy, as texts or as steps
                with their observations. Thoughts are left out.
            title: the next step's title, if prompts show it.
        """
        return [
            token
            for segment in self.encode_segments(problem, previous_steps, title)
            for token in segment
        ]

    def encode_segments(
        self, problem: str, previous_steps: Sequence[Step | str], title: str | None = None
    ) -> list[Sequence[int]]:
        """Returns the prompt of `encode` in parts.

        The parts are [template and problem, step 1, ..., step k, title and template]. An
        observation that is not empty is a part of its own after its step.
        """
        return [
            self._start(self._step_frame, problem),
            *self._steps(previous_steps),
            [*self._hint(title), *self._tail(self._step_frame)],
        ]

    def encode_example(self, example: StepExample) -> list[int]:
        """Returns the prompt of one row, as token ids."""
        problem = self.asked(example.trajectory)
        if example.whole:
            return self.encode_whole(problem)
        return self.encode(problem, example.previous, example.title)

    def asked(self, trajectory: Trajectory, *, solving: bool = False) -> str:
        """Returns a problem as prompts show it: its text, then the tag of the wanted solution.

        Args:
            trajectory: a solution of the problem, with its tags.
            solving: the policy solves the problem by itself; `solve_as` then sets the tag's value.
        """
        if self.source_tag is None:
            return trajectory.problem
        own = trajectory.tags.get(self.source_tag)
        tag = (self.solve_as or own) if solving else own
        beside = f"\n\n({self.source_tag}: {tag})" if tag else ""
        return f"{trajectory.problem.strip()}{beside}"

    def encode_whole(self, problem: str) -> list[int]:
        """Returns the prompt for a whole solution, as token ids."""
        frame = self._whole_frame
        return self._start(frame, problem) + self._tail(frame)

    def encode_expert(self, example: StepExample, *, thoughts: bool = True) -> list[int]:
        """Returns the expert's text as a completion, as token ids that include the end token.

        If the policy thinks, a step has its thought before it, in tags. The thought is empty where
        the data has none, so that `parse` accepts the text. A whole solution has thoughts only
        where the data has some, but a thought that the prompt has opened is always closed. If
        `thoughts` is False, every thought is empty or missing. That is the shortest completion
        that copies the expert.
        """
        text = self._expert_text(example, thoughts=thoughts)
        if self.opens_thought:
            text = text.removeprefix(OPEN) if text.startswith(OPEN) else f"{CLOSE}\n{text}"
        return [*self._text.data(text), *self._end_ids]

    def count_tokens(self, text: str) -> int:
        """Returns how many tokens a text of the expert has, without tags and end token."""
        return len(self._text.data(text))

    def parse(
        self, completion_ids: Sequence[int], truncated: bool, *, whole: bool = False
    ) -> ParsedStep:
        """Splits a completion into thought and action.

        Args:
            completion_ids: the tokens that the policy wrote; end and padding tokens may follow.
            truncated: the length limit cut the completion before an end token.
            whole: the action is a whole solution, parsed by the rules of `parse_whole`.
        """
        parse = parse_whole if whole else parse_text
        text = self.read(completion_ids)
        return parse(
            text if whole else self._step_limits.cut(text),
            truncated,
            think=self.think,
            opens_thought=self.opens_thought,
        )

    def read(self, completion_ids: Sequence[int]) -> str:
        """Returns a completion as text, with think tags, without end and padding tokens."""
        text: str = self.tokenizer.decode(
            self._without_outer_tokens(completion_ids),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return text

    def limits(self, *, whole: bool = False) -> TextLimits | None:
        """Returns the limits on a completion's text; None if there are none.

        Args:
            whole: the completion is a whole solution, which the end of a step does not end.
        """
        own = self._step_limits
        limits = replace(own, ends_at="turn", end_ids=frozenset()) if whole else own
        return limits if limits.think_budget or limits.ends_at != "turn" else None

    def ends_early(self, step: str) -> bool:
        """Returns whether `step_ends_at` would end a step too early and cut off the rest."""
        text = f"{OPEN}{CLOSE}\n{step.strip()}" if self.think else step.strip()
        return self._step_limits.cut(text) != text

    def _start(self, frame: Frame, problem: str) -> list[int]:
        words = problem.strip()
        if not frame.between:
            return self._first(frame, words)
        if frame not in self._starts:
            self._starts[frame] = self._examples(frame)
        return [*self._starts[frame], *self._text.data(words)]

    def _first(self, frame: Frame, words: str) -> list[int]:
        """Returns the tokens of the frame's head and of the user's first words after it."""
        if not self._text.holds_control(frame.system_prompt):
            return self._first_ids + self._text.first(frame.head, words)
        before, _, after = frame.head.rpartition(frame.system_prompt)
        ids = [*self._text.first(before, frame.system_prompt), *self._text.next(after)]
        return [*self._first_ids, *ids, *self._text.data(words)]

    def _examples(self, frame: Frame) -> list[int]:
        """Returns the tokens of the worked examples, up to where the user's words begin."""
        ids: list[int] = []
        for number, shot in enumerate(self.shots):
            if frame is self._whole_frame:
                shot = replace(shot, step_index=0, title=None, whole=True)
            asked = self.asked(shot.trajectory).strip()
            ids += self._text.data(asked) if number else self._first(frame, asked)
            if not shot.whole:
                ids += [token for segment in self._steps(shot.previous) for token in segment]
                ids += self._hint(shot.title)
            ids += self._text.next(frame.between[2 * number])
            ids += self._text.data(self._expert_text(shot))
            if self.template == "plain":
                ids += self._end_ids
            ids += self._text.next(frame.between[2 * number + 1])
        return ids

    def _steps(self, previous_steps: Sequence[Step | str]) -> list[tuple[int, ...]]:
        """Returns one segment for each step so far, and one for each observation."""
        return [
            self._text.data(SEPARATOR + text.strip())
            for step in as_steps(previous_steps)
            for text in [step.text, *([step.observation] if step.observation.strip() else [])]
        ]

    def _hint(self, title: str | None) -> tuple[int, ...]:
        return self._text.data("" if title is None else f"{SEPARATOR}Next step: {title.strip()}")

    def _tail(self, frame: Frame) -> list[int]:
        return [*self._text.next(frame.tail), *self._opening]

    def _expert_text(self, example: StepExample, *, thoughts: bool = True) -> str:
        """Returns the expert's text in the policy's format, with tags."""
        pieces = []
        for step in example.expert_steps:
            thought = step.thought if thoughts else ""
            wanted = self.think and (bool(thought.strip()) or not example.whole)
            written = f"{OPEN}{thought}{CLOSE}\n{step.text.strip()}"
            pieces.append(written if wanted else step.text)
        return "\n".join(pieces).strip()

    def _without_outer_tokens(self, ids: Sequence[int]) -> list[int]:
        """Drops end, padding and role tokens at both ends; those inside the text stay."""
        inner = [place for place, token in enumerate(ids) if token not in self._outer_ids]
        return [int(token) for token in ids[inner[0] : inner[-1] + 1]] if inner else []


def parse_text(
    text: str,
    truncated: bool,
    *,
    think: bool = True,
    opens_thought: bool = False,
) -> ParsedStep:
    """Splits the completion of one step into thought and action. Never raises.

    Ambiguous cases are decided as follows:
        White space around tags, thought and action is dropped. An empty thought is allowed.
        If the prompt opened the thought, one more opening tag at the very start is accepted,
        because policies trained on both kinds of template write the tag again.
        Any text that names a tag counts as the tag: a thought that quotes ``</think>`` ends there.
        An action holds several steps when a ``k+1. **`` line follows its first ``k. **`` line and
        is not indented deeper. The same rule splits the expert's solution. Inner lists are allowed.

    Args:
        text: the completion without end tokens.
        truncated: the length limit cut the completion.
        think: the policy writes a monologue; otherwise the whole text is the action.
        opens_thought: the prompt ended in ``<think>``.
    """
    if think and opens_thought and not text.lstrip().startswith(OPEN):
        text = OPEN + text
    before, opened, rest = text.partition(OPEN)
    thought, closed, action = (rest if opened else text).partition(CLOSE)
    if not opened and not closed:
        thought, action = "", text
    thought, action = thought.strip(), action.strip()

    holds = {
        "truncated": truncated,
        "missing_open": think and not opened,
        "missing_close": think and not closed,
        "repeated_tag": think and (text.count(OPEN) > 1 or text.count(CLOSE) > 1),
        "text_before_think": think and bool(before.strip()),
        "unexpected_tag": not think and (OPEN in text or CLOSE in text),
        "empty_action": not action,
        "several_steps": _holds_several_steps(action),
    }
    failure = next((name for name in FAILURES if holds[name]), None)
    return ParsedStep(thought, action, failure)


def parse_whole(
    text: str, truncated: bool, *, think: bool = True, opens_thought: bool = False
) -> ParsedStep:
    """Splits the completion of a whole solution into thought and action. Never raises.

    The paper's evaluation prompt allows thoughts anywhere, so there may be any number of thoughts,
    or none. The action joins the pieces outside of the thoughts, one piece a line; the thought
    joins the pieces inside in the same way. A thought that is never closed takes all the rest.
    Args as in `parse_text`.
    """
    if think and opens_thought and not text.lstrip().startswith(OPEN):
        text = OPEN + text
    pieces = TAG.split(text)  # text, tag, text, tag, ... text
    thoughts: list[str] = []
    actions = [pieces[0]]
    inside = False
    balanced = {"missing_open": False, "missing_close": False, "repeated_tag": False}
    for tag, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        balanced["missing_open"] |= tag == CLOSE and not inside
        balanced["repeated_tag"] |= tag == OPEN and inside
        inside = tag == OPEN
        (thoughts if inside else actions).append(piece)
    balanced["missing_close"] = inside
    thought, action = (
        "\n".join(part for piece in parts if (part := piece.strip()))
        for parts in (thoughts, actions)
    )
    holds = {
        "truncated": truncated,
        **{name: think and broken for name, broken in balanced.items()},
        "unexpected_tag": not think and len(pieces) > 1,
        "empty_action": not action,
    }
    failure = next((name for name in FAILURES if holds.get(name)), None)
    return ParsedStep(thought, action, failure)


def ensure_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes EOS the padding token if the tokenizer has no padding token.

    This is safe: masks are built from lengths, never by comparing with the padding token.

    Raises:
        UsageError: there is no EOS token either.
    """
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the policy's tokenizer has neither a padding token nor an EOS token; "
            "set tokenizer.eos_token in the policy's tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token


def why_uncopyable(step: str, *, think: bool) -> str | None:
    """Returns why a perfect copy of an expert's step breaks the format; None if it does not.

    Args:
        step: the expert's step.
        think: the policy writes a monologue before its step.

    Returns:
        One of `FAILURES`.
    """
    return parse_text(f"{OPEN}{CLOSE}\n{step}" if think else step, False, think=think).failure


def _holds_several_steps(action: str) -> bool:
    marks = list(_STEP_MARK.finditer(action))
    if not marks:
        return False
    first = marks[0]
    depth = len(first["indent"].expandtabs(4))
    following = int(first["number"]) + 1
    return any(
        int(mark["number"]) == following and len(mark["indent"].expandtabs(4)) <= depth
        for mark in marks[1:]
    )


def _control_ids(tokenizer: PreTrainedTokenizerBase, outer_ids: Collection[int]) -> frozenset[int]:
    """Returns the tokens that data must not hold: added tokens that are in `outer_ids` or that the
    chat template writes. The think tags belong to the format and are not among them."""
    ordinary = {tokenizer.unk_token_id, *_tag_ids(tokenizer)}
    written = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return frozenset(
        token
        for token, added in tokenizer.added_tokens_decoder.items()
        if (token in outer_ids or added.content in written)
        and token not in ordinary
        and added.content.strip()
    )


def tokens_with(tokenizer: PreTrainedTokenizerBase, signs: str) -> frozenset[int]:
    """Returns the tokens whose text holds at least one of these characters."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, text in enumerate(texts) if not set(signs).isdisjoint(text))


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns all special tokens except the think tags, which belong to the format."""
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*marked, *tokenizer.all_special_ids} - _tag_ids(tokenizer))


def _tag_ids(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    tags = {tokenizer.convert_tokens_to_ids(tag) for tag in (OPEN, CLOSE)}
    return tags - {tokenizer.unk_token_id}  # a tokenizer without the tag returns the unknown token
