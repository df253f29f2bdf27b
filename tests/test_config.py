"""Experiment files: what is read, what is refused, and with which words."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from environments.prompts import PAPER_SYSTEM_PROMPT
from environments.types import LoadReport
from srl.commands.cli import main
from srl.config.experiment import load_experiment, parse_experiment
from srl.config.parts import Part, own_settings, parts_of, setting_names
from srl.config.settings import (
    _UNUSED,
    BenchmarkSettings,
    ExpertConfig,
    SRLConfig,
    check_one_process,
)
from srl.config.strict_yaml import apply_overrides, build
from srl.errors import UsageError
from srl.runs.folder import plain

MINIMAL: dict[str, object] = {"model": "some/model", "data": {"source": "word_problems"}}


def parse(**settings: object):
    return parse_experiment({**MINIMAL, **settings}, where="my.yaml")


def refused(message: str, **settings: object) -> None:
    with pytest.raises(UsageError, match=message):
        parse(**settings)


def test_a_minimal_file_gets_the_papers_values() -> None:
    found = parse()
    assert (found.model, found.data, found.rewards) == (
        "some/model",
        {"source": "word_problems"},
        {"similarity": 1.0},
    )
    args = found.args
    assert args.learning_rate == 5e-7
    assert args.targets == "literal"
    assert args.loss_type == "grpo"
    assert args.system_prompt == PAPER_SYSTEM_PROMPT
    assert (args.temperature, args.top_p, args.top_k, args.min_p) == (1.0, 1.0, 0, None)
    assert args.report_to == []


def test_values_keep_or_get_their_types() -> None:
    args = parse(
        learning_rate="1e-4",  # YAML 1.1 reads this as text
        temperature=2,
        epsilon_high=1,
        min_p="5e-2",
        report_to=["tensorboard"],
        system_prompt=None,
        eval_strategy="steps",
        eval_steps=5,
        lr_scheduler_kwargs={"num_cycles": 2},
    ).args
    assert args.learning_rate == 1e-4
    for name, value in (("temperature", 2.0), ("epsilon_high", 1.0), ("min_p", 0.05)):
        assert getattr(args, name) == value
        assert type(getattr(args, name)) is float
    assert args.report_to == ["tensorboard"]
    assert args.system_prompt is None
    assert args.eval_strategy == "steps"
    assert args.eval_steps == 5


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learning_rat", "learning_rate"),
        ("num_generation", "num_generations"),
        ("reward", "rewards"),
        ("modle", "model"),
        ("Seed", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    refused(f"my.yaml: unknown key '{key}'; did you mean {nearest}\\?", **{key: 1})


def test_an_unknown_key_like_nothing_known() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'qqqq'; docs/commands\.md"):
        parse(qqqq=1)
    with pytest.raises(UsageError, match="unknown key 3; "):
        parse_experiment({**MINIMAL, 3: 1}, where="my.yaml")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_steps": "5"},
            r"my.yaml: max_steps is '5' \(str\); it must be of type int, such as 3$",
        ),
        ({"max_steps": 5.0}, r"max_steps is 5.0 \(float\); it must be of type int"),
        ({"max_steps": None}, r"max_steps is None \(NoneType\)"),
        ({"num_generations": True}, r"num_generations is True \(bool\); it must be of type int"),
        ({"think": 1}, r"think is 1 \(int\); it must be of type bool: true or false$"),
        ({"learning_rate": "fast"}, r"learning_rate is 'fast' \(str\); it must be of type float"),
        ({"learning_rate": True}, r"learning_rate is True \(bool\)"),
        ({"min_p": []}, r"min_p is \[\] \(list\); it must be of type float or null"),
        ({"system_prompt": {"a": 1}}, r"system_prompt is \{'a': 1\} \(dict\).* str or null"),
        ({"targets": "most"}, "targets is 'most'; allowed: literal, all, skip_first"),
        ({"step_title": True}, "step_title is True; allowed: off, given"),
        ({"template": None}, "template is None; allowed: auto, chat, plain"),
        ({"loss_type": "ppo"}, "loss_type is 'ppo'; allowed: grpo, dapo, dr_grpo"),
        ({"loss_type": "none.py:mine"}, "loss_type 'none.py:mine': there is no file none.py in"),
        ({"scale_rewards": "std"}, "scale_rewards is 'std'; allowed: group, batch, none"),
        ({"delta": 0.9}, "delta is 0.9; it bounds ratios, .* so it must be above 1"),
        ({"delta": 4.0, "loss_type": "cispo"}, "cispo has no use for delta"),
        ({"epsilon": 0.1, "loss_type": "cispo"}, "cispo has no use for delta and epsilon"),
        ({"loss_type": "cispo"}, "which is not given; set epsilon_high: 5.0"),
        ({"entropy_coef": math.inf}, "entropy_coef is inf; give a finite number"),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"},
            "scale_rewards is 'none', but normalize_then_sum always divides",
        ),
        ({"model": None}, "model is None; give a model folder or a hub name"),
        ({"model": ""}, "model is ''; give a model folder"),
        ({"model": 3}, "model is 3"),
        ({"data": None}, "data is None; give a source, such as"),
        ({"data": "gsm8k"}, "data is 'gsm8k'; give a source"),
        ({"data": {"path": "x.jsonl"}}, "data is .*; give a source"),
        ({"data": {"source": "gsm8k", "path": 3}}, "data.path is 3; give a file or a hub name"),
        ({"rewards": None}, "rewards is None; give names with weights"),
        ({"rewards": "similarity"}, "rewards is 'similarity'"),
        ({"eval_strategy": "often"}, "my.yaml: often is not a valid IntervalStrategy"),
        ({"accelerator_config": {"x": 1}}, "my.yaml: .*unexpected keyword argument 'x'"),
        ({"warmup_steps": -1}, "my.yaml: .*warmup_steps"),
    ],
)
def test_wrong_types_and_values(settings: dict[str, object], message: str) -> None:
    refused(message, **settings)


@pytest.mark.parametrize("key", ["model", "data"])
def test_a_missing_block(key: str) -> None:
    rest = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(UsageError, match=f"{key} is None; give a"):
        parse_experiment(rest, where="my.yaml")


LEAST = {
    "prompts_per_step": 1,
    "num_generations": 2,
    "max_completion_length": 1,
    "max_sampling_rounds": 1,
    "max_empty_steps": 1,
    "num_iterations": 1,
    "train_problems": 0,
    "validation_problems": 0,
    "test_problems": 0,
    "test_rows": 0,
    "whole_samples": 0,
    "reward_workers": 1,
    "short_steps": 1,
    "solve_max_steps": 1,
    "solve_samples": 0,
    "whole_max_completion_length": 1,
    "top_k": 0,
    "dynamic_sampling_epsilon": 0,
    "epsilon": 0,
    "epsilon_high": 0,
    "beta": 0,
    "learning_rate": 0,
}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_the_smallest_sizes(name: str, least: int) -> None:
    assert getattr(parse(**{name: least}).args, name) == least
    refused(f"my.yaml: {name} is {least - 1}.*; it must be {least}.* or more", **{name: least - 1})
    if type(getattr(SRLConfig(), name)) is not int:
        refused(f"{name} is nan", **{name: math.nan})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "2 or more: a group of 1 has no advantage"),
        ({"seed": -1}, "seed is -1; it must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296; it must be from 0 to"),
        ({"temperature": 0}, "temperature is 0.0; rollouts are sampled, so it must be above 0"),
        ({"temperature": -1}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 0}, "min_p is 0.0; it must be above 0 and at most 1, or null"),
        ({"min_p": 2}, "min_p is 2.0"),
        (
            {"rollout_token_budget": 4103, "num_generations": 8, "max_completion_length": 512},
            r"rollout_token_budget is 4103, but one prompt's rollouts may take 4104 tokens "
            r"\(8 x max_completion_length 512 and a prompt\); set rollout_token_budget to 16416, "
            r"or max_completion_length to 128",
        ),
        (
            {"micro_batch_tokens": 512, "max_completion_length": 512},
            r"micro_batch_tokens is 512, but one completion may take 513 tokens .*"
            r"set micro_batch_tokens to 2052, or max_completion_length to 128",
        ),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2; leave it at 1"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size is 4; leave it at 1"),
        (
            {"label_smoothing_factor": 0.1},
            "label_smoothing_factor is 0.1; leave it at 0.0: the objective has advantages",
        ),
        (
            {"dataloader_num_workers": 3},
            "dataloader_num_workers is 3; leave it at 0: the order of prompts",
        ),
        ({"do_train": True}, "do_train is True; leave it at False: the commands"),
        (
            {"eval_strategy": "epoch"},
            "eval_strategy is epoch; .*: steps and .* eval_steps",
        ),
        (
            {
                "num_iterations": 2,
                "save_strategy": "best",
                "eval_strategy": "steps",
                "eval_steps": 5,
                "metric_for_best_model": "eval_accuracy",
            },
            "eval_steps is 5 and num_iterations 2: .* make eval_steps a multiple of 2",
        ),
        (
            {"num_iterations": 4, "save_steps": 10},
            "save_steps is 10.* and num_iterations 4.*make save_steps a multiple of 4",
        ),
        (
            {"num_iterations": 2, "save_steps": 0.1, "max_steps": 50},
            "save_steps is 0.1, a share .*give save_steps in steps, a multiple of 2",
        ),
        (
            {
                "num_iterations": 2,
                "save_strategy": "best",
                "eval_strategy": "steps",
                "metric_for_best_model": "eval_accuracy",
            },
            "logging_steps is 1 and num_iterations 2: .* make logging_steps a multiple of 2",
        ),
        ({"fp16": True}, "fp16 is True; leave it at False: .*set bf16"),
    ],
)
def test_impossible_sizes(settings: dict[str, object], message: str) -> None:
    refused("my.yaml: .*" + message, **settings)


def test_possible_sizes() -> None:
    parse(rollout_token_budget=4104, num_generations=8, max_completion_length=512)
    parse(micro_batch_tokens=513, max_completion_length=512)
    parse(num_iterations=4, save_steps=12)
    parse(num_iterations=3, save_strategy="no")  # save_steps is 500, and means nothing
    parse(include_num_input_tokens_seen=False)
    parse(top_p=1, min_p=1)
    assert parse().args.per_device_train_batch_size == 1


def test_fine_tuning_makes_no_rollouts_to_fit() -> None:
    whole: dict[str, object] = {"targets": "whole", "rollout_token_budget": 8192}
    refused("rollout_token_budget is 8192, but one prompt's rollouts may take 16392", **whole)
    found = parse(method="sft", micro_batch_tokens=64, **whole)
    assert type(found.args) is ExpertConfig
    again = parse_experiment(plain(found.resolved()), where="config.yaml")  # type: ignore[arg-type]
    assert again.resolved() == found.resolved()
    refused("max_completion_length is 0", method="sft", max_completion_length=0)


def test_what_the_size_message_proposes_is_accepted() -> None:
    parse(rollout_token_budget=16416, num_generations=8, max_completion_length=512)
    parse(rollout_token_budget=4103, num_generations=8, max_completion_length=128)
    parse(micro_batch_tokens=2052, max_completion_length=512)
    parse(micro_batch_tokens=512, max_completion_length=128)


def test_bf16_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(bf16=False).args.bf16 is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert SRLConfig().bf16 is False
    if not hasattr(torch.cuda, "is_bf16_supported"):
        return
    seen: list[bool | None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Part, "__post_init__", lambda config: seen.append(config.bf16))
    monkeypatch.setattr("srl.config.settings.TrainingArguments.__post_init__", lambda config: None)
    SRLConfig()
    SRLConfig(bf16=False)
    BenchmarkSettings()
    SRLConfig(use_cpu=True)  # there is a GPU, and it is not used
    BenchmarkSettings(use_cpu=True)
    assert seen == [True, False, True, False, False]


def test_overrides() -> None:
    values = {"data": {"source": "gsm8k", "limit": 5}, "seed": 1}
    found = apply_overrides(
        values,
        ["--seed", "2", "--learning-rate=1.0e-3", "--data.limit", "100", "--data.max-chars=7",
         "--rewards.my-own", "0.5", "--system_prompt=", "--think", "no", "--beta", "-1",
         "--model=a/b=c", "--report_to", "[a, b]"],
    )  # fmt: skip
    assert found == {
        "data": {"source": "gsm8k", "limit": 100, "max_chars": 7},
        "seed": 2,
        "learning_rate": 1e-3,
        "rewards": {"my-own": 0.5},
        "system_prompt": None,
        "think": False,
        "beta": -1,
        "model": "a/b=c",
        "report_to": ["a", "b"],
    }
    assert values == {"data": {"source": "gsm8k", "limit": 5}, "seed": 1}, "the input was changed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed", "1"], "'seed' is not an option; settings are given as --key value"),
        (["--"], "'--' is not an option"),
        (["--seed"], "--seed has no value; write --seed VALUE"),
        (["--seed", "--beta", "1"], "--seed has no value"),
        (["--seed", "1", "2"], "'2' is not an option"),
        (["--seed", "[1"], r"--seed: '\[1' cannot be read"),
        (["--seed", "1" * 5000], r"--seed: .1111.* cannot be read: .*4300 digits"),
        (["--seed.x", "1"], "--seed.x: seed is one value, 3, and has no parts"),
    ],
)
def test_overrides_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply_overrides({"seed": 3}, words)


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    found = load_experiment(path, ["--num-generations", "4", "--data.limit", "9"])
    assert found.args.num_generations == 4
    assert found.data == {"source": "word_problems", "limit": 9}
    assert len(found.load_trajectories(LoadReport())) == 9
    with pytest.raises(UsageError, match="unknown key 'num_generationz'; did you mean num_gen"):
        load_experiment(path, ["--num_generationz", "4"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "e.yaml is not YAML"),
        (b"\xff\xfe\x00", "e.yaml is not YAML"),
        (b"- model", "must hold settings as `key: value` lines"),
        (b"", "must hold settings as .*, it holds None"),
        (b"just words", "it holds 'just words'"),
        (b"seed: 1\nseed: 2\n", "the key 'seed' stands twice in the block of line 1"),
        (b"seed: " + b"9" * 5000, "e.yaml is not YAML: .*4300 digits"),
        (b"a: " + b"[" * 5000, "e.yaml is not YAML: line 1: it is nested too deeply"),
        (b"1: 2", "the key 1 is no text; put it in quotes"),
    ],
)
def test_files_that_hold_no_settings(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_experiment(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no config file .*none.yaml; name one with"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="there is no config file"):
        load_experiment(tmp_path)


@pytest.mark.parametrize("method", ["srl", "sft"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "learning_rate": "3e-4",
            "eval_strategy": "steps",
            "save_strategy": "no",
            "lr_scheduler_type": "cosine",
            "optim": "sgd",
            "report_to": ["tensorboard"],
            "targets": "all",
            "system_prompt": None,
            "min_p": 0.1,
            "save_steps": 4,
            "max_steps": 7,
            "output_dir": "elsewhere",
            "lr_scheduler_kwargs": {"num_cycles": 2},
            "data": {"source": "gsm8k", "path": "x.jsonl", "answer_step": True},
        },
    ],
)
def test_a_resolved_config_reads_back_the_same(settings: dict[str, object], method: str) -> None:
    if settings and method == "srl":
        settings = {**settings, "num_iterations": 2, "rewards": {"similarity": 0.5, "other": 0}}
    first = parse(method=method, **settings)
    text = yaml.safe_dump(plain(first.resolved()))  # as config.yaml is written
    second = parse_experiment(yaml.safe_load(text), where="config.yaml")
    assert second.resolved() == first.resolved()
    for f in fields(first.args):
        assert getattr(second.args, f.name) == getattr(first.args, f.name), f.name


# What config.yaml of a run by each method held before settings were put together from parts.
OF_BOTH = """
    output_dir learning_rate lr_scheduler_type max_grad_norm logging_steps bf16 report_to
    disable_tqdm save_strategy save_total_limit per_device_train_batch_size remove_unused_columns
    targets step_title template think system_prompt whole_system_prompt prompts_per_step
    prompt_order max_completion_length temperature top_p top_k min_p rollout_token_budget
    prefix_tree micro_batch_tokens reward_deadline reward_workers reward_errors train_problems
    validation_problems validate_by test_problems test_before test_rows short_steps solve_max_steps
    solve_samples solve_whole whole_samples whole_max_completion_length
