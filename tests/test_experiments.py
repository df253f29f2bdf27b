"""Every experiment that is shipped can be read, and says what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from environments import ENVIRONMENTS, check_options
from rewards import RewardSum, StepContext
from srl.config.experiment import Experiment, load_experiment

ROOT = Path(__file__).parents[1]
# A comparison is a file of another kind: tests/test_compare_plan.py and tests/test_real.py read it.
FILES = sorted(
    path
    for path in (ROOT / "experiments").glob("*/*.yaml")
    if path.parent.name not in ("compare", "real")
    and path.name not in ("gap.yaml", "addition.yaml")
)


def test_there_are_experiments() -> None:
    names = {str(path.relative_to(ROOT)) for path in FILES}
    assert {"experiments/tiny/srl.yaml", "experiments/gsm8k/srl.yaml"} <= names


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def experiment(path: Path) -> Experiment:
    return load_experiment(path)


def test_what_is_written_is_what_is_used(path: Path, experiment: Experiment) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert experiment.data == written.pop("data")
    assert experiment.rewards == written.pop("rewards", {"similarity": 1.0})
    assert experiment.model == written.pop("model")
    assert experiment.method == written.pop("method", "srl")
    for key, value in written.items():
        found = getattr(experiment.args, key)
        assert found == (float(value) if isinstance(found, float) else value), key


def test_the_model_is_there_or_made_or_on_the_hub(experiment: Experiment) -> None:
    name = experiment.model
    known = (ROOT / name / "config.json").is_file()
    made = re.fullmatch(r"runs/real/gsm8k\.(\w+)\.0/policy", name)  # by `make real`
    if made is not None:
        plan = yaml.safe_load((ROOT / "experiments/real/smollm2.yaml").read_text(encoding="utf-8"))
        assert made[1] in plan["rows"]
    else:
        assert known or re.fullmatch(r"[\w.-]+/[\w.-]+", name), name


def test_its_source_has_these_options(experiment: Experiment) -> None:
    for source in experiment.data_plan.sources:
        name, options = source.environment, dict(source.options)
        assert name in ENVIRONMENTS
        options = {key: options[key] for key in options if key not in ("path", "limit")}
        check_options(name, ENVIRONMENTS[name], options)


def test_its_rewards_exist(experiment: Experiment) -> None:
    assert RewardSum(experiment.rewards).names == tuple(experiment.rewards)


def test_held_out_problems_leave_some_to_train_on(experiment: Experiment) -> None:
    held_out = experiment.args.validation_problems + experiment.args.test_problems
    limit = experiment.data.get("limit")
    assert limit is None or held_out < 0.5 * int(str(limit))


# ---- the example of rewards of one's own ------------------------------------------------------


CUSTOM = "experiments/custom_reward.py"


def test_the_example_rewards_do_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = {"name": f"{CUSTOM}:Mentions", "weight": -0.1, "options": {"words": ["So", "hence"]}}
    rewards = RewardSum(
        {
            f"{CUSTOM}:same_object": 1.0,
            f"{CUSTOM}:brief": 0.0,
            f"{CUSTOM}:relative_brevity": 0.0,
            "connectives": words,
        }
    )

    def step(action: str, expert_step: str = "So Kurt has 4 pears.") -> StepContext:
        return StepContext("p", (), action, "t" * 90, expert_step, 0, 2)

    steps = [step("So Kurt has 5 pears."), step("Kurt has 4 figs."), step("4", "The answer is 4.")]
    rewards.check(steps[0])
    said = [score.rewards for score in rewards.score(steps)]
    assert [one["same_object"] for one in said] == [1.0, 0.0, None]
    assert [one["brief"] for one in said] == [0.5, 0.5, 0.5]
    assert [one["relative_brevity"] for one in said] == pytest.approx([0.0, 0.2, 0.95])
    assert [one["connectives"] for one in said] == [0.5, 0.0, 0.0]
    rewards.close()
    with pytest.raises(ValueError, match="words is empty; give at least one"):
        RewardSum({"none": {**words, "options": {"words": []}}}).check(steps[0])
