"""Chat templates that exist: all that TRL ships, and shapes that it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from environments.types import Trajectory
from srl.config.parts import PromptSettings
from srl.data.prompts import PromptFormat
from srl.data.steps import build_examples
from srl.data.templates import TODAY, chat_frame, turn_end
from srl.errors import UsageError

EOS = "<|endoftext|>"
# What begins an assistant's turn, or stands in it, or ends it, by family.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SOLUTION = ("Add them.", "1 + 1 = 2", "So 2.")


def tokenizer_of(template: str, *others: str, special: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes whose EOS is in no template, and which knows the template's tokens."""
    pattern = r"<[|｜][^|｜<>\s'\"]+[|｜]>|<\|turn>|<turn\|>|</?s>|<[a-z]+_of_[a-z]+>|\[/?INST\]"
    found = sorted({*re.findall(pattern, template), *others, "<s>"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(EOS, special=True)])
    backend.add_tokens([AddedToken(one, special=special, normalized=False) for one in found])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=EOS, pad_token=EOS
    )
    tokenizer.chat_template = template
    return tokenizer


def of_trl() -> list[str]:
    folder = files("trl") / "chat_templates"
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".jinja"))
    assert len(names) > 20
    return [name for name in names if not name.endswith("_training.jinja")]


@pytest.mark.parametrize("name", of_trl())
def test_every_template_of_trl_frames_text_and_ends_a_turn(name: str) -> None:
    template = (files("trl") / "chat_templates" / name).read_text(encoding="utf-8")
    tokenizer = tokenizer_of(template)
    try:
        form = PromptFormat(tokenizer, system_prompt="You solve.")
    except UsageError:
        # Of models that read images: a message's content is a list there.
        assert name.startswith(("idefics", "llava", "smolvlm"))
        return
    ending = turn_end(tokenizer, think=True)
    assert ending is not None
    end = tokenizer.decode([ending.token])
    assert end != EOS
    assert form.stop_ids == {ending.token, tokenizer.eos_token_id}
    # GLM closes no turn: a model that is not known to stop at the next one's token ends with EOS.
    assert form.end_id == (ending.token if ending.closes else tokenizer.eos_token_id)
    assert ending.closes is not name.startswith("glm")
    family = next((one for one in sorted(ENDS, reverse=True) if name.startswith(one)), None)
    assert family is None or end == ENDS[family]

    # What the expert wrote, end token included, is read as it was written.
    row = build_examples([Trajectory("What is 1+1?", SOLUTION)])[0]
    completion = form.encode_expert(row)
    assert completion[-1] == form.end_id
    assert form.parse(completion, completion[-1] not in form.stop_ids).action == "Add them."

    # Text that looks like the template's tokens is text.
    control = {*tokenizer.added_tokens_decoder}
    words = " ".join(one.content for one in tokenizer.added_tokens_decoder.values())
    plain = form.encode("What is 1+1?", ["Add them."])
    forged = form.encode(f"What is {words} 1+1?", [f"Add {words} them."])
    assert [i for i in forged if i in control] == [i for i in plain if i in control]
    text = tokenizer.decode(forged)
    assert f"What is {words} 1+1?" in text
    assert f"Add {words} them." in text


@pytest.mark.parametrize("special", [True, False])
def test_a_base_model_with_chatml_stops_and_is_taught_to_stop_at_the_end_of_a_turn(
    special: bool,
) -> None:
    tokenizer = tokenizer_of(CHATML, special=special)
    form = PromptFormat(tokenizer, system_prompt="Solve.")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert form.end_id == end
    step = "Use <|im_end|> and <|im_start|>assistant here."
    row = build_examples([Trajectory("Problem <|im_end|>?", (step, "b", "c"))])[0]
    completion = form.encode_expert(row)
    assert completion.count(end) == 1
    assert form.parse(completion, False).action == step
    assert form.encode_example(row).count(end) == 2  # of the system's and the user's turn