"""
OF_SRL = """
    num_generations dynamic_sampling dynamic_sampling_epsilon max_sampling_rounds max_empty_steps
    loss_type scale_rewards epsilon epsilon_high beta use_bias_correction_kl num_iterations
    multi_objective_aggregation mask_truncated_completions importance_sampling_level delta
    entropy_coef
    format_failure_reward log_completions
"""


@pytest.mark.parametrize(("method", "names"), [("srl", OF_BOTH + OF_SRL), ("sft", OF_BOTH)])
def test_a_config_states_every_own_setting_as_those_of_earlier_runs_do(
    method: str, names: str
) -> None:
    now = parse(method=method, max_steps=3)
    resolved = now.resolved()
    assert own_settings(type(now.args)) <= resolved.keys()
    assert resolved["max_steps"] == 3
    assert "weight_decay" not in resolved  # of transformers' settings only what was changed
    rewards = {"rewards": {"similarity": 1.0}} if method == "srl" else {}
    before = {**MINIMAL, **rewards, "method": method, "lora": None, "max_steps": 3} | {
        name: plain(getattr(SRLConfig(), name)) for name in names.split()
    }
    assert parse_experiment(before, where="config.yaml").resolved() == resolved


# ---- what a method does not use ----------------------------------------------------------------


def test_fine_tuning_refuses_what_only_rollouts_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idle = [name for name in setting_names(SRLConfig) if name not in setting_names(ExpertConfig)]
    assert set(OF_SRL.split()) <= set(idle)
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "method": "sft"}))
    for name in ("rewards", *idle):
        # With a value that it has anyway: whoever gives it expects that it does something.
        value = {"similarity": 1.0} if name == "rewards" else getattr(SRLConfig(), name)
        words = [f"--{name}", yaml.safe_dump(value, default_flow_style=True).strip()]
        assert main(["train", "--config", str(path), *words]) == 2
        said = capsys.readouterr().err
        assert f"method sft has no use for {name}: there are no rollouts to train on" in said
        assert "take the setting out, or train with method: srl" in said


# How the field asks a benchmark, which no training knows.
OF_BENCHMARKS = {"num_fewshot", "fewshot_file", "as_is"}


def test_a_benchmark_refuses_what_only_training_needs(capsys: pytest.CaptureFixture[str]) -> None:
    known = set(setting_names(BenchmarkSettings))
    assert known - OF_BENCHMARKS < set(setting_names(SRLConfig))
    for name in [*setting_names(SRLConfig), "rewards", "method", "temperatur"]:
        if name not in known:
            words = ["eval", "--model", "m", "--bench", "gsm8k", f"--{name}", "1"]
            assert main(words) == 2, name
            said = capsys.readouterr().err
            assert f"--{name} does not matter to a benchmark; settings that do: template," in said


def test_a_benchmark_asks_as_a_training_does_unless_told_otherwise() -> None:
    training, benchmark = SRLConfig(), BenchmarkSettings()
    for name in set(setting_names(BenchmarkSettings)) - OF_BENCHMARKS:
        assert getattr(benchmark, name) == getattr(training, name), name
    assert BenchmarkSettings(use_cpu=True).device == torch.device("cpu")
    with pytest.raises(UsageError, match=r"eval: top_k is 1.5 \(float\); it must be of type int"):
        build(BenchmarkSettings, {"top_k": 1.5}, "eval")
    with pytest.raises(UsageError, match="eval: seed is -1; it must be from 0 to"):
        build(BenchmarkSettings, {"seed": -1}, "eval")


# ---- parts -------------------------------------------------------------------------------------

METHODS = (SRLConfig, ExpertConfig, BenchmarkSettings)
PARTS = {part for kind in METHODS for part in parts_of(kind)} - {Part}
FREE_TEXT = {"system_prompt", "whole_system_prompt", "source_tag", "solve_as", "train_experts"}


@pytest.mark.parametrize("part", sorted(PARTS, key=str), ids=lambda part: part.__name__)
def test_every_part_checks_each_of_its_settings(part: type[Part]) -> None:
    """Numbers refuse NaN, words and switches another word, with the setting's name."""
    part()
    own = [f for f in fields(part) if f.name in part.__annotations__ and f.name not in FREE_TEXT]
    if issubclass(part, METHODS) or part.__name__ == "TrainerConfig":
        own = [f for f in own if f.name in ("learning_rate", "seed")]  # transformers has the others
    for f in own:
        number = f.type.startswith(("int", "float"))
        bad = math.nan if number else "something"
        message = (
            rf"^{f.name} is (nan; |'something'(; allowed: | \(str\); it must be of type bool))"
        )
        for kind in (part, *(one for one in METHODS if issubclass(one, part))):
            with pytest.raises(UsageError, match=message):
                kind(**{f.name: bad})


