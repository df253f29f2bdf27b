"""Experts exchanged and dropped: what is named changes, and nothing else, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import DENSE, SPARSE, logits_of, random_model, read_back, save, some_ids
from torch import Tensor
from transformers import MixtralConfig, PretrainedConfig, PreTrainedModel

from srl.commands.cli import main
from srl.models.expert_editing import read_counts
from srl.models.experts import SparseLayer, sparse_layers
from srl.models.loading import load_policy
from srl.models.routing import BIAS_FILE, add_bias, biases, load_bias, save_bias
from srl.models.sparse_files import SparseFiles

# The layer whose experts are exchanged, as the model numbers it; the last one of each.
LAST = {kind: config.num_hidden_layers - 1 for kind, config in SPARSE.items()}


@pytest.fixture(params=SPARSE)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def two_models(kind: str, dtype: torch.dtype = torch.float32, **how: object) -> None:
    """Folders a and b: one architecture, other weights."""
    for seed, name in enumerate("ab"):
        save(random_model(SPARSE[kind], seed, dtype), Path(name), tokenizer=False, **how)


def swap(*words: str, model: str = "a", donor: str = "b", output: str = "c") -> int:
    return main(["experts", "swap", "--model", model, "--donor", donor, "--output", output, *words])


def prune(*words: str, model: str = "a", output: str = "c") -> int:
    return main(["experts", "prune", "--model", model, "--output", output, *words])


def stored(folder: str) -> dict[str, Tensor]:
    """All tensors on the disk, whatever file they are in."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def layer_of(model: PreTrainedModel, number: int) -> SparseLayer:
    return next(one for one in sparse_layers(model) if f".{number}." in one.name)