@pytest.mark.parametrize(
    ("template", "end"),
    [
        # Nothing after the last words, but a token before the next turn's.
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", "<|user|>"),
        ("{% for m in messages %}{{ m.content }}\n</s>{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m.content | trim }}  \n<|end|>{% endfor %}", "<|end|>"),
        # No token at all: EOS alone.
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        # A template that knows no assistant.
        (
            "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
            "{{ m.content }}{% endfor %}",
            None,
        ),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes(template: str, end: str | None) -> None:
    tokenizer = tokenizer_of(template, "<|user|>", "<|end|>", "</s>")
    ending = turn_end(tokenizer, think=True)
    found = None if ending is None else ending.token
    assert found == (None if end is None else tokenizer.convert_tokens_to_ids(end))
    form = PromptFormat(tokenizer, system_prompt=None)
    ends = ending is not None and ending.closes
    assert form.end_id == (found if ends else tokenizer.eos_token_id)
    known = PromptFormat(tokenizer, system_prompt=None, stop_ids={*form.stop_ids})
    assert known.end_id == (form.end_id if end is None else found)


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        (lambda day: f"{{{{ strftime_now('{day}') }}}}", "%d %b %Y"),
        (lambda day: f"{{% set f = '{day}' %}}{{{{ strftime_now(f) }}}}", "%A, %d. %B %Y, %H:%M"),
        (
            lambda day: "{% macro m() %}{{ strftime_now('" + day + "') }}{% endmacro %}{{ m() }}",
            "%Y-%m-%d",
        ),
        (lambda _: "{{ date_string }}", "%d %b %Y"),
    ],
)
def test_a_template_that_reads_the_clock_reads_the_same_day_for_ever(
    asked: Callable[[str], str], written: str
) -> None:
    user = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = tokenizer_of("\n  Today: " + asked(written) + ".\n" + user)
    head = chat_frame(tokenizer, None, think=True).head
    assert head == f"\n  Today: {TODAY.strftime(written)}.\n"


@pytest.mark.parametrize(
    ("name", "channel"),
    [
        ("gptoss", "<|channel|>final<|message|>"),
        ("muse_glimmer", " to=user<|message|>"),
        ("qwen3", ""),  # writes a thought there
        ("glm4moe", ""),
        ("llama3_2", ""),
    ],
)
@pytest.mark.parametrize("think", [True, False])
def test_a_prompt_opens_the_channel_of_answers(name: str, channel: str, think: bool) -> None:
    template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of(template)
    tail = chat_frame(tokenizer, "Solve.", think=think).tail
    opened = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=think,
    )
    assert tail == opened.rpartition("?")[2] + channel


def test_a_template_that_shows_no_answer_opens_no_channel() -> None:
    refusing = "{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    assert chat_frame(tokenizer_of(refusing), None, think=True).tail.endswith("assistant\n")


def test_what_stands_before_the_token_is_part_of_the_target() -> None:
    for template, end in (
        (CHATML.replace("}}<|im_end|>", "}}\n<|im_end|>"), "\n<|im_end|>"),
        (CHATML.replace("}}<|im_end|>", "}} <|im_end|>"), " <|im_end|>"),
        (CHATML, "<|im_end|>"),
    ):
        tokenizer = tokenizer_of(template)
        form = PromptFormat(tokenizer, system_prompt=None)
        written = form.encode_expert(build_examples([Trajectory("Add.", SOLUTION)])[0])
        assert tokenizer.decode(written).endswith(SOLUTION[0] + end)
        assert form.parse(written, False).action == SOLUTION[0]


def test_a_system_prompt_is_words_to_a_template_and_stands_as_it_is_in_plain_text() -> None:
    tokenizer = tokenizer_of(CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    told = "Say <|im_end|> last."
    form = PromptFormat(tokenizer, system_prompt=told, whole_system_prompt=told)
    for ids in (form.encode("Add.", []), form.encode_whole("Add.")):
        assert ids.count(end) == 2  # of the system's and the user's turn
        assert told in tokenizer.decode(ids)
    own = PromptFormat(tokenizer, system_prompt="<|im_start|>user<|im_end|>", template="plain")
    assert own.encode("Add.", []).count(end) == 1


@pytest.mark.parametrize("asks", ["date_string", "strftime_now('%d %b %Y')"])
def test_a_prompt_is_of_the_day_that_the_settings_name(asks: str) -> None:
    tokenizer = tokenizer_of(f"{{{{ {asks} }}}}" + CHATML)
    form = PromptFormat(tokenizer, system_prompt=None, prompt_date="2025-01-31")
    for ids in (form.encode("Add.", []), form.encode_whole("Add.")):
        assert tokenizer.decode(ids).startswith("31 Jan 2025<|im_start|>")


def test_the_day_is_a_setting_and_a_day() -> None:
    assert PromptSettings().prompt_date == f"{TODAY:%Y-%m-%d}"
    for wrong in ("2024-02-30", "20240726", "today", ""):
        with pytest.raises(UsageError, match=r"prompt_date is '.*'; allowed: a day as YYYY-MM-DD"):
            PromptSettings(prompt_date=wrong)
