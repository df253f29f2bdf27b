from __future__ import annotations

import json
import os
import subprocess
from enum import Enum, StrEnum
from pathlib import Path

import pytest

from srl.errors import UsageError
from srl.runs import folder as run_folder
from srl.runs.folder import (
    RunFolder,
    changed_keys,
    describe_environment,
    git_state,
    plain,
    replace_file,
    run_path,
    write_json,
)


def test_names_of_the_files(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "first")
    assert run.path == tmp_path / "runs" / "first"
    assert run.path.is_dir()
    assert run.name == "first"
    paths = (run.config, run.command, run.environment, run.metrics, run.steps, run.eval)
    names = [path.relative_to(run.path).as_posix() for path in (*paths, run.summary, run.policy)]
    assert names == [
        "config.yaml",
        "command.txt",
        "environment.json",
        "metrics.jsonl",
        "steps.jsonl",
        "eval.jsonl",
        "summary.json",
        "policy",
    ]


def test_a_folder_in_use_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("a", "a-2"):
        RunFolder.create(tmp_path, name).metrics.write_text("kept\n")
    with pytest.raises(UsageError, match=r"in use.*make resume RUN=\S+/a\. .*make train RUN=a-3"):
        RunFolder.create(tmp_path, "a")
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == "kept\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="in use"):
        RunFolder.create(tmp_path, "file")


def test_an_empty_folder_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert RunFolder.create(tmp_path, "a").path == tmp_path / "a"


def test_without_a_name_every_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    runs = [RunFolder.create(tmp_path) for _ in range(3)]
    for run in runs:
        run.metrics.touch()
    runs.append(RunFolder.create(tmp_path))
    assert runs[-1].path not in [run.path for run in runs[:-1]]


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a b", "/absolute", "a\n", "."])
def test_names_that_are_no_folder_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="run name"):
        RunFolder.create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_no_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the run folder.*Not a directory"):
        RunFolder.create(tmp_path / "file", "a")
    # Root may write anywhere, so what the system would answer to others is put in its mouth.
    monkeypatch.setattr(run_folder.os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="cannot write the run folder.*no write permission"):
        RunFolder.create(tmp_path, "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        RunFolder.create(tmp_path, "a")


def test_open_names_the_runs_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder.*make train"):
        RunFolder.open(tmp_path / "a")
    for name in ("b", "c"):
        RunFolder.create(tmp_path, name).write_start({}, ["srl"])
    assert RunFolder.open(tmp_path / "b").name == "b"
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match=r"no config\.yaml.*: b, c$"):
        RunFolder.open(tmp_path / "a")


class Colour(Enum):
    RED = "red"