def same(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.equal(two)


def test_one_expert_is_exchanged_and_nothing_else(kind: str, dtype: torch.dtype) -> None:
    two_models(kind, dtype)
    layer = LAST[kind]
    assert swap("--layer", str(layer), "--expert", "5") == 0
    ours, theirs, new = (read_back(Path(name)) for name in "abc")
    here = layer_of(new, layer)
    for name, weight in here.weights().items():
        for expert in range(8):
            source = theirs if expert == 5 else ours
            assert same(weight[expert], layer_of(source, layer).weights()[name][expert])
    changed = {f"{here.name}.experts.{name}" for name in here.weights()}
    old = ours.state_dict()
    for name, value in new.state_dict().items():
        assert same(value, old[name]) is (name not in changed), name
    # On the disk, where transformers has no say, nothing has another dtype or name either.
    before, after = stored("a"), stored("c")
    assert before.keys() == after.keys()
    apart = [name for name in before if not before[name].equal(after[name])]
    assert 2 <= len(apart) <= 4
    assert {value.dtype for value in after.values()} == {dtype}
    for path in Path("a").glob("*.json"):
        assert (Path("c") / path.name).read_bytes() == path.read_bytes()

    words = ("--layer", str(layer), "--expert", "5")
    assert swap(*words, model="c", donor="a", output="undone") == 0
    assert stored("undone").keys() == before.keys()
    assert all(same(value, before[name]) for name, value in stored("undone").items())


def test_all_experts_with_their_router(kind: str) -> None:
    two_models(kind, torch.bfloat16)
    layer = LAST[kind]
    assert swap("--layer", str(layer), "--with-router") == 0
    ours, theirs, new = (read_back(Path(name)) for name in "abc")
    here, donor = layer_of(new, layer), layer_of(theirs, layer)
    for name, weight in here.weights().items():
        assert same(weight, donor.weights()[name])
    for name, value in here.router.state_dict().items():
        assert same(value, donor.router.state_dict()[name])
    parts = (f"{here.name}.experts.", f"{here.name}.gate.", f"{here.name}.router.")
    old = ours.state_dict()
    for name, value in new.state_dict().items():
        assert same(value, old[name]) or name.startswith(parts), name


def test_one_expert_with_its_row_from_another_place(kind: str) -> None:
    two_models(kind)
    last = LAST[kind]
    place = ("--layer", str(last - 1), "--expert", "2")
    if kind == "qwen3_moe":  # its layers 1 and 2 are sparse
        assert last == 2
    words = (*place, "--donor-layer", str(last), "--donor-expert", "7", "--with-router")
    assert swap(*words) == 0
    ours, theirs, new = (read_back(Path(name)) for name in "abc")
    here, was = layer_of(new, last - 1), layer_of(ours, last - 1)
    donor = layer_of(theirs, last)
    for name, weight in here.weights().items():
        for expert in range(8):
            expected = donor.weights()[name][7] if expert == 2 else was.weights()[name][expert]
            assert same(weight[expert], expected)
    for name, rows in here.router.state_dict().items():
        for expert in range(8):
            source, row = (donor, 7) if expert == 2 else (was, expert)
            assert same(rows[expert], source.router.state_dict()[name][row])


def test_an_expert_may_come_from_the_model_itself() -> None:
    two_models("mixtral")
    words = ("--layer", "0", "--expert", "1", "--donor-expert", "3")
    assert swap(*words, donor="a") == 0
    for weight in layer_of(read_back(Path("c")), 0).weights().values():
        assert same(weight[1], weight[3])


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_shards_stay_as_they_are(kind: str) -> None:
    two_models(kind, shard="20KB")
    shards = sorted(path.name for path in Path("a").glob("*.safetensors"))
    assert len(shards) > 3
    assert swap("--layer", "1", "--expert", "0") == 0
    assert sorted(path.name for path in Path("c").glob("*.safetensors")) == shards
    same_files = [
        name
        for name in shards
        if (Path("a") / name).read_bytes() == (Path("c") / name).read_bytes()
    ]
    assert 0 < len(same_files) < len(shards)
    old, new = (
        json.loads((Path(name) / "model.safetensors.index.json").read_text()) for name in "ac"
    )
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"]["total_size"] == old["metadata"]["total_size"]
    taken = layer_of(read_back(Path("b")), 1).weights()
    for name, weight in layer_of(read_back(Path("c")), 1).weights().items():
        assert same(weight[0], taken[name][0])

    Path("load.json").write_text(json.dumps({"layers": [list(range(1, 9))] * 2}))
    assert prune("--keep", "3", "--by", "load.json", output="d") == 0
    ours, less = read_back(Path("a")), read_back(Path("d"))
    for old_layer, new_layer in zip(sparse_layers(ours), sparse_layers(less), strict=True):
        for name, weight in new_layer.weights().items():
            assert same(weight, old_layer.weights()[name][5:])
    size = sum(value.numel() * value.element_size() for value in stored("d").values())
    index = json.loads(Path("d/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    assert index["weight_map"].keys() == stored("d").keys()


def test_a_file_of_several_dtypes_keeps_them() -> None:
    """Some checkpoints keep their routers in float32; transformers would make them all one."""
    two_models("mixtral", torch.bfloat16)
    for name in "ab":
        file = Path(name) / "model.safetensors"
        mixed = {k: v.float() if "gate." in k else v for k, v in load_file(file).items()}
        save_file(mixed, file, metadata={"format": "pt", "note": "kept"})
    before = stored("a")
    assert swap("--layer", "0", "--expert", "0", "--with-router") == 0
    after = stored("c")
    assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
    assert {value.dtype for value in after.values()} == {torch.float32, torch.bfloat16}
    with safe_open("c/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def other(**changes: object) -> PretrainedConfig:
    return MixtralConfig(**{**SPARSE["mixtral"].to_dict(), **changes})


@pytest.mark.parametrize(
    ("words", "donor", "message"),
    [
        ("--layer 2", None, r"layer 2 of a has no experts: its sparse layers are 0, 1"),
        ("--layer 0 --donor-layer 7", None, "layer 7 of b has no experts.*--donor-layer"),
        ("--layer 0 --expert 8", None, "no expert 8 in a: each layer has the experts 0 to 7"),
        ("--layer 0 --expert -1", None, "no expert -1 in a"),
        ("--layer 0 --expert 0 --donor-expert 9", None, "no expert 9 in b"),
        ("--layer 0 --donor-expert 1", None, "--donor-expert goes with --expert"),
        ("--layer 0", SPARSE["olmoe"], "a has model_type mixtral and b has model_type olmoe"),
        ("--layer 0", other(hidden_act="gelu"), "a has hidden_act silu and b has hidden_act gelu"),
        ("--layer 0", other(num_local_experts=4), "a has 8 experts a layer and b has 4"),
        ("--layer 0", other(intermediate_size=24), r"F32 of shape \[16, 32\].*shape \[24, 32\]"),
        ("--layer 0", DENSE["llama"], "b is not sparse: a model of type llama has no experts"),
    ],
)
def test_what_does_not_fit_is_one_message(
    words: str,
    donor: PretrainedConfig | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(random_model(SPARSE["mixtral"]), Path("a"), tokenizer=False)
    save(random_model(donor or SPARSE["mixtral"], 1), Path("b"), tokenizer=False)
    refused(capsys, swap(*words.split()), message)
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b"]


def test_files_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    two_models("mixtral")
    save(random_model(SPARSE["mixtral"], 1, torch.bfloat16), Path("half"), tokenizer=False)
    words = ("--layer", "0", "--expert", "0")
    refused(capsys, swap(*words, donor="half"), "is F32 of shape.*is BF16.*nothing is rounded")
    refused(capsys, swap(*words, donor="gone"), "there is no model folder 'gone'")
    refused(capsys, swap(*words, output="b"), "there already and is never overwritten")
    tensors = load_file("b/model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, "b/model.safetensors")
    refused(capsys, swap(*words), "b is not whole: its config.json says that layer 0")
    assert not Path("c").exists()
    less = {key: value for key, value in tensors.items() if "layers.1.block_sparse_moe" not in key}
    save_file(less, "b/model.safetensors")
    refused(capsys, swap(*words, output="d"), "b is not whole: its config.json says that layer 1")
    extra = {
        **tensors,
        "model.layers.0.block_sparse_moe.gate.e_score_correction_bias": torch.ones(8),
    }
    save_file(extra, "b/model.safetensors")
    refused(capsys, swap(*words, output="d"), "e_score_correction_bias in a sparse layer")
    Path("b/model.safetensors").write_bytes(b"none")
    refused(capsys, swap(*words, output="d"), "b/model.safetensors cannot be read")
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b", "half"]


# ---- dropping experts ---------------------------------------------------------------------------


def choices(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """Of each sparse layer the experts of each token, [B, T, k]."""
    found: list[Tensor] = []
    layers = sparse_layers(model)
    hooks = [
        layer.router.register_forward_hook(lambda _, __, out: found.append(out[2]))
        for layer in layers
    ]
    logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    return [one.view(*ids.shape, -1) for one in found]


def counted(model: PreTrainedModel, ids: Tensor, path: Path) -> list[list[int]]:
    """Writes the load of each expert as a report would; returns it."""
    layers = [one.flatten().bincount(minlength=8).tolist() for one in choices(model, ids)]
    path.write_text(json.dumps({"model": "a", "tokens": ids.numel(), "layers": layers}))
    return layers


def untouched(routes: list[Tensor], kept: list[list[int]]) -> Tensor:
    """[B, T]: whether this token and all before it use only experts that are kept."""
    clean = [
        torch.isin(route, torch.tensor(stay)).all(dim=-1)
        for route, stay in zip(routes, kept, strict=True)
    ]
    return torch.stack(clean).all(dim=0).cumprod(dim=1).bool()


def test_the_least_used_experts_go(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    save(random_model(SPARSE[kind]), Path("a"))
    ours = read_back(Path("a"))
    ids = some_ids(16, 24)
    load = counted(ours, ids, Path("load.json"))
    assert prune("--keep", "6", "--by", "load.json") == 0
    shown = capsys.readouterr().out
    assert "norm_topk_prob" not in shown
    kept = [sorted(sorted(range(8), key=lambda e: (-layer[e], e))[:6]) for layer in load]
    for layer, stay in zip(sparse_layers(ours), kept, strict=True):
        number = layer.name.split(".")[-2]
        assert f"layer {number}: experts {', '.join(map(str, stay))} stay" in shown
    new, _ = load_policy("c")
    config = new.config
    assert 6 in (getattr(config, "num_experts", 0), getattr(config, "num_local_experts", 0))
    for old, less, stay in zip(sparse_layers(ours), sparse_layers(new), kept, strict=True):
        assert (less.num_experts, less.top_k) == (6, 2)
        for name, weight in less.weights().items():
            assert same(weight, old.weights()[name][stay])
        for name, rows in less.router.state_dict().items():
            assert same(rows, old.router.state_dict()[name][stay])
    clean = untouched(choices(ours, ids), kept)
    assert 10 < clean.sum() < clean.numel() - 10
    apart = (logits_of(ours, ids) - logits_of(new, ids)).abs().amax(dim=-1)
    assert apart[clean].max() <= 1e-5
    first = ~clean & torch.cat([clean.new_ones(16, 1), clean[:, :-1]], dim=1)
    assert apart[first].min() > 1e-4  # a token loses an expert, and is another


def test_a_model_that_does_not_normalise_changes_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = type(SPARSE["olmoe"])(**{**SPARSE["olmoe"].to_dict(), "norm_topk_prob": False})
    save(random_model(config), Path("a"))
    ours, ids = read_back(Path("a")), some_ids(16, 24)
    load = counted(ours, ids, Path("load.json"))
    assert prune("--keep", "6", "--by", "load.json") == 0
    assert "all logits change a little" in capsys.readouterr().out
    kept = [sorted(sorted(range(8), key=lambda e: (-layer[e], e))[:6]) for layer in load]
    clean = untouched(choices(ours, ids), kept)
    apart = (logits_of(ours, ids) - logits_of(read_back(Path("c")), ids)).abs().amax(dim=-1)
    assert apart[clean].min() > 1e-4


def test_bf16_stays_bf16_when_experts_go(kind: str) -> None:
    save(random_model(SPARSE[kind], dtype=torch.bfloat16), Path("a"), tokenizer=False)
    Path("load.json").write_text(json.dumps({"layers": [[5, 5, 5, 1, 5, 5, 5, 5]] * 2}))
    assert prune("--keep", "2", "--by", "load.json") == 0
    before, after = stored("a"), stored("c")
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    for layer in sparse_layers(read_back(Path("c"))):
        old = next(x for x in sparse_layers(read_back(Path("a"))) if x.name == layer.name)
        for name, weight in layer.weights().items():
            assert same(weight, old.weights()[name][:2])  # of equals the first ones stay
    for name in before.keys() & after.keys():
        if before[name].shape == after[name].shape and "experts" not in name:
            assert same(before[name], after[name])


@pytest.mark.parametrize(
    ("keep", "load", "message"),
    [
        (1, {"layers": [[1] * 8] * 2}, "uses 2 for each token, so 2 to 7 can stay"),
        (8, {"layers": [[1] * 8] * 2}, "has 8 experts a layer.*so 2 to 7 can stay"),
        (4, {"layers": [[1] * 8]}, r"of 1 layers with \[8\] experts, and a has 2 sparse layers"),
        (4, {"layers": [[1] * 8, [1] * 4]}, r"with \[4, 8\] experts"),
        (4, {"layers": [[1] * 8, [0] * 8]}, "no counts in its list 1.*count on more text"),
        (4, {"layers": [[1] * 7 + [-1]] * 2}, "cannot be read as counts.*-1 is no count"),
        (4, {"layers": [[1] * 7 + [0.5]] * 2}, "0.5 is no count"),
        (4, {"layers": 3}, "cannot be read as counts"),
        (4, {"counts": []}, "cannot be read as counts.*'layers'"),
        (4, [1, 2], "cannot be read as counts"),
        (4, None, r"--by FILE is missing.*python -m srl experts report --config FILE --model a"),
    ],
)
def test_counts_that_do_not_fit_are_one_message(
    keep: int, load: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(random_model(SPARSE["mixtral"]), Path("a"), tokenizer=False)
    by = []
    if load is not None:
        Path("load.json").write_text(json.dumps(load))
        by = ["--by", "load.json"]
    refused(capsys, prune("--keep", str(keep), *by), message)
    assert sorted(path.name for path in Path().iterdir() if path.is_dir()) == ["a"]


def test_the_file_of_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "load.json"
    file.write_text('{"model": "a", "tokens": 3, "layers": [[1, 2], [3, 0]]}')
    assert read_counts(file) == [[1, 2], [3, 0]]
    save(random_model(SPARSE["mixtral"]), Path("a"), tokenizer=False)
    for text in ("", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(capsys, prune("--keep", "4", "--by", str(file)), "cannot be read as counts")
    refused(capsys, prune("--keep", "4", "--by", "none.json"), "none.json cannot be read as counts")


def test_what_is_not_sparse_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    save(random_model(DENSE["llama"]), Path("a"), tokenizer=False)
    message = "a is not sparse: .*python -m srl experts upcycle --model a --output FOLDER"
    refused(capsys, prune("--keep", "4"), message)
    refused(capsys, swap("--layer", "0", donor="a"), message)


def test_a_config_that_does_not_say_how_many_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(random_model(SPARSE["mixtral"]), Path("a"), tokenizer=False)
    values = json.loads(Path("a/config.json").read_text())
    del values["num_local_experts"]  # eight are Mixtral's own default
    Path("a/config.json").write_text(json.dumps(values))
    assert SparseFiles.open(Path("a")).num_experts == 8
    Path("load.json").write_text(json.dumps({"layers": [[1] * 8] * 2}))
    refused(capsys, prune("--keep", "4", "--by", "load.json"), "does not say how many experts")
    assert not Path("c").exists()


# ---- a policy that was balanced by a bias --------------------------------------------------------


def with_bias(name: str, seed: int) -> None:
    model = read_back(Path(name))
    layers = sparse_layers(model)
    add_bias(layers)
    for bias in biases(layers):
        bias.copy_(torch.rand(bias.shape, generator=torch.Generator().manual_seed(seed)))
    save_bias(model, Path(name))


def test_a_bias_goes_with_the_router(kind: str) -> None:
    two_models(kind)
    for seed, name in enumerate("ab"):
        with_bias(name, seed)
    layer = LAST[kind]
    ours, theirs = (load_file(Path(name) / BIAS_FILE) for name in "ab")
    assert swap("--layer", str(layer), "--expert", "1") == 0
    assert all(x.equal(ours[key]) for key, x in load_file(Path("c") / BIAS_FILE).items())
    assert swap("--layer", str(layer), "--expert", "1", "--with-router", output="d") == 0
    key = f"{sparse_layers(read_back(Path('a')))[-1].name}.selection_bias"
    swapped = load_file(Path("d") / BIAS_FILE)
    assert swapped.keys() == ours.keys()
    for name, value in swapped.items():
        expected = ours[name].clone()
        if name == key:
            expected[1] = theirs[name][1]
        assert value.equal(expected)


def test_a_bias_loses_the_rows_of_dropped_experts(kind: str) -> None:
    save(random_model(SPARSE[kind], 0, torch.float32), Path("a"), tokenizer=False)
    with_bias("a", 0)
    layers = sparse_layers(read_back(Path("a")))
    E = layers[0].num_experts
    counts = [[E - expert for expert in range(E)] for _ in layers]
    Path("load.json").write_text(json.dumps({"layers": counts}))
    assert prune("--keep", str(E - 1), "--by", "load.json") == 0
    before, after = (load_file(Path(name) / BIAS_FILE) for name in "ac")
    assert {key: x[:-1].tolist() for key, x in before.items()} == {
        key: x.tolist() for key, x in after.items()
    }
    model = read_back(Path("c"))
    load_bias(model, Path("c"))
