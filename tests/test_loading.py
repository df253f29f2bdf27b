"""Loading a policy: what is accepted, what is refused, and that nothing is made up in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import build_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2PreTrainedModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from srl.config.parts import PromptSettings
from srl.errors import UsageError
from srl.models.loading import context_limit, fingerprint, load_policy, prompt_format, stop_ids
from srl.models.vocabulary import check_ids
from srl.rollout.choice import way_of

WEIGHTS = "model.safetensors"


def build_model(**changes: object) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        **{
            "vocab_size": 260,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            **changes,
        }
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    build_model(tie_word_embeddings=request.param).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_float32_whatever_the_checkpoint(folder: Path, dtype: torch.dtype) -> None:
    saved = build_model().to(dtype)
    saved.save_pretrained(folder)
    model, tokenizer = load_policy(str(folder))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.float()), name
    assert tokenizer.decode(tokenizer.encode("2 + 2")) == "2 + 2"
    assert context_limit(model) == 64


def test_padding_is_ensured(folder: Path) -> None:
    build_tokenizer(pad=None).save_pretrained(folder)
    _, tokenizer = load_policy(str(folder))
    assert tokenizer.pad_token == "<eos>"
    # A padding token that was added later, and the model was not resized for
    late = build_tokenizer(pad=None, special=tuple(f"<{n}>" for n in range(9)))
    late.add_special_tokens({"pad_token": "<late>"})
    late.save_pretrained(folder)
    assert late.pad_token_id >= 260
    assert load_policy(str(folder))[1].pad_token == "<eos>"


def test_a_tokenizer_longer_than_the_embeddings_is_refused(folder: Path) -> None:
    """But not one with special tokens that no prompt is made of."""
    build_tokenizer(special=("<1>", "<2>", "<image>", "<think>")).save_pretrained(folder)
    message = r"2 tokens more than .*'<think>' has the id 261, and the model 260 .*resize_token_emb"
    with pytest.raises(UsageError, match=message):
        load_policy(str(folder))
    plain = build_tokenizer()
    plain.add_tokens(["cups", "litres", "metres"])  # any text may hold these
    plain.save_pretrained(folder)
    with pytest.raises(UsageError, match="1 tokens more than .*'metres' has the id 260"):
        load_policy(str(folder))
    build_tokenizer(special=("<1>", "<2>", "<image>")).save_pretrained(folder)
    model, tokenizer = load_policy(str(folder))
    assert len(tokenizer) == 261
    with pytest.raises(UsageError, match="spells out the token of the id 260"):
        check_ids(model, [tokenizer.encode("a"), tokenizer.encode("an <image>")])


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_a_model_brings_is_not_run(
    folder: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does anything ask on the terminal whether it may."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    values = json.loads((folder / file).read_text())
    if file == "config.json":
        values |= {"model_type": "mine", "architectures": ["MyModel"]}
        values["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.MyModel"}
    else:
        values |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["own.Mine", None]}}
    (folder / file).write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"brings Python code of its own .* no code of a model"):
        load_policy(str(folder))
    assert not (folder / "ran").exists()


def test_a_completion_must_be_able_to_end(folder: Path) -> None:
    model, tokenizer = load_policy(str(folder))
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = [260, 9]  # one that is never written does no harm
    assert stop_ids(model, tokenizer) == {260, 9}
    model.generation_config.eos_token_id = 260
    with pytest.raises(UsageError, match=r"no completion could end: .*\[260\].* 260 embeddings"):
        stop_ids(model, tokenizer)


TEXTS = ("So 12 + 3 = 15 cups.\n\n  Then", "Ada's 7", "<think> x</think>é e\u0301")


def test_the_tokenizer_is_the_one_that_was_saved(folder: Path) -> None:
    """Beside a Qwen2 model transformers would cut words in Qwen2's way and not in its own."""
    saved = build_tokenizer(learn_from=TEXTS * 9, special=("<think>",), chat_template="{{ 1 }}")
    saved.save_pretrained(folder)
    model = build_model(vocab_size=len(saved))
    model.save_pretrained(folder)
    _, loaded = load_policy(str(folder))
    assert len(loaded) == len(saved)
    assert loaded.chat_template == saved.chat_template
    for text in TEXTS:
        assert loaded.encode(text) == saved.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def pickle_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_a_size(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"intermediate_size": 8', '"intermediate_size": 16')
    )


