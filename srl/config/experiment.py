"""An experiment file: which model, what data, which rewards and settings; strictly read.

It holds the fields of `SRLConfig` at its top level, and beside them `model`, `data`, `rewards`,
`method` and `lora`. Nothing is ignored: an unknown key or a wrong type is refused before anything
is loaded, with a message that says what is allowed.

Not `TrlParser`: it has no nested fields (`--data.limit 100`, `--rewards.similarity 1.0`), and its
messages name argparse's options rather than the file's lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from environments.types import DataError, LoadReport, Trajectory
from rewards import FORMAT_FAILURE_REWARD, RewardSum, StepReward
from srl.config.data import DataPlan
from srl.config.lora import LoraSettings
from srl.config.mixture import Mixture
from srl.config.parts import GroupSettings, RewardSettings, own_settings, setting_names
from srl.config.settings import ExpertConfig, SRLConfig, TrainerConfig
from srl.config.strict_yaml import apply_overrides, build, fit, read_settings, refuse_unknown
from srl.config.trust import note
from srl.errors import UsageError
from srl.redaction import SECRETS, moved_to_environment

Method = Literal["srl", "sft"]

_SETTINGS: dict[str, type[TrainerConfig]] = {"srl": SRLConfig, "sft": ExpertConfig}
_BLOCKS = ("model", "data", "rewards", "method", "lora")


@dataclass
class Experiment:
    """One experiment file, checked.

    Attributes:
        model: a folder or the name of a model on the hub.
        data: `source`, a built-in name, `file.py:Name` or `module:Name`, `path` and `limit` for
            `environments.load_trajectories`, and the source's own options; or `sources`, several
            of them (`srl/config/data.py`).
        rewards: step reward -> weight, or -> {weight, options, name}; see `rewards.RewardSum`.
            Of these and of `data`, texts that are secrets are named: `srl/redaction.py`.
        args: the trainer's settings, `output_dir` not yet a run's own folder.
        method: "srl", or "sft", fine-tuning on the expert's text: `srl/training/sft.py`.
        lora: the adapter to train; None trains the whole model.
    """

    model: str
    data: dict[str, object]
    rewards: dict[str, object] = field(default_factory=lambda: {"similarity": 1.0})
    args: TrainerConfig = field(default_factory=SRLConfig)
    method: Method = "srl"
    lora: LoraSettings | None = None

    def resolved(self) -> dict[str, object]:
        """The full config, as config.yaml keeps it and `parse_experiment` reads it."""
        kind = type(self.args)
        default, own = kind(output_dir=self.args.output_dir), own_settings(kind)
        settings = {
            name: getattr(self.args, name)
            for name in setting_names(kind)
            if (name in own or getattr(self.args, name) != getattr(default, name))
            and name not in SECRETS
        }
        rewards = {} if self.method == "sft" else {"rewards": self.rewards}
        lora = None if self.lora is None else self.lora.to_json()
        blocks = {"method": self.method, "model": self.model, "data": self.data, **rewards}
        return {**blocks, **settings, "lora": lora}

    def sum_rewards(self, run_folder: Path | None = None) -> RewardSum:
        """The rewards, ready to score; see the function of the same name.

        Raises:
            UsageError: an unknown name, a weight that is none, or nothing to optimise.
        """
        return sum_rewards(self.rewards, self.args, run_folder)

    def load_trajectories(self, report: LoadReport) -> list[Trajectory]:
        """The trajectories of `data`.

        Raises:
            DataError: what cannot be read or used, in words.
        """
        return self.data_plan.load(report)

    @property
    def data_plan(self) -> DataPlan:
        """`data`, read."""
        return DataPlan.of(self.data, "the experiment")

    @property
    def mixture(self) -> Mixture | None:
        """How the sources of `data` are mixed; None where there is one."""
        return self.data_plan.mixture


def sum_rewards(
    step_rewards: Mapping[str | StepReward, object] | Mapping[str, object],
    args: RewardSettings,
    run_folder: Path | None,
) -> RewardSum:
    """The weighted sum of the rewards, with the deadline, workers and error policy of `args`.

    Rows that one fails on are saved beside `run_folder`, which is taken away again if nothing was
    trained; without a folder nowhere.

    Raises:
        UsageError: an unknown name, a weight that is none, or nothing to optimise.
    """
    folder = None if run_folder is None else run_folder.resolve()
    # Where nothing is trained on the sum there is no such setting.
    earned: float | Mapping[str, float] = FORMAT_FAILURE_REWARD
    if isinstance(args, GroupSettings):
        earned = args.format_failure_reward
    try:
        rewards = RewardSum(
            _with_named_secrets(step_rewards),
            deadline=args.reward_deadline,
            workers=args.reward_workers,
            errors=args.reward_errors,
            format_failure=earned,
            failed_rows=folder and short_path(folder.with_name(f"{folder.name}.failed")),
        )
        rewards.load()
        return rewards
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error


def with_named_secrets(values: Mapping[str, object]) -> dict[str, object]:
    """Settings whose options of rewards and data name secrets and do not hold them.

    Raises:
        UsageError: a secret is a number.
    """
    named = dict(values)
    if isinstance(data := values.get("data"), Mapping):
        named["data"] = _with_sources(moved_to_environment(data, "data"), data)
    if isinstance(rewards := values.get("rewards"), Mapping):
        named["rewards"] = _with_named_secrets(rewards)
    return named


def _with_sources(named: dict[str, object], data: Mapping[str, object]) -> dict[str, object]:
    """The names of sources are no secrets, whatever they look like."""
    if "source" in data:
        named["source"] = data["source"]
    blocks = data.get("sources")
    if isinstance(blocks, Mapping):
        moved = cast(Mapping[str, dict[str, object]], named["sources"])
        named["sources"] = {
            name: _with_sources(moved[name], block) if isinstance(block, Mapping) else block
            for name, block in blocks.items()
        }
    return named


def _with_named_secrets(rewards: Mapping[Any, object]) -> dict[Any, object]:
    return {
        name: {**settings, "options": moved_to_environment(settings["options"], f"rewards.{name}")}
        if isinstance(settings, Mapping) and isinstance(settings.get("options"), Mapping)
        else settings
        for name, settings in rewards.items()
    }


def short_path(path: Path) -> Path:
    """As one would type it from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file; `overrides` are words of a command line, `--key value ...`.

    Code that they name is the user's own: see `srl/config/trust.py`.

    Raises:
        UsageError: no such file, no YAML, an unknown key, a wrong type, impossible sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no config file {path}; name one with CONFIG=… or --config …")
    values = apply_overrides(read_settings(path), overrides)
    note(values)
    return parse_experiment(values, where=str(path))


