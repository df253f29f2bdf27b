"""A dense model becomes sparse: exactly, with all that its config says, or not at all."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CHATML, refused
from safetensors.torch import load_file
from tiny_models import DENSE, SPARSE, logits_of, random_model, read_back, save, some_ids
from transformers import AutoTokenizer, GPT2Config, PretrainedConfig, PreTrainedModel

from srl.commands.cli import main
from srl.errors import UsageError
from srl.models import upcycling
from srl.models.experts import Cost, sparse_layers
from srl.models.sparse_config import SHARED_PART, Upcycling, sparse_config
from srl.models.upcycling import reinitialise, upcycle, write_upcycled

COUNTERPART = {
    "qwen2": "qwen2_moe",
    "qwen3": "qwen3_moe",
    "llama": "mixtral",
    "mistral": "mixtral",
}
PLANS = [
    *(Upcycling(8, 1), Upcycling(8, 2), Upcycling(8, 4), Upcycling(8, 2, split=2)),
    *(Upcycling(8, 4, split=2), Upcycling(4, 4, split=4)),
]


@pytest.fixture(params=DENSE)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved model of each dense architecture."""
    root = tmp_path_factory.mktemp("dense")
    return {kind: save(random_model(config), root / kind) for kind, config in DENSE.items()}


def run(model: Path, *words: str, output: str = "sparse") -> int:
    return main(["experts", "upcycle", "--model", str(model), "--output", output, *words])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"top{p.top_k}of{p.num_experts}by{p.split}")
