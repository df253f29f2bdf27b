"""The benchmark runs from end to end at toy sizes, and its contestants compute the same thing.

Nothing here looks at a time: how fast something is belongs to `make bench`.
"""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "bench"))

import bench
import gpu_rows
import growth_rows
import sweep_plot
import update_rows
from contest import Contest, bit_equal, run
from flops import update_flops
from model_row import model_row
from results import merge
from shapes import Shape, base_config, qwen25_config, random_model, smollm2_config
from similarity_rows import read_solutions, similarity_row
from step_row import step_row
from sweep_rows import nested, sweep_rows
from update_rows import PADDED, TREE, nested_row, update_row

from srl.models.prefix_tree import PrefixTree

TOY = Shape(K=2, Q=24, s=8, G=3, C=6)


def toy_model() -> PreTrainedModel:
    return random_model(base_config(256, num_hidden_layers=1, layer_types=["full_attention"]))


@pytest.fixture(autouse=True)
def small_and_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rows' model has one layer here."""
    for module in ("update_rows", "growth_rows", "sweep_rows"):
        monkeypatch.setattr(f"{module}.tiny_model", toy_model)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same_as_trl(contest: Contest) -> None:
    assert contest.agreement
    for name, apart in contest.agreement.items():
        assert isinstance(apart, dict)
        assert apart["gradient"] <= 1e-5, name
        assert apart["log_prob"] <= 1e-4, name


# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [3, 4])
def test_all_contestants_of_an_update_agree_with_trl(row: int) -> None:
    if row == 3:
        small = Shape(K=1, Q=8, s=0, G=2, C=16)
        contests = update_row(1, shape=Shape(K=1, Q=24, s=0, G=3, C=6), losing=[small])
    else:
        contests = nested_row(1, shape=TOY)
    for contest in contests:
        same_as_trl(contest)
        assert contest.row == row
        assert contest.base.startswith("TRL")
        assert set(contest.seconds) == {*contest.agreement, update_rows.TRL_WHOLE}
    whole = contests[0]
    tokens = whole.figures["tokens"]
    assert whole.figures["ceiling"] == tokens["repeated"] / tokens["in the tree"]
    if row == 3:
        assert TREE in contests[1].seconds
    else:
        assert {"TRL, 3 rows at a time", "ours, a tree per prompt"} <= set(whole.seconds)


def test_a_whole_step_trains_both_on_as_many_tokens() -> None:
    shape = Shape(K=3, Q=24, s=8, G=2, C=6, trajectories=2)
    (contest,) = step_row(1, shape=shape, prompts=2, steps=2, make_model=toy_model)
    assert len(contest.seconds) == 4
    assert all(len(seconds) == 1 for seconds in contest.seconds.values())
    for part in contest.figures.values():
        assert part["tokens written"] == 2 * 2 * 6
        assert part["rollouts s"] > 0


def test_a_step_of_a_large_vocabulary_is_told_beside_its_floors() -> None:
    def model() -> PreTrainedModel:
        return random_model(smollm2_config(1200, num_hidden_layers=1, hidden_size=72))

    shape = Shape(K=2, Q=24, s=8, G=2, C=6, trajectories=2)
    (contest,) = model_row(shape=shape, prompts=2, make_model=model)
    assert contest.row == 11
    assert all(len(seconds) == 1 for seconds in contest.seconds.values())
    figures = contest.figures
    for name in contest.seconds:
        assert figures[f"{name}, mean of a step"]["tokens written"] == 2 * 2 * 6
    floors = figures["floors"]
    assert 0 < floors["rollouts s"] < min(contest.seconds["ours, shuffled"])
    assert 0 < floors["update s"] < min(contest.seconds["ours, shuffled"])


def test_growth_is_told_against_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_rows, "peak_memory", lambda shape: float(shape.nodes))
    shape, step = Shape(K=2, Q=16, s=8, G=2, C=4), Shape(K=1, Q=16, s=8, G=2, C=4)
    more, longer = growth_rows.growth_row(1, sizes=(40, 160), shape=shape, step=step)
    for contest in (more, longer):
        first, last = contest.figures["points"]
        assert first["microseconds a node, x linear"] == 1
        assert last["nodes"] > 3 * first["nodes"]
    assert more.figures["points"][1]["operations a node, x linear"] == pytest.approx(1, abs=0.01)
    assert longer.figures["points"][1]["operations a node, x linear"] > 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_the_peak_of_memory_is_that_of_a_process_of_its_own() -> None:
    assert growth_rows.peak_memory(Shape(K=1, Q=256, s=0, G=8, C=64)) > 8  # MiB


def test_the_sweep_is_drawn_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    contests = sweep_rows(1, shares=(0.5, 2.0), prompts=(1, 3), G=2, C=8)
    assert [one.figures["K"] for one in contests] == [1, 1, 3, 3]
    assert [one.figures["P/C"] for one in contests] == pytest.approx([0.5, 2, 0.5, 2])
    for contest in contests:
        same_as_trl(contest)
        assert contest.figures["over rows"] == contest.speed("ours, as trained", PADDED)
    for name in ("one.svg", "two.svg"):
        sweep_plot.draw(contests, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_bytes()
    assert b"<svg" in drawn
    assert len(drawn) < 60_000
    assert drawn == (tmp_path / "two.svg").read_bytes()


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there: Callable[..., object] = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SystemExit, match=r"needs matplotlib.*pip install -e '\.\[dev\]'"):
        sweep_plot.check_matplotlib()