def test_start_writes_config_command_and_environment(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    config = {
        "model": Path("base") / "model",
        "learning_rate": 1e-6,
        "data": [{"source": "gsm8k", "weight": 1.0}],
        "colour": Colour.RED,
        "pair": (1, 2),
        "nothing": None,
        "text": "π: yes",
    }
    run.write_start(config, ["srl", "train", "--system-prompt", "think first"])
    run.add_command(["srl", "resume", "a"])
    assert run.read_config() == {
        **config,
        "model": "base/model",
        "colour": "red",
        "pair": [1, 2],
    }
    assert list(run.read_config()) == list(config)
    assert run.command.read_text() == ("srl train --system-prompt 'think first'\nsrl resume a\n")
    environment = json.loads(run.environment.read_text())
    assert set(environment) == {"started", "python", "platform", "cpu_count", "packages", "git"}
    assert {"torch", "transformers", "trl", "accelerate"} <= set(environment["packages"])
    assert sorted(path.name for path in run.path.iterdir()) == [
        "command.txt",
        "config.yaml",
        "environment.json",
    ]


def test_a_config_that_was_broken_afterwards(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.config.write_text("- 1\n")
    with pytest.raises(UsageError, match="not a mapping"):
        run.read_config()
    run.config.write_text("a: [1\n")
    with pytest.raises(UsageError, match="cannot read"):
        run.read_config()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("a: &x [1]\nb: *x\n", "line 2 has an alias"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "line 2 has an alias"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: 2026-13-45\n", "month must be in 1..12"),
        ("a: " + "9" * 5000, "cannot read"),
    ],
)
def test_a_config_that_would_harm_its_reader(tmp_path: Path, config: str, reason: str) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.config.write_text(config)
    with pytest.raises(UsageError, match=reason):
        run.read_config()


def test_a_config_that_would_unfold(tmp_path: Path) -> None:
    """300 bytes that stand for ten thousand million words."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10)]
    run = RunFolder.create(tmp_path, "a")
    run.config.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="line 2 has an alias"):
        run.read_config()


def test_what_we_write_has_no_aliases(tmp_path: Path) -> None:
    run, shared = RunFolder.create(tmp_path, "a"), [1, {"b": 2}]
    run.write_start({"a": shared, "c": shared}, [])
    assert run.read_config() == {"a": shared, "c": shared}


def test_the_command_line_is_written_without_secrets(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.write_start({}, ["srl", "train", "--hub_token", "hf_SECRET", "--seed", "1"])
    run.add_command(["srl", "resume", "a", "--push-to-hub-token=hf_SECRET"])
    assert run.command.read_text() == (
        "srl train --hub_token ... --seed 1\nsrl resume a --push-to-hub-token=...\n"
    )


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*args: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path) == {"commit": None, "dirty": True}
    git("add", ".")
    git("commit", "-m", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "file").write_text("2")
    state = git_state(tmp_path)
    assert state is not None
    assert state["dirty"] is True
    # A copy installed inside somebody's checkout is not that checkout.
    assert git_state(tmp_path / "inner") is None


def test_a_run_names_the_commit_of_this_checkout() -> None:
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    is_checkout = done.returncode == 0 and (root / ".git").exists()  # not an unpacked archive
    state = describe_environment()["git"]
    assert (state or {}).get("commit") == (done.stdout.strip() if is_checkout else None)  # type: ignore[attr-defined]


def test_without_git_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_json_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"accuracy": float("nan"), "n": 500, "text": "π"})
    assert json.loads(path.read_text()) == {"accuracy": None, "n": 500, "text": "π"}
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(run_folder.os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        write_json(path, {"n": 1})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_file_of_the_longest_name_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("😀" * 63)
    replace_file(path, b"\0new")
    assert path.read_bytes() == b"\0new"
    assert list(tmp_path.iterdir()) == [path]


def test_changed_keys() -> None:
    old = {"a": 1, "b": {"c": 0.1, "d": [1, 2]}, "gone": None, "same": Path("x"), "empty": {}}
    new = {"a": 2, "b": {"c": 0.1, "d": (1, 3)}, "new": "π", "same": "x", "empty": {}}
    assert changed_keys(old, new) == [
        "a: 1 -> 2",
        "b.d: [1, 2] -> [1, 3]",
        "gone: null -> (not set)",
        'new: (not set) -> "π"',
    ]
    assert changed_keys(old, old) == []
    assert changed_keys({}, {}) == []


def test_a_config_read_back_differs_in_nothing(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    config = {"path": Path("a"), "colour": Colour.RED, "rate": 1e-6, "pair": (1, 2), "set": {"b"}}
    run.write_start(config, [])
    assert changed_keys(run.read_config(), config) == []


def test_plain_values() -> None:
    class Kind(StrEnum):
        STEPS = "steps"

    assert plain({1: Kind.STEPS, "o": (Path("a"), {3, 2})}) == {"1": "steps", "o": ["a", [2, 3]]}
    assert type(plain(Kind.STEPS)) is str


def test_a_word_names_a_run_and_no_folder_beside_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("docs", "runs/one", "here", "runs/both", "both"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("runs/one", "here", "runs/both", "both"):
        (tmp_path / folder / "config.yaml").touch()
    assert run_path("docs") == Path("runs/docs")
    assert run_path("one") == Path("runs/one")
    assert run_path("both") == Path("runs/both")
    assert run_path("here") == Path("here")
    assert run_path("runs/one") == Path("runs/one")
    monkeypatch.chdir(tmp_path / "runs" / "one")
    assert run_path(".").name == "one"


@pytest.mark.parametrize(
    "name", [".", "..", "/", "docs", "a b", "it's", "-x", "x" * 300, "é", "a/b/c", "\udcff", ""]
)
@pytest.mark.parametrize("words", [["resume", "{}"], ["inspect", "{}"], ["eval", "--run={}"]])
def test_what_is_no_run_is_told_in_words(
    name: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from srl.commands.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    assert main([word.format(name) for word in words]) == 2
    said = capsys.readouterr().err
    assert "is not a run folder" in said or (name == "-x" and "RUN" in said), said


def test_links_that_lead_nowhere_and_to_runs(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.write_start({}, [])
    (tmp_path / "link").symlink_to("a")
    assert RunFolder.open(tmp_path / "link").read_config() == {}
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UsageError, match="gone is not a run folder: its link leads nowhere"):
        RunFolder.open(tmp_path / "gone")
    with pytest.raises(UsageError, match="gone is in use"):
        RunFolder.create(tmp_path, "gone")


@pytest.mark.parametrize(
    "name",
    ["steps.jsonl", "eval.jsonl", "config.yaml", "command.txt", "policy", "checkpoint-2",
     "checkpoint-1/trainer_state.json", "policy/model.safetensors"],
)  # fmt: skip
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    """Of a run that comes from elsewhere."""
    mine = tmp_path / "mine"
    mine.write_text("kept")
    run = RunFolder.create(tmp_path, "a")
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).symlink_to(mine)
    (run.path / "notes").symlink_to(mine)  # not ours to say
    with pytest.raises(UsageError, match=f"{name} is a link to {mine}, and this would write"):
        run.refuse_links()
    (run.path / name).unlink()
    run.refuse_links()
    os.mkfifo(run.path / "metrics.jsonl")  # whoever opens it waits for ever
    with pytest.raises(UsageError, match=r"metrics\.jsonl is no file"):
        run.refuse_links()


def test_what_others_put_into_a_folder_is_not_taken_away(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.write_start({}, [])
    (run.path / "my-notes.txt").write_text("mine")
    run.take_away()
    assert [path.name for path in run.path.iterdir()] == ["my-notes.txt"]
