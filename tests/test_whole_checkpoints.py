"""A checkpoint on the disk: whole, or it is said in words what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from srl.errors import UsageError
from srl.runs.checkpoints import (
    MANIFEST,
    NEEDED,
    best_so_far,
    check_checkpoint,
    checkpoints,
    damage,
    latest_checkpoint,
    put_in_place,
    rotate,
    seal,
    sweep,
)

FILES = (*NEEDED, "model.safetensors", "config.json")


def checkpoint(run: Path, step: int, *, files: tuple[str, ...] = FILES, best: str = "") -> Path:
    path = run / f"checkpoint-{step}"
    (path / "templates").mkdir(parents=True)
    for name in (*files, "templates/one.jinja"):
        (path / name).write_text(f"{name} of step {step}")
    state = {"best_model_checkpoint": best or None}
    (path / "trainer_state.json").write_text(json.dumps(state))
    seal(path)
    return path


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES = {
    "missing": Path.unlink,
    "empty": empty,
    "truncated": truncate,
    "a bit flipped": flip_a_bit,
    "a folder": make_a_folder,
    "a loop": make_a_loop,
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, "templates/one.jinja", MANIFEST])
def test_every_damage_is_found_and_named(tmp_path: Path, name: str, how: str) -> None:
    good, newest = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2)
    assert damage(newest) is None
    check_checkpoint(newest)
    DAMAGES[how](newest / name)
    why = damage(newest)
    assert why is not None
    assert name != MANIFEST or how == "a bit flipped" or MANIFEST in why or "read" in why
    assert name == MANIFEST or name in why
    told: list[str] = []
    assert latest_checkpoint(tmp_path, told.append) == good
    assert told == [f"passed over {newest}: {why}"]
    with pytest.raises(UsageError, match="checkpoint-2 is not a checkpoint to go on from: "):
        check_checkpoint(newest)
    shutil.rmtree(good)
    with pytest.raises(UsageError, match="has no checkpoint to go on from.*\n  .*checkpoint-2: "):
        latest_checkpoint(tmp_path, told.append)


@pytest.mark.parametrize(
    ("denied", "said"),
    [("optimizer.pt", "optimizer.pt cannot be read: "), (MANIFEST, "it cannot be read: ")],
)
def test_what_nobody_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str, said: str
) -> None:
    newest = checkpoint(tmp_path, 2)
    opened = Path.open

    def open_or_not(path: Path, *args: object, **kwargs: object) -> object:
        if path.name == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_or_not)
    assert damage(newest) == f"{said}Permission denied"


@pytest.mark.parametrize("missing", [*NEEDED, "model.safetensors"])
def test_what_a_manifest_does_not_name_is_missed_too(tmp_path: Path, missing: str) -> None:
    """`save_only_model`, for one: transformers would go on with a fresh optimiser, and silently."""
    files = tuple(name for name in FILES if name != missing)
    path = tmp_path / "checkpoint-1"
    if missing != "trainer_state.json":
        path = checkpoint(tmp_path, 1, files=files)
    else:
        checkpoint(tmp_path, 1)
        (path / missing).unlink()
        seal(path)
    assert "it lacks" in str(damage(path))
    assert missing in str(damage(path))


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": {"a": {"size": "x"}}}', "[" * 10**5, "\0"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    path = checkpoint(tmp_path, 1)
    (path / MANIFEST).write_text(text)
    assert damage(path) == f"{MANIFEST} is damaged"


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = checkpoint(tmp_path, 1)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", denied)
    monkeypatch.setattr(Path, "iterdir", denied)
    assert damage(newest) == "it cannot be read: Permission denied"
    with pytest.raises(UsageError, match="cannot read .*: Permission denied"):
        latest_checkpoint(tmp_path, pytest.fail)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path, pytest.fail) is None
    assert damage(tmp_path / "checkpoint-1") == "no such folder"
    nine, ten = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert checkpoints(tmp_path) == [nine, ten]  # by number
    assert latest_checkpoint(tmp_path, pytest.fail) == ten


def test_the_best_one_must_be_whole_where_the_run_ends_with_it(tmp_path: Path) -> None:
    """And it lies beside the others, wherever the run's folder was when they were saved."""
    first = checkpoint(tmp_path, 1, best="/gone/runs/a/checkpoint-1")
    second = checkpoint(tmp_path, 2, best="/gone/runs/a/checkpoint-2")
    third = checkpoint(tmp_path, 3, best="/gone/runs/a/checkpoint-2")
    assert [best_so_far(one) for one in (first, second, third)] == [first, second, second]
    assert latest_checkpoint(tmp_path, pytest.fail, with_best=True) == third
    (second / "model.safetensors").unlink()
    assert latest_checkpoint(tmp_path, pytest.fail) == third
    told: list[str] = []
    assert latest_checkpoint(tmp_path, told.append, with_best=True) == first
    assert "checkpoint-3: the best checkpoint until then, checkpoint-2, is not whole" in told[0]
    shutil.rmtree(first)
    with pytest.raises(UsageError, match="--load_best_model_at_end false"):
        latest_checkpoint(tmp_path, pytest.fail, with_best=True)
    assert best_so_far(checkpoint(tmp_path, 4)) is None


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (1, None, [4]),
        (2, None, [3, 4]),
        (1, 2, [2, 4]),
        (2, 1, [1, 4]),
        (3, 4, [2, 3, 4]),
        (9, 1, [1, 2, 3, 4]),
    ],
)
def test_which_ones_are_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    best: int | None,
    kept: list[int],
) -> None:
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    chosen = None if best is None else Path("/moved") / f"checkpoint-{best}"
    with monkeypatch.context() as patch:  # the process is killed while it deletes
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        rotate(tmp_path / "checkpoint-4", limit=limit, best=chosen)
    assert checkpoints(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in kept]
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / f"checkpoint-{step}" for step in kept]


def test_a_folder_takes_its_place_whole(tmp_path: Path) -> None:
    def write(folder: Path, text: str) -> Path:
        folder.mkdir()
        (folder / "config.json").write_text(text)
        return folder

    place = tmp_path / "policy"
    for text in ("first", "second"):
        put_in_place(write(tmp_path / "new", text), place)
        assert [path.read_text() for path in tmp_path.rglob("*.json")] == [text]
    assert list(tmp_path.iterdir()) == [place]