def test_similarity_is_bit_equal_to_difflib() -> None:
    solutions, words = read_solutions(None)
    assert "our own documents" in words
    (whole, *kinds) = similarity_row(solutions[:4], 0, 1, pairs=24)
    assert len(kinds) == 3
    assert whole.agreement["ours, one core"] == "24 of 24 bit-equal"


# ---- shapes, counts, results ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TOY, nested(2.0, 10, 8, 48), nested(0.5, 4, 2, 8)])
def test_a_shape_knows_its_tokens(shape: Shape) -> None:
    rows = shape.rows(10**6)  # so many words that nothing is shared by chance
    tree = PrefixTree.of(rows)
    assert (shape.repeated, shape.nodes) == (tree.repeated_tokens, len(tree))
    assert shape.mean_prompt == sum(len(prompt) for prompt, _ in rows) / len(rows)


def test_operations_are_those_of_the_matrices() -> None:
    config = qwen25_config("0.5B")
    tree = PrefixTree.of([([1], [2])])
    layer = 896 * 64 * (14 + 2 + 2 + 14) + 3 * 896 * 4864  # q, k, v, o, and the MLP
    attention = (1 + 2) * 2 * 14 * 64
    assert update_flops(config, tree) == 6 * (24 * (2 * layer + attention) + 896 * 151936)


def test_rows_that_are_not_run_keep_their_results(tmp_path: Path) -> None:
    def measured(row: int | str, seconds: float) -> Contest:
        return Contest(row, "input", seconds={"a": [seconds]}, base="a")

    path = tmp_path / "deep" / "cpu.json"
    merge(path, {"date": "then"}, [measured(1, 1.0), measured(2, 1.0), measured("sweep", 1.0)])
    merge(path, {"date": "now"}, [measured(1, 2.0), measured(1, 3.0)])
    then, now = json.loads(path.read_text())["runs"]
    assert [(then["date"], [one["row"] for one in then["contests"]])] == [("then", [2, "sweep"])]
    assert [one["seconds"]["a"] for one in now["contests"]] == [[2.0], [3.0]]
    merge(path, {"date": "late"}, [measured(2, 1.0), measured("sweep", 1.0)])
    assert [one["date"] for one in json.loads(path.read_text())["runs"]] == ["now", "late"]


def test_the_peer_is_the_fastest_of_those_named(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("contest.time.perf_counter", lambda: now[0])

    def taking(seconds: float) -> Callable[[], Callable[[], object]]:
        def work() -> list[float]:
            now[0] += seconds
            return [1.0, seconds]

        return lambda: work

    contest = run(
        Contest(0, "input"),
        {"slow": taking(4), "fast": taking(2), "ours": taking(1)},
        3,
        compare=bit_equal,
        peers=["slow", "fast"],
        warm_up=True,
    )
    assert contest.base == "fast"
    assert contest.speed("ours") == 2
    assert len(contest.seconds["ours"]) == 3
    assert contest.agreement == {"fast": "1 of 2 bit-equal", "ours": "1 of 2 bit-equal"}
    assert contest.ours == "ours"
    assert "2.00x" in bench.table([contest])


def test_the_published_results_are_readable() -> None:
    path = bench.HERE / "results" / "cpu.json"
    for one in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        assert {"date", "cpu", "cores", "packages", "contests"} <= set(one)
        assert all(contest["seconds"] for contest in one["contests"])


# ---- the two scripts -----------------------------------------------------------------------------


def test_bench_runs_a_row_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "nested_row", lambda repeats: nested_row(repeats, shape=TOY))
    monkeypatch.setattr(bench, "THREADS", 1)
    out = tmp_path / "cpu.json"
    bench.main(["--rows", "4", "--repeats", "1", "--out", str(out)])
    assert "ours, as trained" in capsys.readouterr().out
    (one,) = json.loads(out.read_text())["runs"]
    assert (one["threads"], one["repeats"], one["contests"][0]["row"]) == (1, 1, 4)


def test_gpu_rows_are_refused_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu_rows.main([])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip() == (
        "no CUDA device: GPU rows need one; CPU rows: make bench; "
        'a dry run: make bench-gpu ARGS="--toy"'
    )


def test_gpu_rows_run_as_toys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "gpu.json"
    # All rows, as part of the one script for a GPU: tests/test_gpu_script.py.
    gpu_rows.main(["--toy", "--rows", "7", "8", "--repeats", "1", "--out", str(out)])
    assert "no measurement" in capsys.readouterr().out
    runs = json.loads(out.read_text())["runs"]
    assert all(one["toy"] is True for one in runs)
    assert [contest["row"] for one in runs for contest in one["contests"]] == [7, 8]
