"""The one script for a GPU runs from end to end at toy sizes, and loses nothing on its way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "bench"))
sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "gpu"))

import run as gpu_run
from flex_part import shape_of
from given import HELD_OUT, TRAIN, Given
from gpu_rows import rows_at_once
from profile_part import busy
from result_file import DONE, FAILED, RUNNING, STOPPED, ResultFile
from shapes import Shape, random_model, smollm2_config

from srl.models.prefix_tree import PrefixTree


@pytest.fixture(autouse=True)
def on_one_thread_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_all_parts_run_as_toys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "toy.json"
    gpu_run.main(["--toy", "--out", str(out)])
    assert "no measurement" in capsys.readouterr().out
    found = json.loads(out.read_text(encoding="utf-8"))
    parts = found["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys("abcdef", DONE)
    assert not any("error" in part for part in parts.values())
    assert found["toy"] is True
    assert {"device", "date", "commit", "packages", "python"} <= set(found)
    b, c, d, e, f = (parts[name]["figures"] for name in "bcdef")
    assert b["sampler's distance, fp32"]["max_sampler_gap"] < 1e-4
    assert b["fp32, rows repeated, beside fp32"]["gradient, relative error"] < 1e-4
    assert 1e-4 < b["bf16, beside fp32"]["gradient, relative error"] < 0.2
    assert c["toy"]["64 nodes"]["relative difference, output"] < 1e-5
    assert [one["row"] for one in d["contests"]] == [6, 8, 9, 7]
    assert e["problems"] == {"train": 10, "test": 2}
    for name in ("stock", "cold start", "SRL", "RLVR"):
        figures = e[f"{name}, evaluated"]
        assert {figures[f"{how}, greedy"]["n"] for how in ("step by step", "whole solution")} == {2}
    for name in ("cold start", "SRL", "RLVR"):
        assert e[f"{name}, trained"]["steps"] == 1
    assert f["collecting"]["operations"] > 0
    assert f["update"]["longest"]
    assert len(f["steps, unprofiled"]) == 2
    gpu_run.main(["--table", "--out", str(out)])
    table = capsys.readouterr().out
    assert "### e. GSM8K: cold start, SRL, RLVR (done" in table
    assert "| bf16, beside fp32: gradient, cosine |" in table
    assert "contests" not in table


def test_it_is_refused_without_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_run.main(["--worker", "--parts", "a", "--out", str(tmp_path / "gpu.json")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip() == gpu_run.NO_CUDA


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--parts", "a,x"], "--parts x: there are a, b, c, d, e, f"),
        (["--model", "/no/where"], "--model /no/where: there is no such file"),
        (["--minutes", "0"], "--minutes 0: give a number above 0"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu_run.main(words)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_what_ends_a_process_does_not_end_the_parts_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    asked: list[str] = []

    def worker(command: Sequence[str], until: float) -> int:
        parts = command[command.index("--parts") + 1]
        asked.append(parts)
        results = ResultFile.read(out)
        first = parts.split(",")[0]
        states = {"a": (DONE, RUNNING), "c": (FAILED,), "d": (DONE, DONE)}[first]
        for name, state in zip(parts.split(","), states, strict=False):
            results.parts[name] = {"title": name, "state": state, "figures": {"rate": 1.0}}
        results.save()
        return 0 if first == "d" else 1

    monkeypatch.setattr(gpu_run, "_run", worker)
    gpu_run.main(["--parts", "a,b,c,d,e", "--out", str(out)])
    assert asked == ["a,b,c,d,e", "c,d,e", "d,e"]
    results = ResultFile.read(out)
    states = {name: part["state"] for name, part in results.parts.items()}
    assert states == {"a": DONE, "b": STOPPED, "c": FAILED, "d": DONE, "e": DONE}
    assert results.parts["b"]["figures"] == {"rate": 1.0}  # what it had found
    assert "exit code 1" in str(results.parts["b"]["error"])
    assert "out of time" in capsys.readouterr().out


def test_a_part_that_fails_is_reported_and_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @staticmethod
        def measure(given: Given, note: object) -> None:
            raise ZeroDivisionError("a planted error")

    monkeypatch.setitem(sys.modules, "flex_part", Broken)  # type: ignore[arg-type]
    out = tmp_path / "toy.json"
    gpu_run.main(["--toy", "--parts", "c,a", "--out", str(out)])
    parts = ResultFile.read(out).parts
    assert (parts["c"]["state"], parts["a"]["state"]) == (FAILED, DONE)
    assert "a planted error" in str(parts["c"]["error"])


def test_a_part_without_time_is_not_begun(tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    gpu_run.main(["--toy", "--parts", "a", "--until", "1", "--out", str(out)])
    part = ResultFile.read(out).parts["a"]
    assert (part["state"], part["error"]) == (STOPPED, "no time was left to begin")
    assert "figures" not in part


def test_test_problems_are_held_out_of_the_training_file(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    rows = [
        json.dumps({"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n}"})
        for n in range(TRAIN + HELD_OUT + 50)
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    given = Given(False, None, path, None, tmp_path, ends=0.0)
    train, test = given.problems()
    assert (len(train), len(test)) == (TRAIN, HELD_OUT)
    assert test[-1].answer == str(len(rows) - 1)
    assert not {one.problem_id for one in train} & {one.problem_id for one in test}


def test_a_device_is_busy_while_any_operation_runs() -> None:
    assert busy([(0, 10), (2, 5), (8, 12), (20, 21)]) == 13
    assert busy([]) == 0


@pytest.mark.parametrize("size", [256, 1024, 8192])
def test_trees_have_the_size_that_is_named(size: int) -> None:
    shape = shape_of(size)
    assert len(PrefixTree.of(shape.rows(10**6))) == shape.nodes == size


def test_the_peer_takes_as_many_rows_as_fit() -> None:
    shape = Shape(K=10, Q=475, s=100, G=8, C=300)  # rows of 1,675 tokens
    assert [rows_at_once(shape, tokens) for tokens in (1000, 4000, 12_288)] == [1, 2, 8]


def test_the_shape_is_that_of_the_model() -> None:
    with torch.device("meta"):
        model = random_model(smollm2_config(), "meta")
    assert model.num_parameters() == 134_515_008