def drop_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("config.json"), "is not a model folder: it has no config.json"),
        (remove(WEIGHTS), "has no weights: model.safetensors is missing"),
        (pickle_weights, r"pickled weights only \(pytorch_model.bin\).*save_pretrained"),
        (write(WEIGHTS, b""), "cannot load the model .*header"),
        (write(WEIGHTS, b"\x08garbage" * 9), "cannot load the model .*header"),
        (write("config.json", b"{"), "cannot load the model .*JSON"),
        (write("config.json", b"{}"), "cannot load the model .*model_type"),
        (write("config.json", b'{"model_type": "none"}'), "cannot load the model .*`none`"),
        (write("config.json", b'{"model_type": "vit"}'), "cannot load the model .*ViT"),
        (change_a_size, "cannot load the model"),
        (drop_a_tensor, "incomplete: 1 tensors .* are missing, model.layers.0.mlp.up_proj.weight"),
        (drop_the_tokenizer, "has no tokenizer that can write .*save_pretrained"),
        (remove("tokenizer.json"), "cannot load the model .* tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_used(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    load_policy(str(folder))
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        load_policy(str(folder))


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where", "a/b/c", ""])
def test_a_folder_that_is_not_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no model folder|is not a model folder"):
        load_policy(name)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(UsageError, match="there is no model folder .*config.json.*or a hub name"):
        load_policy(str(folder / "config.json"))


def test_a_hub_name_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"cannot load the model 'nobody/nothing-\d' \(HF_HUB_OFFLINE is set\): .+"
    ):
        load_policy("nobody/nothing-1")


@pytest.mark.parametrize(
    ("listed", "expected"), [(None, {256}), (7, {7, 256}), ([7, 9, 256], {7, 9, 256}), ([], {256})]
)
def test_stop_ids_merge_what_is_known(listed: int | list[int] | None, expected: set[int]) -> None:
    model = build_model()
    model.generation_config.eos_token_id = listed
    tokenizer = build_tokenizer()
    assert tokenizer.eos_token_id == 256
    assert stop_ids(model, tokenizer) == expected
    model.generation_config = None
    assert stop_ids(model, tokenizer) == {256}


def test_stop_ids_without_any() -> None:
    model = build_model()
    model.generation_config.eos_token_id = None
    assert model.generation_config.eos_token_id is None
    with pytest.raises(UsageError, match="no EOS token, so no completion could end"):
        stop_ids(model, build_tokenizer(eos=None))
    model.generation_config.eos_token_id = [5]
    assert stop_ids(model, build_tokenizer(eos=None)) == {5}


def test_the_prompt_format_knows_every_stop_token() -> None:
    model = build_model()
    model.generation_config.eos_token_id = [7, 9]
    form = prompt_format(model, build_tokenizer(), PromptSettings(whole_system_prompt=None))
    assert form.stop_ids == {7, 9, 256}
    assert form.template == "plain"


def test_a_soft_cap_of_the_scores_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    eights = ("hidden_size", "intermediate_size", "head_dim")
    sizes = {**dict.fromkeys(ones, 1), **dict.fromkeys(eights, 8)}
    config = Gemma2Config(vocab_size=260, attn_logit_softcapping=0.1, **sizes)
    torch.manual_seed(0)
    model = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    attention = model.model.layers[0].self_attn
    attention.q_proj.weight.data *= 1000  # scores far above the cap
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    # As transformers 5.17 has it; newer versions take eager attention by themselves.
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    again, _ = load_policy(str(tmp_path))
    ids = torch.arange(1, 40)[None]
    logits = again.eval()(ids).logits
    torch.testing.assert_close(logits, model(ids).logits)
    attention.attn_logit_softcapping = None
    assert not torch.allclose(logits, model(ids).logits, rtol=0.01)


def test_a_sparse_model_as_sft_leaves_it_is_sampled_from_its_cache(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        output_router_logits=True,  # as TRL's SFTTrainer sets it, for the auxiliary loss
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    model, _ = load_policy(str(tmp_path))
    assert way_of(model, share=False).line() == ""


def test_no_context_limit() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=1))
    assert context_limit(model) is None


def test_changed_weights_are_noticed(toy_policy: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_policy, tmp_path / "copy")
    first = fingerprint(str(toy_policy))
    assert fingerprint(str(copy)) == first
    # An adapter stands for its base too
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    words = {"base_model_name_or_path": str(copy), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(words))
    (adapter / "adapter_model.safetensors").write_bytes(b"some")
    adapted = fingerprint(str(adapter))
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "config.json"):
        held = (copy / name).read_bytes()
        (copy / name).write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
        assert fingerprint(str(copy)) != first, name
        assert fingerprint(str(adapter)) != adapted, name
        (copy / name).write_bytes(held)
    assert (fingerprint(str(copy)), fingerprint(str(adapter))) == (first, adapted)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint(str(copy)) != first
    (adapter / "adapter_model.safetensors").write_bytes(b"other")
    assert fingerprint(str(adapter)) != adapted
    words["base_model_name_or_path"] = str(adapter)  # loading says so
    (adapter / "adapter_config.json").write_text(json.dumps(words))
    assert fingerprint(str(adapter))
    assert fingerprint("owner/name") is None
