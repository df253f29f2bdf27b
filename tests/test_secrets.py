"""Secrets of a run's settings are in none of its files, and a run with secrets can be resumed."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from conftest import train

from rewards import RewardError, StepContext
from rewards.by_path import CodeNameError
from rewards.loading import RewardSpec, load_reward
from rewards.secrets import concealed, revealed
from srl.commands.cli import main
from srl.compare.plan_file import load_plan
from srl.config.experiment import parse_experiment, sum_rewards
from srl.config.settings import ExpertConfig, SRLConfig
from srl.errors import UsageError
from srl.redaction import is_secret, moved_to_environment, scrubbed, without_secrets

JUDGE = """
def judge(step, *, api_key: str, password: str = "", url: str = ""):
    assert (api_key, password) == ("KEY-CANARY", "PASSWORD CANARY"), api_key
    return float(len(step.action) % 7)
"""
REWARDS = (
    "{judge: {weight: 1, name: judge.py:judge, options: {api_key: KEY-CANARY, "
    "password: 'PASSWORD CANARY', url: 'https://me:URLCANARY@example.org/'}}}"
)
CANARY = b"CANARY"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Secrets are moved to the environment of this very process: as it was, afterwards."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def files_with(secret: bytes, folder: Path) -> list[str]:
    """Every file that holds it, inside of archives too."""
    found = []
    for path in (one for one in folder.rglob("*") if one.is_file()):
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts += map(archive.read, archive.namelist())
        if any(secret in part for part in parts):
            found.append(str(path.relative_to(folder)))
    return found


def test_no_file_of_a_run_holds_a_secret(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "judge.py").write_text(JUDGE)
    os.environ |= {"HF_TOKEN": "hf_ENVCANARY", "WANDB_API_KEY": "WANDBCANARY"}
    assert train("--rewards", REWARDS, "--hub_token", "hf_CANARY12345678", "--test_rows", "0") == 0
    runs = home / "runs"
    assert main(["report", "one"]) == 0
    assert main(["inspect", "one", "--export", "parquet", "--to", str(runs / "table")]) == 0
    shown = capsys.readouterr()
    assert files_with(CANARY, runs) == []
    assert "CANARY" not in shown.out + shown.err
    assert (runs / "one/checkpoint-2/training_args.bin").is_file()  # which was looked into
    config = yaml.safe_load((runs / "one/config.yaml").read_text())
    options = config["rewards"]["judge"]["options"]
    assert options["password"] == "${SRL_REWARDS_JUDGE_PASSWORD}"
    assert "hub_token" not in config

    # Another session, which does not know them.
    for name in [name for name in os.environ if name.startswith("SRL_")]:
        del os.environ[name]
    (runs / "one/summary.json").unlink()
    (runs / "one/before.json").write_text("{}")
    shutil.rmtree(runs / "one/checkpoint-4")
    before = (runs / "one/config.yaml").read_bytes()
    assert main(["resume", "one"]) == 2
    assert "export SRL_REWARDS_JUDGE_API_KEY=..." in capsys.readouterr().err
    assert (runs / "one/config.yaml").read_bytes() == before
    os.environ |= {
        "SRL_REWARDS_JUDGE_API_KEY": "KEY-CANARY",
        "SRL_REWARDS_JUDGE_URL": "https://me:URLCANARY@example.org/",
    }
    # Given again they are no change of the settings; in a variable or on the command line.
    assert main(["resume", "one", "--rewards", REWARDS, "--hub_token", "hf_CANARY12345678"]) == 0
    shown = capsys.readouterr()
    assert files_with(CANARY, runs) == []
    assert "CANARY" not in shown.out + shown.err
    assert yaml.safe_load((runs / "one/config.yaml").read_text()) == config


def test_the_settings_that_transformers_pickles(tmp_path: Path) -> None:
    given = {"output_dir": str(tmp_path), "use_cpu": True, "hub_token": "hf_CANARY"}
    for args in (SRLConfig(**given), ExpertConfig(**given)):  # type: ignore[arg-type]
        assert args.hub_token == "hf_CANARY"  # the hub is asked with it
        kept = pickle.dumps(args)
        assert CANARY not in kept
        again = pickle.loads(kept)
        assert again.hub_token is None
        assert again.learning_rate == args.learning_rate


@pytest.mark.parametrize(
    "key",
    ["api_key", "apiKey", "API-KEY", "api_key2", "password", "dbPassword", "passwd", "token",
     "auth_token", "hub_token", "client_secret", "credentials", "Authorization", "OPENAI_API_KEY",
     "private_key", "secret_key", "hf_key", "pwd", "cookie"],
)  # fmt: skip
def test_keys_of_secrets(key: str) -> None:
    assert is_secret(key)
    assert moved_to_environment({key: "x y"}, "data") != {key: "x y"}
    assert moved_to_environment({"a": [{key: ["x y"]}]}, "data") != {"a": [{key: ["x y"]}]}


@pytest.mark.parametrize(
    "options",
    [
        {"eos_token": "</s>", "stop_token": "\n", "pad_token": "<pad>"},
        {"key": "answer", "text_key": "problem", "answer_key": "solution"},
        {"max_tokens": 5, "micro_batch_tokens": "many", "passes": "two", "author": "me"},
        {"token": 5, "password": None, "secret": True, "api_key": ""},
        {"path": "data/hf_transformers", "url": "https://example.org:80/a@b", "name": "sk-learn"},
        {"model": "task-vector-with-a-long-name-2024", "api_key": "${SRL_MINE}"},
        {"headers": {"Authorization": "Bearer ${SRL_MINE_TOO}"}},
    ],
)  # fmt: skip
def test_no_secrets(options: dict[str, object]) -> None:
    assert moved_to_environment(options, "data") == options


@pytest.mark.parametrize(
    "text",
    ["hf_CANARYabc123", "x sk-proj-CANARY1234567", "ghp_CANARYCANARYCANARY12", "AKIACANARY1234567",
     "https://me:CANARY@example.org/x", "Bearer CANARYCANARY.1", "xoxb-123-CANARY-456",
     "eyJCANARYCANARY.eyJzdWIiOiIx.abc", "-----BEGIN RSA PRIVATE KEY-----\nCANARY\n"],
)  # fmt: skip
def test_texts_that_look_like_secrets(text: str) -> None:
    assert "CANARY" not in str(moved_to_environment({"anything": text}, "data"))
    assert "CANARY" not in scrubbed(f"it said: {text}")
    assert "CANARY" not in str(without_secrets(["--data.anything", text, f"--x={text}"]))


def test_a_number_is_no_secret() -> None:
    with pytest.raises(UsageError, match="data.password is a number.*put it in quotes"):
        parse(data={"source": "word_problems", "password": 1234})


def parse(**changes: object) -> object:
    values: Mapping[str, object] = {"model": "m", "data": {"source": "word_problems"}, **changes}
    return parse_experiment(values, where="x.yaml")


def test_two_values_of_one_name() -> None:
    one, two, again = (
        moved_to_environment({"api_key": value}, "rewards.own.py:judge") for value in "aba"
    )
    assert one == again == {"api_key": "${SRL_REWARDS_OWN_PY_JUDGE_API_KEY}"}
    assert two == {"api_key": "${SRL_REWARDS_OWN_PY_JUDGE_API_KEY_2}"}
    assert (revealed(one), revealed(two)) == ({"api_key": "a"}, {"api_key": "b"})


def test_only_variables_of_ours_can_be_named() -> None:
    os.environ |= {"HF_TOKEN": "x", "SRL_OWN": "y"}
    value = {"a": "${HF_TOKEN} $SRL_OWN", "b": ["-${SRL_OWN}-"]}
    assert revealed(value) == {"a": "${HF_TOKEN} $SRL_OWN", "b": ["-y-"]}
    assert concealed("-y- x", value) == "-${SRL_OWN}- x"
    with pytest.raises(CodeNameError, match="the secret SRL_NONE is missing.*export SRL_NONE="):
        revealed("${SRL_NONE}")


OWN = """
def judge(step, *, api_key: str):
    raise ValueError(f"401 for {api_key}")
