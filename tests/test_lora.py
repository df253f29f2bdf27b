"""Adapters: what a stage hands to the next is what it trained, never the base alone."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import (
    read_jsonl,
    refused,
    same_weights,
    toy_config,
    toy_trajectories,
    train,
    weights,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

import srl.commands.train
import srl.models.lora
from srl.commands.cli import main
from srl.config.lora import LoraSettings
from srl.errors import UsageError
from srl.models.loading import load_policy
from srl.models.lora import add_adapter, is_adapter_folder, merged_within
from srl.training.progress import ProgressReport
from srl.training.trainer import SRLTrainer
from tests.test_choice import hangs_on_last_digits

peft = pytest.importorskip("peft")

LORA = "{r: 4, lora_alpha: 8, lora_dropout: 0.1}"


def logits(name: str | Path) -> Tensor:
    """What a policy says to a fixed prompt."""
    model, tokenizer = load_policy(str(name))
    ids = tokenizer.encode("case 0 0 7", add_special_tokens=False)
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits


def far(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


@pytest.fixture
def quick(home: Path) -> Path:
    """The current folder; config.yaml trains a policy by SRL, sft.yaml by fine-tuning."""
    values = yaml.safe_load((home / "config.yaml").read_text())
    values |= {"learning_rate": 1e-2, "test_problems": 0, "validation_problems": 2, "max_steps": 2}
    values |= {"whole_max_completion_length": 24, "save_steps": 9}
    (home / "config.yaml").write_text(yaml.safe_dump(values))
    del values["num_generations"]
    (home / "sft.yaml").write_text(yaml.safe_dump({**values, "method": "sft"}))
    return home


def run(*words: str, name: str, config: str = "config.yaml") -> int:
    return main(["train", "--config", config, "--run-name", name, *words])


# ---- from stage to stage -----------------------------------------------------------------------


def test_every_stage_starts_from_what_the_last_one_trained(
    quick: Path, toy_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SFT with an adapter, SRL with another on it, then RLVR on whole solutions."""
    started: dict[str, Tensor] = {}
    trained: dict[str, Tensor] = {}
    save, load = srl.commands.train._save_policy, srl.commands.train.load_policy
    tokenizer = load(str(toy_policy))[1]
    ids = torch.tensor([tokenizer.encode("case 0 0 7", add_special_tokens=False)])

    def say(model: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            return model.eval()(ids).logits.clone()

    def loading(name: str, **further: object):  # type: ignore[no-untyped-def]
        model, tokenizer = load(name, **further)
        started.setdefault(now, say(model))  # the first load of a stage is its start
        return model, tokenizer

    def saving(trainer, tokenizer, run):  # type: ignore[no-untyped-def]
        trained[now] = say(trainer.model)  # the adapter still beside its base
        return save(trainer, tokenizer, run)

    monkeypatch.setattr(srl.commands.train, "load_policy", loading)
    monkeypatch.setattr(srl.commands.train, "_save_policy", saving)
    words = ("--lora", LORA, "--validation_problems", "0", "--eval_strategy", "'no'")
    now = "sft"
    assert run(*words, name=now, config="sft.yaml") == 0
    now = "srl"
    assert run(*words, "--model", "runs/sft/policy", name=now) == 0
    now = "rlvr"
    words = (*words, "--targets", "whole", "--rewards", "{answer: 1.0, similarity: 1.0}")
    assert run(*words, "--model", "runs/srl/adapter", name=now) == 0

    base = logits(toy_policy)
    assert far(started["sft"], base) == 0
    for before, after in (("sft", "srl"), ("srl", "rlvr")):
        assert far(started[after], trained[before]) < 1e-5
    for name, end in trained.items():
        assert far(end, started[name]) > 1e-3, name
        assert far(started[name] if name != "sft" else end, base) > 1e-3, name
        # The whole model, and the adapter alone on what it was trained on.
        assert far(logits(f"runs/{name}/policy"), end) < 1e-5
        assert far(logits(f"runs/{name}/adapter"), end) < 1e-5
        assert not is_adapter_folder(Path("runs", name, "policy"))
        assert is_adapter_folder(Path("runs", name, "adapter"))
    # On an adapter's folder, not on that one's base: else SRL's stage would be lost.
    config = json.loads(Path("runs/rlvr/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "runs/srl/adapter"


def test_a_policy_that_was_not_saved_as_trained_fails_loudly(
    quick: Path, monkeypatch: pytest.MonkeyPatch, toy_policy: Path
) -> None:
    monkeypatch.setattr(srl.models.lora, "merge_from", lambda model, folder: model)
    monkeypatch.setattr("srl.models.loading.merge_from", lambda model, folder: model)
    with pytest.raises(RuntimeError, match="saved in runs/one/adapter is not the one .* differ by"):
        run("--lora", LORA, name="one", config="sft.yaml")


def test_rounding_that_grows_with_the_logits_is_no_other_policy(
    quick: Path, monkeypatch: pytest.MonkeyPatch, toy_policy: Path
) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    with torch.no_grad():
        model.model.norm.weight *= 1e4
    model.save_pretrained("loud")
    tokenizer.save_pretrained("loud")
    words = ("--lora", LORA, "--model", "loud", "--max_steps", "1", "--validation_problems", "0")
    words = (*words, "--eval_strategy", "'no'")
    assert run(*words, name="one", config="sft.yaml") == 0
    assert logits("runs/one/policy").abs().max() > 1e4
    assert far(logits("runs/one/policy"), logits("loud")) > 1
    monkeypatch.setattr("srl.models.loading.merge_from", lambda model, folder: model)
    with pytest.raises(RuntimeError, match="saved in runs/two/adapter is not the one .* differ by"):
        run(*words, name="two", config="sft.yaml")


def test_only_the_adapter_is_trained(toy_policy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(str(toy_policy))
    model = add_adapter(model, LoraSettings(r=4))
    before = weights(model)
    SRLTrainer(
        model, toy_config(tmp_path, max_steps=2), toy_trajectories(20), processing_class=tokenizer
    ).train()
    changed = {name for name, value in weights(model).items() if not value.equal(before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in changed}
    assert layers == {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize("config", ["config.yaml", "sft.yaml"])
def test_a_resumed_run_equals_a_straight_one(
    quick: Path, config: str, toy_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, so that the random numbers must go on as well."""
    words = ("--lora", LORA, "--max_steps", "4", "--validation_problems", "0")
    words = (*words, "--eval_strategy", "'no'")
    assert run(*words, name="straight", config=config) == 0
    on_step_end = ProgressReport.on_step_end

    def interrupted(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "on_step_end", interrupted)
        assert run(*words, name="stopped", config=config) == 130
    torch.rand(3)
    assert far(logits("runs/stopped/checkpoint-3"), logits(toy_policy)) > 1e-3
    assert main(["resume", "stopped"]) == 0
    for kind in ("policy", "adapter"):
        one, two = (
            load_file(next(Path(f"runs/{name}/{kind}").glob("*.safetensors")))
            for name in ("straight", "stopped")
        )
        assert same_weights(one, two)
    losses = [
        [line.get("loss") for line in read_jsonl(quick / "runs" / name / "metrics.jsonl")]
        for name in ("straight", "stopped")
    ]
    assert losses[0] == losses[1]


def test_the_best_checkpoint_of_an_adapter_is_the_policy(quick: Path) -> None:
    words = ("--max_steps", "6", "--save_steps", "2", "--save_total_limit", "9")
    # Far too large a rate, so that the best is not the last.
    best = ("--learning_rate", "1.0", "--load_best_model_at_end", "true",
            "--metric_for_best_model", "eval_loss")  # fmt: skip
    assert run(*words, *best, "--lora", LORA, name="one", config="sft.yaml") == 0
    losses = {
        line["step"]: float(str(line["eval_loss"]))
        for line in read_jsonl(quick / "runs/one/metrics.jsonl")
        if "eval_loss" in line
    }
    step = min(losses, key=losses.__getitem__)
    assert far(logits("runs/one/policy"), logits(f"runs/one/checkpoint-{step}")) < 1e-3
    others = [far(logits("runs/one/policy"), logits(f"runs/one/checkpoint-{n}")) for n in losses]
    assert sum(distance > 1e-2 for distance in others) == 2


# ---- adapters that cannot be used --------------------------------------------------------------


@pytest.fixture
def adapter(toy_policy: Path, tmp_path: Path) -> Path:
    """An adapter on the toy policy that changes what it says, tokenizer beside it."""
    model, tokenizer = load_policy(str(toy_policy))
    model = add_adapter(model, LoraSettings(r=2))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.5)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapter_is_a_whole_model_once_loaded(adapter: Path, toy_policy: Path) -> None:
    model, _ = load_policy(str(adapter))
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert far(logits(adapter), logits(toy_policy)) > 0.1
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    assert far(logits(adapter), logits(toy_policy)) > 0.1  # with the base's tokenizer


LAYERS = ["q_proj", "v_proj"]


def adapted(base: Path, folder: Path, **changes: object) -> tuple[Path, Tensor]:
    """The folder of an adapter that peft made on `base`, and the logits of both together."""
    import peft

    model, _ = load_policy(str(base))
    torch.manual_seed(0)
    config = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": LAYERS, **changes}
    model = peft.get_peft_model(model, peft.LoraConfig(**config))
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.3 * torch.randn_like(value)
        model.save_pretrained(folder)
        return folder, model.eval()(torch.arange(5, 60)[None]).logits


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"use_rslora": True, "bias": "all"},
        {"target_modules": "all-linear", "modules_to_save": ["norm"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [5, 9]},
    ],
)
def test_adapters_of_any_kind_are_merged_as_they_were_trained(
    toy_policy: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """The base's embeddings and LM head are one tensor; a copy of one of them is no longer."""
    folder, expected = adapted(toy_policy, tmp_path / "adapter", **changes)
    model, _ = load_policy(str(folder))
    model.save_pretrained(tmp_path / "saved")
    load_policy(str(toy_policy))[1].save_pretrained(tmp_path / "saved")
    for name in (folder, tmp_path / "saved"):
        with torch.no_grad():
            found = load_policy(str(name))[0].eval()(torch.arange(5, 60)[None]).logits
        assert far(found, expected) < 1e-4


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_merge_that_changes_more_than_the_adapter_did_is_refused(
    toy_policy: Path, tmp_path: Path, target: str
) -> None:
    folder, _ = adapted(toy_policy, tmp_path / "adapter", target_modules=[*LAYERS, target])
    with pytest.raises(UsageError, match=r"cannot be merged .* differ by .*tie_word_embeddings"):
        load_policy(str(folder))


def test_an_adapter_on_a_shared_weight_is_not_trained(toy_policy: Path, tmp_path: Path) -> None:
    import peft

    model, tokenizer = load_policy(str(toy_policy))
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=[*LAYERS, "embed_tokens"])
    model = peft.get_peft_model(model, lora)
    with pytest.raises(UsageError, match=r"embed_tokens, whose weight lm_head uses too"):
        SRLTrainer(model, toy_config(tmp_path), toy_trajectories(20), processing_class=tokenizer)


def lose_a_tensor(folder: Path) -> None:
    held = load_file(folder / "adapter_model.safetensors")
    del held[sorted(held)[0]]
    save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: edit(f, base_model_name_or_path="./gone"),
         r"adapter is an adapter on the model './gone', which cannot be loaded: there is no model "
         r"folder './gone'.*set base_model_name_or_path in .*adapter_config.json"),
        (lambda f: (f / "model.safetensors").touch(), "holds a whole model and an adapter"),
        (lambda f: edit(f, base_model_name_or_path=None), "does not say which model it belongs to"),
        (lambda f: edit(f, base_model_name_or_path=str(f)), "names itself as its base"),
        (lambda f: edit(f, peft_type="PROMPT_TUNING"), "of type PROMPT_TUNING; only LORA"),
        (lambda f: edit(f, r=3), "cannot load the adapter in .* on its base: "),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json cannot be re"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no weights: adapter_model.saf"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
         "has pickled weights only"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x08x" * 9), "cannot load the"),
        (lose_a_tensor, "does not fit its base: 1 tensors are in one and not in the other, base_"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be_loaded(adapter: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    load_policy(str(adapter))
    spoil(adapter)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        load_policy(str(adapter))


def test_without_peft(
    quick: Path, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(adapter, quick / "elsewhere")
    monkeypatch.setattr(srl.models.lora, "find_spec", lambda name: None)
    install = r"needs peft, which is not installed: pip install 'stepwise-srl\[lora\]'"
    refused(capsys, train("--lora", "{r: 4}"), f"lora {install}")
    refused(capsys, train("--model", "elsewhere"), f"elsewhere, an adapter, {install}")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("{rank: 4}", "lora: unknown key 'rank'; "),
        ("{lora_alhpa: 4}", "lora: unknown key 'lora_alhpa'; did you mean lora_alpha?"),
        ("{r: 0}", "lora.r is 0; give a whole number of 1 or more"),
        ("{r: true}", "lora.r is True"),
        ("{lora_alpha: 1.5}", "lora.lora_alpha is 1.5"),
        ("{lora_dropout: 1}", "lora.lora_dropout is 1; give 0 or more, and less than 1"),
        ("{target_modules: []}", r"lora.target_modules is \[\]; give all-linear"),
        ("{target_modules: [q_porj]}", r"lora.target_modules \['q_porj'\]: "),
        ("{target_modules: [q_proj, lm_head]}", "takes in the LM head"),
        ("{target_modules: [q_proj, embed_tokens]}",
         "take in model.embed_tokens, whose weight lm_head uses too: .* or give all-linear"),
        ("16", "lora is 16; give a block such as"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(
    quick: Path, capsys: pytest.CaptureFixture[str], lora: str, message: str
) -> None:
    refused(capsys, train("--lora", lora), message)


def test_settings_are_written_down(quick: Path) -> None:
    assert LoraSettings.of(None) is None
    assert LoraSettings.of({}) == LoraSettings(16, 32, 0.0, "all-linear")
    assert train("--lora.r", "2", "--lora.target_modules", "[q_proj]", "--max_steps", "1") == 0
    config = yaml.safe_load(Path("runs/one/config.yaml").read_text())
    assert (config["method"], config["lora"]) == (
        "srl",
        {"r": 2, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj"]},
    )
    saved = json.loads(Path("runs/one/adapter/adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["target_modules"]) == (2, 32, ["q_proj"])


def test_a_merge_may_move_a_token_as_far_as_rounding_does() -> None:
    """Some tokens of deep models hang on last digits: one bound for all would refuse good ones."""
    adapted = peft.get_peft_model(
        hangs_on_last_digits(), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    ).eval()
    torch.manual_seed(0)
    ids = torch.tensor([[7 * i % 62 + 1 for i in range(40)]])

    def logits_of(model: torch.nn.Module) -> Tensor:
        return model(input_ids=ids).logits[0].detach()

    with torch.no_grad():
        for name, values in adapted.named_parameters():
            if "lora_B" in name:
                values.normal_(0, 0.02)
        allowed, beside = merged_within(adapted, logits_of)
        with adapted.disable_adapter():
            without = logits_of(adapted)
        differences = (logits_of(adapted.merge_and_unload()) - beside).abs().amax(-1)
    assert bool((differences <= allowed).all())
    assert differences.max() > 1e-4 + 1e-3 * far(beside, without)
    assert allowed.median() < 0.5 * allowed.max()
    assert not bool(((without - beside).abs().amax(-1) <= allowed).any())
