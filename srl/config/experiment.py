"""An experiment file: which model, what data, which rewards and settings; strictly read.

It holds the fields of `SRLConfig` at its top level, and beside them `model`, `data`, `rewards`,
`method` and `lora`. Nothing is ignored: an unknown key or a wrong type is refused before anything
is loaded, with a message that says what is allowed.

Not `TrlParser`: it has no nested fields (`--data.limit 100`, `--rewards.similarity 1.0`), and its
messages name argparse's options rather than the file's lines.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Union

from environments import load_trajectories
from environments.types import LoadReport, Trajectory
from rewards import RewardSum, StepReward
from srl.config.lora import LoraSettings
from srl.config.settings import ExpertConfig, SRLConfig
from srl.config.strict_yaml import apply_overrides, read_settings
from srl.errors import UsageError
from srl.redaction import SECRETS

Method = Literal["srl", "sft"]

# What fine-tuning on the expert's text has no use for, not even when it evaluates.
_FOR_RL_ALONE = (
    "rewards",
    "num_generations",
    "dynamic_sampling",
    "dynamic_sampling_epsilon",
    "max_sampling_rounds",
    "max_empty_steps",
    "loss_type",
    "scale_rewards",
    "epsilon",
    "epsilon_high",
    "beta",
    "use_bias_correction_kl",
    "num_iterations",
    "format_failure_reward",
    "log_completions",
)


@dataclass
class Experiment:
    """One experiment file, checked.

    Attributes:
        model: a folder or the name of a model on the hub.
        data: `source` and `path` for `environments.load_trajectories`, `limit`, and the source's
            own options.
        rewards: step reward -> weight, or -> {weight, options, name}; see `rewards.RewardSum`.
        args: the trainer's settings, `output_dir` not yet a run's own folder.
        method: "srl", or "sft", fine-tuning on the expert's text: `srl/training/sft.py`.
        lora: the adapter to train; None trains the whole model.
    """

    model: str
    data: dict[str, object]
    rewards: dict[str, object] = field(default_factory=lambda: {"similarity": 1.0})
    args: SRLConfig = field(default_factory=SRLConfig)
    method: Method = "srl"
    lora: LoraSettings | None = None

    def resolved(self) -> dict[str, object]:
        """The full config, as config.yaml keeps it and `parse_experiment` reads it."""
        own = {f.name: getattr(self.args, f.name) for f in fields(SRLConfig) if f.init}
        default = SRLConfig(output_dir=self.args.output_dir)
        changed = {
            name: value
            for name, value in own.items()
            if (name in SRLConfig.__annotations__ or value != getattr(default, name))
            and name not in SECRETS
        }
        whole = {"model": self.model, "data": self.data, "rewards": self.rewards, **changed}
        if self.method == "sft":
            whole = {name: value for name, value in whole.items() if name not in _FOR_RL_ALONE}
        lora = None if self.lora is None else self.lora.to_json()
        return {"method": self.method, **whole, "lora": lora}

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
        options = dict(self.data)
        source = options.pop("source")
        return load_trajectories(str(source), report=report, **options)  # type: ignore[arg-type]


def sum_rewards(
    step_rewards: Mapping[str | StepReward, object] | Mapping[str, object],
    args: SRLConfig,
    run_folder: Path | None,
) -> RewardSum:
    """The weighted sum of the rewards, with the deadline, workers and error policy of `args`.

    Rows that one fails on are saved beside `run_folder`, which is taken away again if nothing was
    trained; without a folder nowhere.

    Raises:
        UsageError: an unknown name, a weight that is none, or nothing to optimise.
    """
    folder = None if run_folder is None else run_folder.resolve()
    try:
        rewards = RewardSum(
            step_rewards,
            deadline=args.reward_deadline,
            workers=args.reward_workers,
            errors=args.reward_errors,
            format_failure=args.format_failure_reward,
            failed_rows=folder and short_path(folder.with_name(f"{folder.name}.failed")),
        )
        rewards.load()
        return rewards
    except ValueError as error:
        raise UsageError(f"rewards: {error}") from error


def short_path(path: Path) -> Path:
    """As one would type it from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file; `overrides` are words of a command line, `--key value ...`.

    Raises:
        UsageError: no such file, no YAML, an unknown key, a wrong type, impossible sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no config file {path}; name one with CONFIG=… or --config …")
    return parse_experiment(apply_overrides(read_settings(path), overrides), where=str(path))