def test_budgets_that_nothing_fits_into() -> None:
    for name in ("rollout_token_budget", "micro_batch_tokens"):
        assert getattr(parse(method="sft", **{name: 1}).args, name) == 1
        refused(f"my.yaml: {name} is 0; it must be 1 or more", method="sft", **{name: 0})


def test_a_bare_no_is_read_as_the_word() -> None:
    values = yaml.safe_load("eval_strategy: no\nsave_strategy: no")
    args = parse(**values).args
    assert (args.eval_strategy, args.save_strategy) == ("no", "no")
    refused("think is 'no'|must be of type bool", think="no")


def test_tokens_are_not_written_down() -> None:
    assert "secret" not in str(plain(parse(hub_token="secret").resolved()))


def test_ignored_settings_are_settings() -> None:
    """A misspelt name in the list would let the setting through."""
    assert set(_UNUSED) <= {field.name for field in fields(SRLConfig)}


def test_no_is_text_only_for_strategies() -> None:
    """YAML 1.1 reads a bare `no` as False."""
    assert parse(eval_strategy=False).args.eval_strategy == "no"
    refused("system_prompt is False .*must be of type str or null", system_prompt=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_order": "random"}, "prompt_order is 'random'; allowed: shuffled, trajectory"),
        ({"loss_type": "bla"}, "loss_type is 'bla'; allowed: grpo, dapo, dr_grpo"),
        ({"prefix_tree": "false"}, "prefix_tree is 'false' .*of type bool"),
    ],
)
def test_python_is_read_as_strictly_as_a_file(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SRLConfig(output_dir="runs", **changes)  # type: ignore[arg-type]


def test_one_process_and_one_gpu() -> None:
    check_one_process(SimpleNamespace(world_size=1, n_gpu=1))  # type: ignore[arg-type]
    check_one_process(SimpleNamespace(world_size=1, n_gpu=0))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="4 processes were started; .* without torchrun"):
        check_one_process(SimpleNamespace(world_size=4, n_gpu=1))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sees 2 GPUs; .* CUDA_VISIBLE_DEVICES=0 make train"):
        check_one_process(SimpleNamespace(world_size=1, n_gpu=2))  # type: ignore[arg-type]


def test_the_day_of_the_prompts_is_recorded_and_may_stand_without_quotes() -> None:
    assert plain(parse().resolved())["prompt_date"] == "2024-07-26"
    values = yaml.safe_load("prompt_date: 2025-01-31")
    assert plain(parse(**values).resolved())["prompt_date"] == "2025-01-31"
    refused("prompt_date is '2025-02-31'; allowed: a day as YYYY-MM-DD", prompt_date="2025-02-31")