def test_the_sparse_model_computes_the_dense_ones_logits(
    kind: str, plan: Upcycling, folders: dict[str, Path]
) -> None:
    folder = Path("sparse")
    folder.mkdir()
    write_upcycled(str(folders[kind]), folder, plan, lambda words: None)
    dense, sparse = read_back(folders[kind]), read_back(folder)
    ids = some_ids(2, 150)  # more than the check's 64, and than a window of 70
    assert (logits_of(dense, ids) - logits_of(sparse, ids)).abs().max() <= 1e-5
    assert sparse.config.model_type == COUNTERPART[kind]
    layers = sparse_layers(sparse)
    assert [(one.num_experts, one.top_k) for one in layers] == [(plan.num_experts, plan.top_k)] * 2
    # It is no trick of few tokens: the router spreads them, over whole copies.
    routed: list[torch.Tensor] = []
    layers[0].router.register_forward_hook(lambda _, __, out: routed.append(out[2]))
    logits_of(sparse, ids)
    groups = (routed[0] // plan.split).sort(dim=-1).values.view(-1, plan.top_k)
    assert groups.unique().numel() == plan.num_experts // plan.split
    assert (groups[:, :: plan.split] == groups[:, plan.split - 1 :: plan.split]).all()


def test_the_config_is_carried_over(kind: str, folders: dict[str, Path]) -> None:
    assert run(folders[kind], "--num-experts", "4", "--top-k", "2") == 0
    dense, sparse = (read_back(path).config for path in (folders[kind], Path("sparse")))
    names = {
        *["vocab_size", "hidden_size", "num_hidden_layers"],
        *["num_attention_heads", "num_key_value_heads"],
        *["max_position_embeddings", "initializer_range", "rms_norm_eps", "hidden_act"],
        *["tie_word_embeddings", "rope_parameters", "eos_token_id", "attention_dropout"],
        *(["sliding_window"] if kind != "llama" else []),
        *(["head_dim"] if kind != "qwen2" else []),
        *(["layer_types", "use_sliding_window", "max_window_layers"] if kind == "qwen2" else []),
        *(["attention_bias"] if kind == "qwen3" else []),
    }
    for name in names:
        assert getattr(sparse, name) == getattr(dense, name), name
    assert getattr(sparse, "norm_topk_prob", True) is True
    if kind == "qwen2":
        assert sparse.qkv_bias is True
        assert sparse.shared_expert_intermediate_size == 64 // SHARED_PART
    if kind == "llama":
        assert sparse.sliding_window is None
    named = json.loads(Path("sparse/config.json").read_text())
    assert named["architectures"] == [type(read_back(Path("sparse"))).__name__]


def test_tokenizer_template_and_generation_config_come_along(folders: dict[str, Path]) -> None:
    dense = save(read_back(folders["llama"]), Path("dense"))
    values = json.loads((dense / "generation_config.json").read_text())
    values |= {"eos_token_id": [256, 257], "temperature": 0.6, "do_sample": True}
    (dense / "generation_config.json").write_text(json.dumps(values))
    assert run(dense, "--num-experts", "4", "--top-k", "2") == 0
    old, new = (AutoTokenizer.from_pretrained(path) for path in (dense, Path("sparse")))
    assert new.chat_template == CHATML
    assert new.get_vocab() == old.get_vocab()
    text = "<|im_start|>user\n1 + 1 = 2<|im_end|>"
    assert new(text).input_ids == old(text).input_ids
    generation = read_back(Path("sparse")).generation_config
    assert (generation.eos_token_id, generation.temperature) == ([256, 257], 0.6)
    assert generation.do_sample is True


def made(kind: str, plan: Upcycling) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Dense and sparse, with what is drawn anew."""
    dense = random_model(DENSE[kind])
    generator = torch.Generator().manual_seed(plan.seed)
    sparse = upcycle(dense, sparse_config(dense.config, plan, "it"), plan, generator)
    if plan.reinit:
        reinitialise(sparse, dense, plan, generator)
    return dense, sparse


@pytest.mark.parametrize("split", [1, 2])
def test_a_share_of_every_expert_is_drawn_anew(kind: str, split: int) -> None:
    plan = Upcycling(8, 4, split=split, reinit=0.25)
    dense, sparse = made(kind, plan)
    _, copies = made(kind, replace(plan, reinit=0.0))
    for old, new in zip(sparse_layers(copies), sparse_layers(sparse), strict=True):
        assert old.router.weight.equal(new.router.weight)
        before, after = old.weights(), new.weights()
        size = 64 // split
        columns = (before["down_proj"] != after["down_proj"]).all(dim=1)  # [E, I]
        assert columns.sum(dim=1).tolist() == [size // 4] * 8
        assert len({tuple(row.tolist()) for row in columns}) > 1  # other ones in each expert
        rows = torch.cat([columns, columns], dim=1)  # gate and up
        changed = before["gate_up_proj"] != after["gate_up_proj"]
        assert changed.all(dim=2).equal(rows)
        assert changed.any(dim=2).equal(rows)  # all else is the copy
        mlp = dense.get_submodule(new.name)
        for drawn, original in (
            (after["gate_up_proj"][:, :size][columns], mlp.gate_proj.weight),
            (after["gate_up_proj"][:, size:][columns], mlp.up_proj.weight),
            (after["down_proj"].transpose(1, 2)[columns] / split, mlp.down_proj.weight),
        ):
            assert drawn.std().item() == pytest.approx(original.std().item(), rel=0.1)
            assert drawn.mean().item() == pytest.approx(original.mean().item(), abs=0.03)


def test_the_command_says_how_far_logits_moved(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders["qwen3"], "--num-experts", "8", "--top-k", "2", "--reinit", "0.5") == 0
    shown = capsys.readouterr().out
    found = re.search(r"moved by (\S+) on average and by (\S+) at most", shown)
    assert found is not None, shown
    dense, sparse = read_back(folders["qwen3"]), read_back(Path("sparse"))
    ids = upcycling.probe(sparse.config)
    apart = (logits_of(dense, ids) - logits_of(sparse, ids)).abs()
    assert float(found[1]) == pytest.approx(apart.mean().item(), rel=0.06)
    assert float(found[2]) == pytest.approx(apart.max().item(), rel=0.06)
    assert apart.mean() > 0.1


def test_the_same_seed_gives_the_same_files(folders: dict[str, Path]) -> None:
    words = ["--num-experts", "4", "--top-k", "2", "--reinit", "0.5"]
    for seed, output in ((3, "one"), (3, "two"), (4, "other")):
        assert run(folders["qwen2"], *words, "--seed", str(seed), output=output) == 0
    one, two, other = (Path(name) / "model.safetensors" for name in ("one", "two", "other"))
    assert one.read_bytes() == two.read_bytes()
    weights, others = load_file(one), load_file(other)
    assert {name for name in weights if not weights[name].equal(others[name])} == {
        name for name in weights if "mlp.experts." in name or name.endswith("mlp.gate.weight")
    }


def test_the_routers_spread_is_as_asked() -> None:
    for asked, std in ((None, 0.2), (0.01, 0.01)):
        _, sparse = made("llama", Upcycling(64, 2, router_std=asked))
        router = sparse_layers(sparse)[0].router.weight
        assert router.std().item() == pytest.approx(std, rel=0.1)


def task_gradients(sparse: PreTrainedModel, split: int) -> tuple[float, float]:
    """Of the routers, summed over the parts of a copy, and of the experts."""
    ids = some_ids(4, 32)
    sparse(ids, labels=ids).loss.backward()
    layers = sparse_layers(sparse)
    rows = [one.router.weight.grad for one in layers]
    routers = sum(row.view(-1, split, row.shape[1]).sum(1).norm().item() for row in rows)
    return routers, sum(one.grad.norm().item() for x in layers for one in x.weights().values())


@pytest.mark.parametrize(
    ("plan", "learns"),
    [
        (Upcycling(8, 2), False),
        (Upcycling(8, 4, split=2), False),
        (Upcycling(8, 2, reinit=0.5), True),
        (Upcycling(8, 4, split=2, reinit=0.5), True),
        (Upcycling(8, 1, reinit=0.5), False),
        (Upcycling(8, 2, split=2, reinit=0.5), False),
    ],
)
def test_what_the_task_teaches_the_router(kind: str, plan: Upcycling, learns: bool) -> None:
    _, sparse = made(kind, plan)
    routers, experts = task_gradients(sparse, plan.split)
    assert experts > 0.1
    assert (routers > 1e-2) if learns else (routers < 1e-5)
    said = upcycling._how_it_learns(plan)
    assert ("does not" in said) is not learns


def test_every_parameter_learns() -> None:
    """The shared expert of Qwen2-MoE too, whose down projection starts as zero."""
    _, sparse = made("qwen2", Upcycling(4, 2, reinit=0.5))
    before = copy.deepcopy(sparse.state_dict())
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    ids = some_ids(8, 64)
    for _ in range(2):
        sparse(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, weight in sparse.state_dict().items() if weight.equal(before[name])]
    assert still == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}),
        ("qwen3", {"norm_topk_prob": False}),
        ("qwen2", {"rms_norm_eps": 1e-6}),
    ],
)
def test_another_model_is_caught(
    kind: str,
    change: dict[str, object],
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(dense: PretrainedConfig, plan: Upcycling, name: str) -> PretrainedConfig:
        right = sparse_config(dense, plan, name)
        return type(right).from_dict({**right.to_dict(), **change})

    monkeypatch.setattr(upcycling, "sparse_config", wrong)
    code = run(folders[kind], "--num-experts", "4", "--top-k", "2")
    refused(capsys, code, r"that was built computes other logits than it must.*1e-04 is allowed")
    assert list(Path().iterdir()) == []


def test_what_is_damaged_on_the_way_to_the_disk_is_caught(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = PreTrainedModel.save_pretrained

    def damaged(model: PreTrainedModel, folder: Path) -> None:
        sparse_layers(model)[0].weights()["down_proj"].data[1:].zero_()
        real(model, folder)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", damaged)
    code = run(folders["llama"], "--num-experts", "4", "--top-k", "2")
    refused(capsys, code, "read back from the disk, computes other logits")
    assert list(Path().iterdir()) == []


def with_(kind: str, **changes: object) -> PretrainedConfig:
    config = DENSE[kind]
    return type(config).from_dict({**config.to_dict(), **changes})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_("llama", attention_bias=True), "has attention_bias: True in its config.json"),
        (with_("llama", mlp_bias=True), "mlp_bias: True.*mixtral cannot do"),
        (with_("qwen3", layer_types=["full_attention", "sliding_attention"]), "one window for all"),
        (with_("mistral", intermediate_size=60), "intermediate size of 60.*multiples of 8"),
        (with_("mistral", quantization_config={"quant_method": "gptq"}), "is quantised"),
        (GPT2Config(), "of type gpt2, and only these become sparse: qwen2"),
        (SPARSE["mixtral"], "of type mixtral, and only these become sparse"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(
    config: PretrainedConfig, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dense").mkdir()
    config.save_pretrained("dense")
    refused(capsys, run(Path("dense"), "--num-experts", "4", "--top-k", "2"), message)
    assert [path.name for path in Path().iterdir()] == ["dense"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num-experts 1 --top-k 1", "2 experts at least"),
        ("--num-experts 4 --top-k 5", "--num-experts 4 with --top-k 5"),
        ("--num-experts 4 --top-k 0", "from 1 to all of them"),
        ("--num-experts 6 --top-k 2 --split 4", r"multiples of it.*--split 2"),
        ("--num-experts 8 --top-k 3 --split 2", r"--top-k \(3\) must be multiples"),
        ("--num-experts 8 --top-k 2 --split 0", "--split 0"),
        ("--num-experts 8 --top-k 2 --reinit 1.5", "a share from 0 to 1"),
        ("--num-experts 8 --top-k 2 --reinit nan", "a share from 0 to 1"),
        ("--num-experts 8 --top-k 2 --router-std 0", "a number above 0"),
        ("--num-experts 8 --top-k 2 --seed -1", "--seed -1"),
        ("--num-experts 16 --top-k 16 --split 16", r"second divided by --split \(16\)"),
        ("--num-experts many --top-k 2", "--num-experts: invalid int value: 'many'"),
        ("--num-experts 1", "--num-experts 1 with --top-k 2"),
        ("--num-experts 8 --top-k 2 --reinitt 1", "did you mean --reinit?.*experts upcycle --help"),
    ],
)
def test_wrong_numbers_are_one_message(
    words: str, message: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, run(folders["llama"], *words.split()), message)
    assert list(Path().iterdir()) == []


def test_a_folder_in_use_is_refused_and_an_empty_one_taken(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--num-experts", "4", "--top-k", "2")
    Path("sparse").mkdir()
    (Path("sparse") / "mine").write_text("x")
    refused(capsys, run(folders["llama"], *words), "there already and is never overwritten")
    assert [path.name for path in Path("sparse").iterdir()] == ["mine"]
    (Path("sparse") / "mine").unlink()
    assert run(folders["llama"], *words) == 0
    assert [path.name for path in Path().iterdir()] == ["sparse"]
    refused(capsys, run(folders["llama"], *words, output=".."), "give a new folder")
    refused(capsys, run(Path("gone/model"), *words, output="b"), "cannot read the config")


@pytest.mark.parametrize("command", ["card", "upcycle", "swap", "prune"])
def test_help_shows_one_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["experts", command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count("example: ") == 1
    assert f"python -m srl experts {command} " in shown


def test_the_card_needs_the_config_only(capsys: pytest.CaptureFixture[str]) -> None:
    mixtral = {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
    }
    Path("huge").mkdir()
    Path("huge/config.json").write_text(json.dumps(mixtral))
    assert main(["experts", "card", "--model", "huge"]) == 0
    shown = capsys.readouterr().out
    assert "huge: sparse, of type mixtral" in shown
    assert "46,702,792,704" in shown
    assert "12,879,925,248 (27.6%)" in shown
    assert "8 a layer, 2 of them for each token, in 32 of 32 layers" in shown
    assert "187 GB in float32, 93.4 GB in bf16" in shown
    assert "747 GB" in shown
    assert "25.5 GFLOP" in shown


def test_the_card_of_a_dense_model_says_so(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experts", "card", "--model", str(folders["qwen3"])]) == 0
    shown = capsys.readouterr().out
    model = read_back(folders["qwen3"])
    assert "dense, of type qwen3" in shown
    assert f"{model.num_parameters():,} (100.0%)" in shown
    cost = Cost.of(model)
    assert cost.total == cost.active == model.num_parameters()
    Path("none").mkdir()
    refused(capsys, main(["experts", "card", "--model", "none"]), "it has no config.json")
    Path("none/config.json").write_text('{"model_type": "none such"}')
    refused(capsys, main(["experts", "card", "--model", "none"]), "cannot read the config of")


def test_a_plan_is_checked_in_python_too() -> None:
    with pytest.raises(UsageError, match="multiples of it"):
        Upcycling(6, 2, split=4)