def parse_experiment(values: Mapping[str, object], *, where: str) -> Experiment:
    """Check settings and build the experiment; `where` names their origin in messages.

    Raises:
        UsageError: an unknown key (the nearest one is named), a wrong type, a missing key, sizes
            that cannot work together.
    """
    hints = typing.get_type_hints(SRLConfig)
    trainer_fields = {f.name for f in fields(SRLConfig) if f.init}
    known = {"model", "data", "rewards", "method", "lora", *trainer_fields}
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{where}: unknown key {key!r}{hint}")
    model, data = values.get("model"), values.get("data")
    if not isinstance(model, str) or not model:
        raise UsageError(
            f"{where}: model is {model!r}; give a model folder or a hub name, "
            "such as model: Qwen/Qwen2.5-0.5B-Instruct"
        )
    if not isinstance(data, dict) or not isinstance(data.get("source"), str):
        raise UsageError(
            f"{where}: data is {data!r}; give a source, such as data: {{source: word_problems}}"
        )
    if not isinstance(data.get("path"), str | None):
        raise UsageError(
            f"{where}: data.path is {data['path']!r}; give a file or a hub name, as text"
        )
    rewards = values.get("rewards", {"similarity": 1.0})
    if not isinstance(rewards, dict):
        raise UsageError(
            f"{where}: rewards is {rewards!r}; give names with weights, such as "
            "rewards: {similarity: 1.0}"
        )
    method = _fit(values.get("method", "srl"), Method, f"{where}: method")
    if method == "sft" and (idle := [key for key in _FOR_RL_ALONE if key in values]):
        raise UsageError(
            f"{where}: method sft has no use for {', '.join(idle)}: there are no rollouts to "
            "train on; take the setting out, or train with method: srl"
        )
    try:
        lora = LoraSettings.of(values.get("lora"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    chosen = {}
    for key, value in values.items():
        if key in trainer_fields:
            chosen[key] = _fit(value, hints[key], f"{where}: {key}")
    try:
        args = (SRLConfig if method == "srl" else ExpertConfig)(**chosen)  # type: ignore[arg-type]
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except (ValueError, TypeError, ImportError) as error:  # transformers' checks, in its words
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{where}: {reason}") from error
    return Experiment(
        model=model,
        data=dict(data),
        rewards=dict(rewards),
        args=args,
        method=method,  # type: ignore[arg-type]
        lora=lora,
    )


def _fit(value: object, hint: object, where: str) -> object:
    """`value` if it is of type `hint`, a whole number as float where one is asked for."""
    if value is False and where.endswith("_strategy"):
        value = "no"  # YAML 1.1 reads a bare `no` as False: eval_strategy: no
    origin = typing.get_origin(hint)
    if origin is Literal:
        allowed = typing.get_args(hint)
        if value in allowed:
            return value
        raise UsageError(f"{where} is {value!r}; allowed: {', '.join(map(str, allowed))}")
    options = typing.get_args(hint) if origin in (Union, types.UnionType) else (hint,)
    plain = [option for option in options if option is not type(None)]
    if value is None and len(plain) < len(options):
        return None
    for option in plain:
        base = typing.get_origin(option) or option
        if base not in (bool, int, float, str, list, dict):
            return value  # an enum or a class of transformers, which checks it itself
        if type(value) is base or (base is float and type(value) is int):
            return float(value) if base is float else value  # type: ignore[arg-type]
        # YAML 1.1 reads 1e-4 as text.
        if base is float and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass
    names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    names = names.replace("NoneType", "null")
    raise UsageError(f"{where} is {value!r} ({type(value).__name__}); it must be of type {names}")
