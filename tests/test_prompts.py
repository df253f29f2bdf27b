"""Prompts and parsing for each kind of template and tokenizer that has broken a public trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import CHATML, TokenizerMaker, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.prompts import PAPER_EVALUATION_PROMPT, PAPER_SYSTEM_PROMPT
from environments.splitting import split_numbered
from environments.types import Trajectory
from srl.data.prompts import FAILURES, ParsedStep, PromptFormat, ensure_pad, parse_text, parse_whole
from srl.data.steps import build_examples
from srl.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

S1K = Path(__file__).parents[2] / "shared" / "data" / "s1k_trajectories.jsonl"
ROLES = ("<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>")

TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
OPENING = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%")
OPENING_BARE = CHATML.replace("assistant\n{%", "assistant\n<think>{%")
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DROPS_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
)
LLAMA = "{{ bos_token }}" + CHATML
QWEN3 = CHATML.replace(
    "assistant\n{%",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{%",
)


def chat(
    template: str,
    special: tuple[str, ...] = ROLES + TAGS,
    *,
    bos: bool = False,
    learn_from: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    return build_tokenizer(chat_template=template, special=special, bos=bos, learn_from=learn_from)


def text_of(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


# ---- prompts ----------------------------------------------------------------------------------


def test_plain_layout(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    form = PromptFormat(byte_tokenizer, system_prompt="Be brief.")
    assert form.template == "plain"
    assert not form.opens_thought
    ids = form.encode("Add.", ["1 + 1 = 2", " 2 + 1 = 3\n"], "Sum up")
    assert text_of(byte_tokenizer, ids) == (
        "Be brief.\n\nAdd.\n\n1 + 1 = 2\n\n2 + 1 = 3\n\nNext step: Sum up\n\n"
    )


def test_no_system_prompt_is_no_system_message(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    form = PromptFormat(chat_tokenizer, system_prompt=None)
    assert text_of(chat_tokenizer, form.encode("Add.", [])) == (
        "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [CHATML, TRIMMING, OPENING, OPENING_BARE, LLAMA, QWEN3])
@pytest.mark.parametrize("special", [ROLES + TAGS, ROLES, ()], ids=["tags", "roles", "none"])
def test_chat_prompts_read_as_the_template_renders_them(
    template: str, special: tuple[str, ...]
) -> None:
    tokenizer = chat(template, special, bos=template is LLAMA)
    form = PromptFormat(tokenizer, system_prompt=PAPER_SYSTEM_PROMPT)
    messages = [
        {"role": "system", "content": PAPER_SYSTEM_PROMPT},
        {"role": "user", "content": "Add {{ x }}.\n\nstep one\n\nstep  two\nends"},
    ]
    rendered = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert form.encode(" Add {{ x }}.\n", ["step one", "step  two\nends "]) == rendered


def test_example_and_whole_solution(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    form = PromptFormat(chat_tokenizer, system_prompt="One step.")
    example = build_examples(
        [Trajectory("Add.", ("1. **First** a", "2. **Second** b", "c"))], step_title="given"
    )[1]
    assert form.encode_example(example) == form.encode("Add.", ["1. **First** a"], "Second")
    whole = text_of(chat_tokenizer, form.encode_whole("Add."))
    assert whole.startswith(f"<|im_start|>system\n{PAPER_EVALUATION_PROMPT}<|im_end|>")
    assert whole.endswith("user\nAdd.<|im_end|>\n<|im_start|>assistant\n")
    assert "One step." not in whole
    bare = PromptFormat(chat_tokenizer, system_prompt=None, whole_system_prompt=None)
    assert bare.encode_whole("Add.") == bare.encode("Add.", [])


MERGED = (CHATML, "Add the numbers.\n\nFirst step: 1 + 1 = 2.\n\nThe sum is 3." * 20)
FORMS = {
    "plain bytes": PromptFormat(build_tokenizer(), system_prompt=None),
    "plain merges": PromptFormat(build_tokenizer(learn_from=MERGED), system_prompt="Add."),
    "chat merges": PromptFormat(chat(CHATML, learn_from=MERGED), system_prompt="Add."),
    "chat trim bos": PromptFormat(chat(TRIMMING, bos=True), system_prompt=PAPER_SYSTEM_PROMPT),
    "chat opening": PromptFormat(chat(OPENING, learn_from=MERGED), system_prompt=None),
}
words = st.text(alphabet="aAd. 1=\n\té<", max_size=12)


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=40)
@given(problem=words, steps=st.lists(words, max_size=4), title=st.none() | words)
def test_nested_contexts_are_token_prefixes(
    name: str, problem: str, steps: list[str], title: str | None
) -> None:
    form = FORMS[name]
    *body, tail = form.encode_segments(problem, steps, title)
    assert form.encode(problem, steps, title) == [*chain(*body), *tail]
    assert len(body) == 1 + len(steps)
    for k in range(len(steps)):
        *shorter, shorter_tail = form.encode_segments(problem, steps[:k], title)
        assert shorter == body[: k + 1]
        assert shorter_tail == tail


def test_plain_prompts_get_one_bos_where_the_tokenizer_adds_one() -> None:
    tokenizer = build_tokenizer(bos=True)
    form = PromptFormat(tokenizer, system_prompt=None)
    ids = form.encode("Add.", ["one", "two"])
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert form.encode_whole("Add.").count(tokenizer.bos_token_id) == 1
    without = build_tokenizer()
    assert PromptFormat(without, system_prompt=None).encode("a", []) == ids_of(without, "a\n\n")


def test_chat_prompts_get_the_bos_of_the_template_only() -> None:
    for template, count in ((LLAMA, 1), (CHATML, 0)):
        tokenizer = chat(template, bos=True)
        ids = PromptFormat(tokenizer, system_prompt="s").encode("Add.", ["one"])
        assert ids.count(tokenizer.bos_token_id) == count


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_the_user_says_it(template: str) -> None:
    tokenizer = chat(template)
    text = text_of(tokenizer, PromptFormat(tokenizer, system_prompt="Be brief.").encode("Add.", []))
    assert "Be brief.\n\nAdd." in text
    assert "system" not in text
    silent = PromptFormat(tokenizer, system_prompt=None, whole_system_prompt=None)
    assert "Be brief" not in text_of(tokenizer, silent.encode("Add.", []))


@pytest.mark.parametrize(("template", "opens"), [
    (CHATML, False), (QWEN3, False), (OPENING, True), (OPENING_BARE, True),
])  # fmt: skip
def test_the_opener_in_the_prompt_is_seen(template: str, opens: bool) -> None:
    assert PromptFormat(chat(template), system_prompt="s").opens_thought is opens
    assert not PromptFormat(chat(template), system_prompt="s", template="plain").opens_thought


@pytest.mark.parametrize("template", [QWEN3, OPENING, OPENING_BARE])
def test_a_policy_that_does_not_think_gets_a_closed_thought(template: str) -> None:
    tokenizer = chat(template)
    form = PromptFormat(tokenizer, system_prompt="s", think=False)
    assert not form.opens_thought
    text = text_of(tokenizer, form.encode("Add.", []))
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_dated_templates_read_the_same_tomorrow() -> None:
    tokenizer = chat("{{ date_string or strftime_now('%d %b %Y') }}" + CHATML)
    form = PromptFormat(tokenizer, system_prompt=None)
    assert text_of(tokenizer, form.encode("Add.", [])).startswith("26 Jul 2024")


def test_segments_get_no_space_of_the_tokenizers_own() -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh"]
    inner = Tokenizer(
        models.BPE({t: i for i, t in enumerate(letters)}, [], unk_token="<unk>", byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    inner.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    form = PromptFormat(tokenizer, system_prompt=None)
    assert text_of(tokenizer, form.encode("abc", ["def", "a b"])) == "abc\n\ndef\n\na b\n\n"
    assert form.encode("abc", ["def", "a b"]) == ids_of(tokenizer, "abc\n\ndef\n\na b\n\n")


def test_templates_that_cannot_be_used_are_refused(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match="has no chat template; give template: plain"):
        PromptFormat(byte_tokenizer, system_prompt=None, template="chat")
    with pytest.raises(UsageError, match="template is 'chatml'; allowed: auto, chat, plain"):
        PromptFormat(byte_tokenizer, system_prompt=None, template="chatml")  # type: ignore[arg-type]
    for template, what in {
        "no user words": "shows the user's message 0 times",
        CHATML + CHATML: "shows the user's message 2 times",
        "{{ raise_exception('tools needed') }}": "raises TemplateError: tools needed",
        "{{ messages[0]['content'] + 1 }}": "raises TypeError",
    }.items():
        with pytest.raises(UsageError, match=f"{what}.*give template: plain"):
            PromptFormat(chat(template), system_prompt="s")


def test_pad_and_eos(make_tokenizer: TokenizerMaker) -> None:
    padless = make_tokenizer(pad=None)
    ensure_pad(padless)
    assert padless.pad_token_id == padless.eos_token_id
    own = make_tokenizer()
    ensure_pad(own)
    assert own.pad_token_id != own.eos_token_id
    endless = make_tokenizer(eos=None, pad=None)
    with pytest.raises(UsageError, match="neither a padding token nor an EOS"):
        ensure_pad(endless)
    with pytest.raises(UsageError, match="has no EOS token"):
        PromptFormat(endless, system_prompt=None)


# ---- completions ------------------------------------------------------------------------------

GOOD = "<think>2 and 2</think>\n2 + 2 = 4"


@pytest.mark.parametrize("template", [None, CHATML, OPENING, OPENING_BARE, TRIMMING, QWEN3])
@pytest.mark.parametrize("tags", ["special tokens", "tokens", "text"])
def test_completions_of_every_kind_of_template(template: str | None, tags: str) -> None:
    special = ROLES + TAGS if tags == "special tokens" else ROLES
    tokenizer = build_tokenizer(chat_template=template, special=special)
    if tags == "tokens":
        assert tokenizer.add_tokens(list(TAGS)) == 2
    form = PromptFormat(tokenizer, system_prompt="s")
    written = GOOD.removeprefix("<think>") if form.opens_thought else GOOD
    ids = ids_of(tokenizer, written)
    parsed = ParsedStep("2 and 2", "2 + 2 = 4")
    assert form.parse(ids, False) == parsed
    assert form.parse([*ids, tokenizer.eos_token_id], False) == parsed
    assert form.parse(ids, True).failure == "truncated"
    if form.opens_thought:
        assert form.parse(ids_of(tokenizer, "\n" + GOOD), False) == parsed
        twice = ids_of(tokenizer, "<think>" + GOOD)
        assert form.parse(twice, False).failure == "repeated_tag"
    else:
        missing = ids_of(tokenizer, GOOD.removeprefix("<think>"))
        assert form.parse(missing, False).failure == "missing_open"


def test_end_and_padding_tokens_are_no_text() -> None:
    tokenizer = build_tokenizer(eos="<end>", pad="<end>", special=("<turn>", *TAGS))
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    many = PromptFormat(tokenizer, system_prompt=None, stop_ids={tokenizer.eos_token_id, turn})
    ids = ids_of(tokenizer, GOOD)
    for end in ([tokenizer.eos_token_id], [turn], [turn] + [tokenizer.pad_token_id] * 3):
        assert many.parse(ids + end, False) == ParsedStep("2 and 2", "2 + 2 = 4")
    assert many.stop_ids == {tokenizer.eos_token_id, turn}
    # A stop token need not be marked as special.
    dot = ids_of(tokenizer, ".")[0]
    form = PromptFormat(tokenizer, system_prompt=None, stop_ids=[dot])
    assert form.parse([*ids, dot], False).action == "2 + 2 = 4"


def test_special_tokens_inside_are_seen_and_at_the_ends_are_not(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    form = PromptFormat(chat_tokenizer, system_prompt=None)
    inside = ids_of(chat_tokenizer, "<|im_start|><think>a<|im_end|></think>b<|im_start|>")
    assert form.parse(inside, False) == ParsedStep("a<|im_end|>", "b")
    assert form.parse([], False).failure == "missing_open"
    assert form.parse([chat_tokenizer.eos_token_id] * 2, True).failure == "truncated"


def test_completions_of_a_policy_that_does_not_think(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    form = PromptFormat(chat_tokenizer, system_prompt=None, think=False)
    assert form.parse(ids_of(chat_tokenizer, " 2 + 2 = 4\n"), False) == ParsedStep("", "2 + 2 = 4")
    assert form.parse(ids_of(chat_tokenizer, GOOD), False).failure == "unexpected_tag"
    assert form.parse([], False).failure == "empty_action"


TWO_STEPS = "3. **Add** 1 + 1\n4. **Double** 2 * 2"


@pytest.mark.parametrize(
    ("text", "thought", "action", "failure"),
    [
        ("<think></think>x", "", "x", None),
        ("  \n<think> t\n</think>\n\n x\n", "t", "x", None),
        ("x", "", "x", "missing_open"),
        ("", "", "", "missing_open"),
        ("t</think>x", "t", "x", "missing_open"),
        ("<think>t", "t", "", "missing_close"),
        ("t</think>x<think>u", "u", "", "missing_close"),
        ("<think>t<think>u", "t<think>u", "", "missing_close"),
        ("<think>t</think>x<think>u</think>y", "t", "x<think>u</think>y", "repeated_tag"),
        ("<think>t</think>x</think>", "t", "x</think>", "repeated_tag"),
        ("well <think>t</think>x", "t", "x", "text_before_think"),
        ("well <think>t</think>", "t", "", "text_before_think"),
        ("<think>t</think> \n", "t", "", "empty_action"),
        (f"<think>t</think>{TWO_STEPS}", "t", TWO_STEPS, "several_steps"),
        ("<THINK>t</THINK>x", "", "<THINK>t</THINK>x", "missing_open"),
    ],
)
def test_failures_and_what_can_be_read(
    text: str, thought: str, action: str, failure: str | None
) -> None:
    assert parse_text(text, False) == ParsedStep(thought, action, failure)
    assert parse_text(text, True) == ParsedStep(thought, action, "truncated")


def test_every_failure_name_occurs() -> None:
    texts = ["x", "<think>t", "<think></think></think>", "a<think></think>", "<think></think>",
             f"<think></think>{TWO_STEPS}"]  # fmt: skip
    seen = {parse_text(text, False).failure for text in texts}
    seen |= {parse_text("", True).failure, parse_text(GOOD, False, think=False).failure}
    assert seen == set(FAILURES)


@pytest.mark.parametrize(
    ("action", "several"),
    [
        (TWO_STEPS, True),
        ("The plan:\n1. **Add**\n2. **Double**", True),
        ("3. **Cases**\n1. **Even** 2\n2. **Odd** 1", False),
        ("1. **Cases**\n   1. **Even**\n   2. **Odd**", False),
        ("3. **Value** is\n4.5 and 4. then", False),
        ("3. **Only**", False),
        ("3. Add\n4. Double", False),
        ("9. **Add** x\n11. **Skip** y", False),
    ],
)
def test_what_counts_as_several_steps(action: str, several: bool) -> None:
    failure = parse_text(f"<think></think>{action}", False).failure
    assert (failure == "several_steps") is several
    assert parse_whole(f"<think></think>{action}", False).failure is None


pieces = st.sampled_from(
    ["1. **A** x", "2. **B**", "3. **C** y", "  2. **b**", "2.5", "z", "", "-"]
)


@given(st.lists(pieces, max_size=9))
def test_the_splitters_own_steps_are_single_steps(lines: list[str]) -> None:
    text = "\n".join(["1. **Start**", *lines])
    for step in split_numbered(text):
        assert parse_text(f"<think></think>{step}", False).failure is None


@pytest.mark.skipif(not S1K.exists(), reason="needs ../shared/data/s1k_trajectories.jsonl")
def test_real_expert_steps_keep_the_format() -> None:
    steps = [s for line in S1K.read_text("utf-8").splitlines() for s in json.loads(line)["steps"]]
    assert len(steps) > 100
    for step in steps:
        assert parse_text(f"<think>t</think>\n{step}", False) == ParsedStep("t", step.strip())


tagged = st.lists(st.sampled_from([*TAGS, "\n", "1. **a** ", "2. **b** "]) | st.text(max_size=5))


@given(tagged.map("".join), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_parsing_never_raises_and_names_its_failure(
    text: str, truncated: bool, think: bool, opens_thought: bool, whole: bool
) -> None:
    parse = parse_whole if whole else parse_text
    parsed = parse(text, truncated, think=think, opens_thought=opens_thought)
    assert parsed.failure is None or parsed.failure in FAILURES
    assert (parsed.failure == "truncated") is truncated
    if parsed.failure is None:
        assert parsed.action
        assert all(line in text for line in parsed.action.splitlines())
        assert all(line in text for line in parsed.thought.splitlines())
        assert not any(tag in parsed.thought + parsed.action for tag in TAGS)


@pytest.mark.parametrize(
    ("text", "thought", "action", "failure"),
    [
        ("a\nb", "", "a\nb", None),
        ("<think> t </think>\na\n\n<think>u</think> b ", "t\nu", "a\nb", None),
        ("a <think>t</think> b", "t", "a\nb", None),
        ("a\n<think>t", "t", "a", "missing_close"),
        ("t</think>a", "", "t\na", "missing_open"),
        ("<think>t<think>u</think>a", "t\nu", "a", "repeated_tag"),
        ("<think>t</think>", "t", "", "empty_action"),
        ("", "", "", "empty_action"),
    ],
)
def test_whole_solutions_may_think_anywhere(
    text: str, thought: str, action: str, failure: str | None
) -> None:
    assert parse_whole(text, False) == ParsedStep(thought, action, failure)
    assert parse_whole(text, True) == ParsedStep(thought, action, "truncated")
    if "think>" in text:
        assert parse_whole(text, False, think=False).failure == "unexpected_tag"
    else:
        assert parse_whole(text, False, think=False) == ParsedStep(thought, action, failure)


def test_a_whole_solution_whose_thought_the_prompt_opened() -> None:
    expected = ParsedStep("t", "a")
    assert parse_whole("t</think>a", False, opens_thought=True) == expected
    assert parse_whole("<think>t</think>a", False, opens_thought=True) == expected


def test_whole_rows_are_whole_problems(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    trajectory = Trajectory("Add.", ("x = 1", "The answer is 1."), "1")
    (row,) = build_examples([trajectory], targets="whole")
    form = PromptFormat(chat_tokenizer, system_prompt="S", whole_system_prompt="W")
    assert form.encode_example(row) == form.encode_whole("Add.") != form.encode("Add.", ())
    assert (row.expert_step, row.previous_steps) == ("x = 1\nThe answer is 1.", ())
    assert (row.step_index, row.num_steps) == (0, 1)
    with pytest.raises(UsageError, match="step_title is 'given'.* set step_title: off"):
        build_examples([trajectory], targets="whole", step_title="given")


plain_text = st.text(max_size=30).map(str.strip).filter(lambda text: "think>" not in text)


@given(plain_text, plain_text.filter(bool))
def test_a_well_formed_completion_round_trips(thought: str, action: str) -> None:
    expected = ParsedStep(thought, action)
    assert parse_text(f"<think>{thought}</think>\n{action}", False) == expected
    assert parse_text(f"{thought}</think>\n{action}", False, opens_thought=True) == expected
    assert parse_text(action, False, think=False) == ParsedStep("", action)
