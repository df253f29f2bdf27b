"""Reads a comparison's file strictly, and makes the plan of its runs.

A cell's settings come from `settings`, then from its difficulty, then from its row. Later settings
override earlier ones. But the `data` options of a row are added to those of its difficulty and of
the row that its `like` names. All cells are checked before the first starts, so that a wrong key in
the last row is not discovered after a night. `quick` changes the keys that it names, and removes a
difficulty or row that is null there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from rewards import RewardSum
from srl.compare.gap import expanded
from srl.compare.plan import Cell, Plan, Row, cell_name
from srl.config.experiment import (
    Experiment,
    parse_experiment,
    settings_of_any_method,
    with_named_secrets,
)
from srl.config.strict_yaml import fit, nearest, read_settings, refuse_unknown
from srl.errors import UsageError
from srl.redaction import SECRETS

KEYS = (
    "output",
    "model",
    "settings",
    "difficulties",
    "rows",
    "contrasts",
    "gap",
    "seeds",
    "data_seed",
    "metric",
    "keep_checkpoints",
    "quick",
)
QUICK_KEYS = tuple(key for key in KEYS if key != "quick")
ROW_WORDS = ("train", "title", "after", "like")
"""The keys of a row besides the fields of an experiment file."""

# The names of rows and difficulties are parts of folder names: hard.srl.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")

# Fields of an experiment that the plan sets for every cell, with what to use instead.
_PLANNED = {
    "output_dir": "`output` says where the runs are",
    "run_name": "a cell is named by its difficulty, row and seed",
    "seed": "`seeds` lists them",
    "data_seed": "it is one for all cells; write it at the top of the file",
    "test_before": "the untrained policy is a row: `train: false`",
}


def load_plan(
    path: Path,
    *,
    quick: bool = False,
    model: str | None = None,
    data: str | None = None,
    output: str | None = None,
) -> Plan:
    """Reads a comparison's file and returns its plan.

    Args:
        path: the file.
        quick: apply the changes under `quick`.
        model, output: replace the values in the file.
        data: the `path` of every difficulty's data; it replaces the value in the file.

    Raises:
        UsageError: no such file, no YAML, an unknown key (the message names the nearest), a row
            that does not exist, a circle of rows, settings that no experiment can have.
    """
    if not path.is_file():
        raise UsageError(f"there is no comparison file {path}; name one with --config …")
    values = read_settings(path)
    refuse_unknown(values, KEYS, str(path))
    if quick:
        values = _made_quick(values, str(path))
    across = "gap" in values
    values = expanded(values, str(path))
    blocks = _block(values.get("difficulties"), f"{path}: difficulties")
    if model is not None and (own := _with_model(blocks)):
        raise UsageError(
            f"--model is {model}, but {path} names the model of {own[0]} itself; change it there"
            + (", in gap.models" if across else "")
        )
    given = {"model": model, "data": data, "output": output}
    words = [f"--{key} {shlex.quote(value)}" for key, value in given.items() if value is not None]
    values |= {key: given[key] for key in ("model", "output") if given[key] is not None}
    plan = _plan(values, path, quick=quick, data_path=data)
    return replace(plan, given=tuple(words), across=across)


def _with_model(blocks: Mapping[str, object]) -> list[str]:
    """Returns the names of the difficulties that have their own model."""
    return [name for name, of in blocks.items() if isinstance(of, dict) and "model" in of]


def _made_quick(values: Mapping[str, object], where: str) -> dict[str, object]:
    changes = _block(values.get("quick"), f"{where}: quick")
    if not changes:
        raise UsageError(
            f"{where} has no quick: block; it says what --quick changes, such as "
            "quick: {seeds: [0], settings: {max_steps: 2}}"
        )
    at = f"{where}, quick"
    refuse_unknown(changes, QUICK_KEYS, at)
    # The folder is never the same, because its finished cells would have other settings.
    result = {**values, **changes}
    if "output" not in changes and isinstance(output := values.get("output"), str) and output:
        result["output"] = f"{output}-quick"
    result["settings"] = {
        **_block(values.get("settings"), f"{where}: settings"),
        **_block(changes.get("settings"), f"{at}: settings"),
    }
    if "gap" in changes:
        gap = _block(values.get("gap"), f"{where}: gap")
        result["gap"] = _deep_merged(gap, _block(changes["gap"], f"{at}: gap"))
    if _block(values.get("gap"), f"{where}: gap").get("expert_tokens") is not None:
        small = _block(changes.get("gap"), f"{at}: gap")
        if "expert_tokens" not in small:
            raise UsageError(
                f"{at}: gap.expert_tokens is missing, so rows at equal tokens would be as long as "
                "without --quick; give a smaller number, or null for none of them"
            )
    for key in ("difficulties", "rows"):
        if key not in values and "gap" in values:
            continue  # difficulties and rows follow from gap
        blocks = _block(values.get(key), f"{where}: {key}")
        changed = _block(changes.get(key), f"{at}: {key}")
        refuse_unknown(changed, blocks, f"{at}: {key}")
        result[key] = {
            name: _merged(
                _block(block, f"{where}: {key}.{name}"),
                _block(changed.get(name), f"{at}: {key}.{name}"),
            )
            for name, block in blocks.items()
            if name not in changed or changed[name] is not None
        }
    return result


def _deep_merged(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """Returns `old` updated with `new`, block by block; null removes a key."""
    result = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(before, dict) and isinstance(value, dict):
            result[key] = _deep_merged(before, value)
        else:
            result[key] = value
    return result


def _merged(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """Returns `old` updated with `new`; the options of `data` are updated one by one."""
    result = {**old, **new}
    before, after = old.get("data"), new.get("data")
    if isinstance(before, dict) and isinstance(after, dict):
        result["data"] = {**before, **after}
    return result


def _plan(values: Mapping[str, object], path: Path, *, quick: bool, data_path: str | None) -> Plan:
    where = str(path)
    output = values.get("output")
    if not isinstance(output, str) or not output:
        raise UsageError(
            f"{where}: output is {output!r}; give a folder for the runs, such as "
            "output: runs/compare"
        )
    settings = _block(values.get("settings"), f"{where}: settings")
    _settings_known(settings, (), f"{where}, settings")
    for key, place in (("model", "at the top of the file"), ("data", "into a difficulty")):
        if key in settings:
            raise UsageError(f"{where}, settings: write {key} {place}")
    difficulties = _blocks(values.get("difficulties"), f"{where}: difficulties")
    for name, block in difficulties.items():
        _settings_known(block, (), f"{where}, difficulty {name}")
        if "data" not in block:
            raise UsageError(
                f"{where}, difficulty {name}: it has no data; give its problems, such as "
                "data: {source: word_problems, limit: 2000}"
            )
    blocks = _blocks(values.get("rows"), f"{where}: rows")
    rows = {name: _row(name, block, blocks, where) for name, block in blocks.items()}
    own_settings: dict[str, dict[str, object]] = {}
    for name in _in_order(blocks, "like", where):  # a row comes after the row it is like
        own = {key: value for key, value in blocks[name].items() if key not in ROW_WORDS}
        if "model" in own and rows[name].after is not None:
            raise UsageError(
                f"{where}, row {name}: it starts after row {rows[name].after}, so it has no model "
                "of its own; give one of the two"
            )
        own_settings[name] = _merged(own_settings.get(str(blocks[name].get("like")), {}), own)
    seeds, data_seed = _seeds(values, where)
    cells = []
    for difficulty, problems in difficulties.items():
        for row in (rows[name] for name in _in_order(blocks, "after", where)):
            place = f"{where}, row {row.name}, difficulty {difficulty}"
            given = {"model": values.get("model"), **settings, **problems, **own_settings[row.name]}
            # The data options of a row are added. `compare` checks that all rows still hold out
            # the same problems.
            if data_path is not None and "sources" in _block(problems["data"], where):
                raise UsageError(
                    f"{where}, difficulty {difficulty}: it mixes several sources, and --data gives "
                    "one file; write each source's path into the comparison's file"
                )
            given["data"] = {
                **_block(problems["data"], f"{where}, difficulty {difficulty}: data"),
                **_block(own_settings[row.name].get("data"), f"{where}, row {row.name}: data"),
                **({} if data_path is None else {"path": data_path}),
            }
            for seed in seeds if row.trained else (None,):
                # The untrained policy uses the seed of the problems for its samples.
                given |= {"seed": data_seed if seed is None else seed, "data_seed": data_seed}
                given |= {"test_before": False, "output_dir": output}
                after = cell_name(difficulty, row.after, seed) if row.after is not None else None
                if after is not None:
                    given["model"] = str(Path(output) / after / "policy")
                given = with_named_secrets(given)
                experiment = parse_experiment(given, where=place)
                try:
                    RewardSum(experiment.rewards)
                except ValueError as error:
                    raise UsageError(f"{place}: rewards: {error}") from error
                name = cell_name(difficulty, row.name, seed)
                cells.append(Cell(name, difficulty, row.name, seed, after, {**given}, experiment))
    return Plan(
        source=path,
        quick=quick,
        output=Path(output),
        difficulties=tuple(difficulties),
        rows=tuple(rows.values()),
        seeds=seeds,
        contrasts=_contrasts(values.get("contrasts", []), rows, where),
        metrics=_metrics(values.get("metric", "steps greedy"), cells, where),
        cells=tuple(cells),
        keep_checkpoints=bool(
            fit(values.get("keep_checkpoints", False), bool, f"{where}: keep_checkpoints")
        ),
    )


def _in_order(rows: Mapping[str, Mapping[str, object]], word: str, where: str) -> list[str]:
    """Returns the names of the rows, each after the row that its `word` names.

    Raises:
        UsageError: rows name each other in a circle.
    """
    graph = {name: [] if block.get(word) is None else [block[word]] for name, block in rows.items()}
    try:
        return [str(name) for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise UsageError(f"{where}: rows {word} each other in a circle: {circle}") from error


def figure_names(experiment: Experiment) -> list[str]:
    """Returns the names of the figures of an evaluation with these settings, as in `figures_of`."""
    args = experiment.args
    samples = {"steps": args.solve_samples}
    if args.solve_whole:
        whole = args.solve_samples if args.whole_samples is None else args.whole_samples
        samples = {"whole": whole, **samples}
    return [
        f"{mode} {figure}"
        for mode, k in samples.items()
        for figure in ("greedy", *((f"avg@{k}", f"pass@{k}", f"maj@{k}") if k else ()))
    ]


def _settings_known(values: Mapping[str, object], more: Sequence[str], where: str) -> None:
    """Raises UsageError for a key that is unknown, a secret, or set by the plan.

    Known keys are the fields of an experiment and `more`.
    """
    own = [field.name for field in fields(Experiment) if field.name != "args"]
    refuse_unknown(values, [*own, *settings_of_any_method(), *more], where)
    for key in SECRETS:
        if key in values:
            raise UsageError(
                f"{where}: {key} would stand in the config of every cell; leave it out, and set "
                "HF_TOKEN in the environment"
            )
    for key, why in _PLANNED.items():
        if key in values:
            raise UsageError(f"{where}: {key} is the plan's: {why}")


def _block(value: object, where: str) -> dict[str, object]:
    """Returns a copy of a mapping whose keys must be texts; None gives an empty mapping."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where} is {value!r}; it must hold `key: value` lines")
    for key in value:
        if not isinstance(key, str):
            raise UsageError(f"{where}: the key {key!r} is no text; put it in quotes")
    return dict(value)


