"""Reads experiment files strictly: the model, the data, the rewards and the settings.

A file has the fields of `SRLConfig` at its top level, and besides them `model`, `data`, `rewards`,
`method` and `lora`. Nothing is ignored: an unknown key or a wrong type is refused before anything
is loaded, with a message that says what is allowed.

`TrlParser` is not used: it has no nested fields (`--data.limit 100`, `--rewards.similarity 1.0`),
and its messages name argparse's options rather than the file's lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from environments.types import DataError, LoadReport, Trajectory
from rewards import FORMAT_FAILURE_REWARD, RewardSum, StepReward
from srl.config.data import DataPlan
from srl.config.lora import LoraSettings
from srl.config.mixture import Mixture
from srl.config.parts import GroupSettings, RewardSettings, own_settings, setting_names
from srl.config.settings import ExpertConfig, SRLConfig, TrainerConfig
from srl.config.strict_yaml import (
    apply_overrides,
    build,
    fit,
    read_settings,
    refuse_unknown,
)
from srl.config.trust import note
from srl.errors import UsageError
from srl.redaction import SECRETS, moved_to_environment

Method = Literal["srl", "sft"]

_SETTINGS: dict[str, type[TrainerConfig]] = {"srl": SRLConfig, "sft": ExpertConfig}
_BLOCKS = ("model", "data", "rewards", "method", "lora")


@dataclass
class Experiment:
    """The checked content of an experiment file.

    Attributes:
        model: a folder or the name of a model on the hub.
        data: `source`, which is a built-in name, `file.py:Name` or `module:Name`, `path` and
            `limit` for `environments.load_trajectories`, and the source's own options; or
            `sources`, which holds several such blocks (`srl/config/data.py`).
        rewards: step reward -> weight, or -> {weight, options, name}; see `rewards.RewardSum`.
            Secrets in `rewards` and `data` are replaced by their names: `srl/redaction.py`.
        args: the trainer's settings; `output_dir` is not yet a run's own folder.
        method: "srl", or "sft", which is fine-tuning on the expert's text: `srl/training/sft.py`.
        lora: the adapter to train; None trains the whole model.
    """

    model: str
    data: dict[str, object]
    rewards: dict[str, object] = field(default_factory=lambda: {"similarity": 1.0})
    args: TrainerConfig = field(default_factory=SRLConfig)
    method: Method = "srl"
    lora: LoraSettings | None = None

    def resolved(self) -> dict[str, object]:
        """Returns the full config, as config.yaml stores it and `parse_experiment` reads it."""
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
        """Returns the rewards, ready to score; see the function of the same name.

        Raises:
            UsageError: an unknown name, an invalid weight, or nothing to optimise.
        """
        return sum_rewards(self.rewards, self.args, run_folder)

    def load_trajectories(self, report: LoadReport) -> list[Trajectory]:
        """Returns the trajectories of `data`.

        Raises:
            DataError: something cannot be read or used; the message says what.
        """
        return self.data_plan.load(report)

    @property
    def data_plan(self) -> DataPlan:
        """Returns `data` as a plan of its sources."""
        return DataPlan.of(self.data, "the experiment")

    @property
    def mixture(self) -> Mixture | None:
        """Returns how the sources of `data` are mixed; None if there is only one source."""
        return self.data_plan.mixture


def sum_rewards(
    step_rewards: Mapping[str | StepReward, object] | Mapping[str, object],
    args: RewardSettings,
    run_folder: Path | None,
) -> RewardSum:
    """Returns the weighted sum of the rewards, with deadline, workers and error policy of `args`.

    Rows on which a reward fails are saved beside `run_folder`, because the folder itself is removed
    if nothing was trained. Without a folder, such rows are not saved.

    Raises:
        UsageError: an unknown name, an invalid weight, or nothing to optimise.
    """
    folder = None if run_folder is None else run_folder.resolve()
    # Settings of methods that do not train on the sum have no format_failure_reward.
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
    """Returns settings in which secrets of `rewards` and `data` are replaced by their names.

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
    """Returns `named` with the original sources' names, which are never secrets."""
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
    """Returns the path relative to the current folder if it is inside it, else unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment file; `overrides` are words of a command line, `--key value ...`.

    Code that the file or the overrides name counts as the user's own: see `srl/config/trust.py`.

    Raises:
        UsageError: no such file, no YAML, an unknown key, a wrong type, impossible sizes.
    """
    path = Path(path)
    if not path.is_file():
        beside = {config.stem: config for config in sorted(path.parent.glob("*.yaml"))}
        near = get_close_matches(path.stem, beside, n=1)
        meant = f", such as {beside[near[0]]}" if near else ""
        raise UsageError(
            f"there is no config file {path}; name one with CONFIG=… or --config …{meant}"
        )
    values = apply_overrides(read_settings(path), overrides)
    note(values)
    try:
        return parse_experiment(values, where=str(path))
    except UsageError as error:
        if not overrides or not str(error).startswith(f"{path}: "):
            raise
        with suppress(UsageError):
            parse_experiment(read_settings(path), where=str(path))
            # The file alone is fine.
            message = str(error).removeprefix(f"{path}: ")
            error = UsageError(f"on the command line, over {path}: {message}")
        raise error from None


def settings_of_any_method() -> list[str]:
    """Returns the names of the settings of all methods, each name once."""
    return list(dict.fromkeys(name for kind in _SETTINGS.values() for name in setting_names(kind)))


def parse_experiment(values: Mapping[str, object], *, where: str) -> Experiment:
    """Checks settings and returns the experiment; `where` names their origin in messages.

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
        asked = {environment.prompts for environment in data_plan.environments}
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