def count(step, *, api_key: int):
    return 1.0
class Judge:
    def __init__(self, api_key):
        raise ValueError(api_key)
"""


def test_messages_of_failures_name_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    options = moved_to_environment({"api_key": "KEY-CANARY"}, "rewards.x")
    for name, message in (("count", "must be of type int"), ("Judge", "raised ValueError")):
        with pytest.raises(CodeNameError, match=message) as refused:
            load_reward(RewardSpec("x", f"{file}:{name}", options))
        assert "CANARY" not in str(refused.value)
    rewards = sum_rewards(
        {"x": {"weight": 1, "name": f"{file}:judge", "options": {"api_key": "KEY-CANARY"}}},
        SRLConfig(output_dir=str(tmp_path), use_cpu=True),
        tmp_path / "run",
    )
    step = StepContext("How much?", (), "4", "", "4", step_index=0, num_steps=1)
    with pytest.raises(RewardError) as failed:
        rewards.score([step])
    assert "401 for ${SRL_REWARDS_X_API_KEY}" in str(failed.value)
    assert '"options": {"api_key": "${SRL_REWARDS_X_API_KEY}"}' in str(failed.value)
    assert "CANARY" not in str(failed.value)
    (saved,) = tmp_path.glob("run.failed.*.jsonl")  # with the traceback
    assert "401 for ${SRL" in saved.read_text()
    assert "CANARY" not in saved.read_text()


def test_a_comparison_writes_no_secret(tmp_path: Path) -> None:
    plan = {
        "output": "runs/compare",
        "model": "m",
        "settings": {"test_problems": 8, "use_cpu": True},
        "difficulties": {"easy": {"data": {"source": "files", "path": "a", "password": "CANARY"}}},
        "rows": {
            row: {
                "rewards": {"x": {"weight": 1, "name": "similarity", "options": {"api_key": key}}}
            }
            for row, key in (("one", "KEY-CANARY"), ("two", "OTHER-CANARY"))
        },
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    cells = load_plan(tmp_path / "plan.yaml").cells
    assert "CANARY" not in str([cell.settings for cell in cells])
    assert [revealed(cell.experiment.rewards)["x"]["options"] for cell in cells] == [  # type: ignore[index]
        {"api_key": "KEY-CANARY"},
        {"api_key": "OTHER-CANARY"},
    ]
    plan["settings"]["hub_token"] = "hf_x"  # type: ignore[index]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(UsageError, match="hub_token would stand in the config of every cell"):
        load_plan(tmp_path / "plan.yaml")