def _blocks(value: object, where: str) -> dict[str, dict[str, object]]:
    """Returns a mapping of names to blocks, which must have one entry or more."""
    blocks = _block(value, where)
    if not blocks:
        raise UsageError(f"{where} is empty; it must name one or more")
    for name in blocks:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{where}: the name {name!r} becomes a part of a folder's: it has letters, digits "
                "and _ + - only, and starts with a letter or digit"
            )
    return {name: _block(block, f"{where}.{name}") for name, block in blocks.items()}


def _row(
    name: str, block: Mapping[str, object], rows: Mapping[str, Mapping[str, object]], where: str
) -> Row:
    where_row = f"{where}, row {name}"
    _settings_known(block, ROW_WORDS, where_row)
    trained, title, after = block.get("train", True), block.get("title", name), block.get("after")
    if not isinstance(trained, bool):
        raise UsageError(f"{where_row}: train is {trained!r}; allowed: true, false")
    if not isinstance(title, str):
        raise UsageError(f"{where_row}: title is {title!r}; give a text")
    for key in ("after", "like"):
        if block.get(key) is not None:
            _one_of(rows, block[key], f"{where_row}: {key} is")
    if after is not None and not trained:
        raise UsageError(f"{where_row}: after is for rows that are trained; take it or train away")
    if after is not None and rows[str(after)].get("train") is False:
        raise UsageError(
            f"{where_row}: it starts after {after}, which is not trained; "
            "leave `after` away: every row starts from model"
        )
    return Row(name, title, trained, None if after is None else str(after))


