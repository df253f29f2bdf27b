"""What is passed on of a run holds neither its tokens nor the places of its files."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from srl.redaction import shareable, shareable_command, told_apart, without_secrets


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--hub_token x --seed 1", "--hub_token ... --seed 1"),
        ("--hub-token x", "--hub-token ..."),
        ("--hub_token=x", "--hub_token=..."),
        ("--push-to_hub-token=a=b", "--push-to_hub-token=..."),
        ("--hub_token --seed 1", "--hub_token --seed 1"),
        ("--hub_token", "--hub_token"),
        ("--hub_token x --hub_token=y", "--hub_token ... --hub_token=..."),
        ("hub_token x", "hub_token x"),
        ("", ""),
    ],
)
def test_secrets_of_a_command_line(words: str, shown: str) -> None:
    assert " ".join(without_secrets(words.split())) == shown


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("/home/me/venv/bin/python -m srl train", "python -m srl train"),
        ("srl --config ../me/a.yaml --model Qwen/Qwen2.5", None),
        ("srl --config /home/me/a.yaml --x=~/me/b.yaml", "srl --config a.yaml --x=b.yaml"),
        ("srl --data.path '/home/my self/a b.jsonl'", "srl --data.path 'a b.jsonl'"),
        ("srl '--data.path=/home/my self/b.jsonl'", "srl --data.path=b.jsonl"),
        ("srl --rewards./home/me/own.py:good 0.5", "srl --rewards.own.py:good 0.5"),
        ("srl --rewards.x '{name: /home/me/x.py:own}'", "srl --rewards.x '{name: x.py:own}'"),
        ("srl --system_prompt '/no_think or </think>'", None),
        ("srl '--system-prompt=/no_think in/no time/'", None),
        ("srl --model https://example.org/a/b --temperature 1/2/3", None),
        ("srl --hub_token 'hf SECRET'", "srl --hub_token ..."),
        ("srl '--hub_token=hf SECRET'", "srl --hub_token=..."),
        ("srl --hub_token 'hf SECRET", "srl --hub_token ..."),
        ('srl --hub_token "hf SECRET', "srl --hub_token ..."),
        ("srl --hub_\\token hf_SECRET\n/opt/srl resume a", "srl --hub_\\token ...\nsrl resume a"),
        ("srl  'two\nlines'\n\nsrl\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_command_to_be_shown(command: str, shown: str | None) -> None:
    assert shareable_command(command) == (command if shown is None else shown)


def test_a_command_as_it_is_written() -> None:
    words = ["/usr/bin/python", "--hub_token", "it's\na 'secret'", "--seed", "it's", "--x=/a/b c"]
    assert shlex.split(shareable_command(shlex.join(words))) == [
        "python", "--hub_token", "...", "--seed", "it's", "--x=b c",
    ]  # fmt: skip


def test_a_hostile_command_takes_no_time() -> None:
    for part in ("'", '"', "\\", '"\\', "'\"", "/a", "--", "~/"):
        text = part * 100_000
        assert len(shareable_command(text)) <= len(text) + 10


def test_settings_to_be_shown() -> None:
    settings = {
        "model": "/home/me/models/tiny",
        "data": {"path": "~/data.jsonl", "parts": [r"C:\\Users\\me\\a", "runs/a"]},
        "rewards": {"/home/me/own.py:good": 0.5},
        "hub_token": "hf_SECRET",
        "push_to_hub_token": None,
        "system_prompt": "/no_think or </think>",
        "seed": 1,
    }
    assert shareable(settings) == {
        "model": "tiny",
        "data": {"path": "data.jsonl", "parts": ["a", "runs/a"]},
        "rewards": {"own.py:good": 0.5},
        "hub_token": "...",
        "push_to_hub_token": None,
        "system_prompt": "/no_think or </think>",
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a/run", "/x/b/run"], ["a/run", "b/run"]),
        (["/x/a/runs/run", "/x/b/runs/run"], ["a/runs/run", "b/runs/run"]),
        (["/x/one", "/y/two"], ["one", "two"]),
        (["/runs/run", "/x/runs/run"], ["runs/run", "x/runs/run"]),
    ],
)
def test_runs_told_apart(paths: list[str], names: list[str]) -> None:
    assert told_apart(list(map(Path, paths))) == names