def settings_of_any_method() -> list[str]:
    """The settings of all methods, each once."""
    return list(dict.fromkeys(name for kind in _SETTINGS.values() for name in setting_names(kind)))


def parse_experiment(values: Mapping[str, object], *, where: str) -> Experiment:
    """Check settings and build the experiment; `where` names their origin in messages.

    Raises:
        UsageError: an unknown key (the nearest one is named), a wrong type, a missing key, sizes
            that cannot work together.
    """
    refuse_unknown(values, [*_BLOCKS, *settings_of_any_method()], where)
    values = with_named_secrets(values)
    model, data = values.get("model"), values.get("data")
    if not isinstance(model, str) or not model:
        raise UsageError(
            f"{where}: model is {model!r}; give a model folder or a hub name, "
            "such as model: Qwen/Qwen2.5-0.5B-Instruct"
        )
    data_plan = DataPlan.of(data, where)
    rewards = values.get("rewards", {"similarity": 1.0})
    if not isinstance(rewards, dict):
        raise UsageError(
            f"{where}: rewards is {rewards!r}; give names with weights, such as "
            "rewards: {similarity: 1.0}"
        )
    try:
        asked = {one.prompts for one in data_plan.environments}
    except (UsageError, DataError) as error:
        raise UsageError(f"{where}: data: {error}") from error
    prompts = asked.pop()
    for name in ("system_prompt", "whole_system_prompt"):
        if asked and name not in values:
            raise UsageError(
                f"{where}: the sources of data ask with different system prompts; say {name} for "
                "all of them"
            )
    method = cast(Method, fit(values.get("method", "srl"), Method, f"{where}: method"))
    kind = _SETTINGS[method]
    settings = {
        "system_prompt": prompts.step,
        "whole_system_prompt": prompts.whole,
        **{key: value for key, value in values.items() if key not in _BLOCKS},
    }
    if method == "sft":
        own = setting_names(kind)
        if data_plan.mixture is not None and data_plan.mixture.adaptive is not None:
            raise UsageError(
                f"{where}: method sft has no use for data.adaptive: there are no groups whose "
                "rewards could differ; take it out, or train with method: srl"
            )
        unused = ["rewards", *(name for name in setting_names(SRLConfig) if name not in own)]
        if idle := [key for key in unused if key in values]:
            raise UsageError(
                f"{where}: method sft has no use for {', '.join(idle)}: there are no rollouts to "
                "train on; take the setting out, or train with method: srl"
            )
    elif idle := [
        name
        for name in setting_names(ExpertConfig)
        if name in values and name not in setting_names(SRLConfig)
    ]:
        raise UsageError(
            f"{where}: method srl has no use for {', '.join(idle)}: its policy writes its text "
            "itself; take the setting out, or train with method: sft"
        )
    try:
        lora = LoraSettings.of(values.get("lora"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    args = build(kind, settings, where)
    data = data_plan.whole(cast(Mapping[str, object], data))
    return Experiment(model, data, dict(rewards), args, method, lora)