def _one_of(rows: Collection[str], name: object, what: str) -> None:
    if not isinstance(name, str) or name not in rows:
        raise UsageError(
            f"{what} {name!r}, which is none of the rows {', '.join(rows)}{nearest(name, rows)}"
        )


def _seeds(values: Mapping[str, object], where: str) -> tuple[tuple[int, ...], int]:
    given, data_seed = values.get("seeds", [0]), values.get("data_seed", 0)
    seeds = tuple(given) if isinstance(given, list) else ()
    whole = all(type(seed) is int and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{where}: seeds is {given!r}; give different whole numbers from 0 on, such as "
            "[0, 1, 2]"
        )
    if type(data_seed) is not int or data_seed < 0:
        raise UsageError(f"{where}: data_seed is {data_seed!r}; give a whole number from 0 on")
    return seeds, data_seed


def _contrasts(value: object, rows: Collection[str], where: str) -> tuple[tuple[str, str], ...]:
    pairs = value if isinstance(value, list) else [value]
    contrasts = []
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or pair[0] == pair[1]
            or not all(isinstance(row, str) for row in pair)
        ):
            raise UsageError(
                f"{where}: contrasts has {pair!r}; give pairs of rows, such as "
                "contrasts: [[srl, rlvr], [srl, base]]"
            )
        for row in pair:
            _one_of(rows, row, f"{where}: contrasts names")
        contrasts.append((pair[0], pair[1]))
    return tuple(contrasts)


def _metrics(given: object, cells: Sequence[Cell], where: str) -> tuple[str, ...]:
    metrics = given if isinstance(given, list) else [given]
    if not metrics or len(set(map(str, metrics))) < len(metrics):
        raise UsageError(
            f"{where}: metric is {given!r}; give a figure, or several different ones as a list, "
            "the main one first"
        )
    for cell in cells:
        place = f"row {cell.row}, difficulty {cell.difficulty}"
        if cell.experiment.args.test_problems < 1:
            raise UsageError(
                f"{where}, {place}: test_problems is 0: nothing would be solved; give how many, "
                "under settings"
            )
        there = figure_names(cell.experiment)
        for metric in metrics:
            if metric not in there:
                whole = "" if "whole greedy" in there else " (more with solve_whole: true)"
                raise UsageError(
                    f"{where}: metric is {metric!r}, which {place} does not have; it has "
                    f"{', '.join(there)}{whole}"
                )
    return tuple(map(str, metrics))
