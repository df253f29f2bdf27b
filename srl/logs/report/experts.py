"""Draws which experts a sparse policy uses, from experts.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from srl.logs.report.charts import heat_map, span_of
from srl.logs.report.markup import bare_page
from srl.logs.report.sections import COLUMNS, ROWS, Named, Runs
from srl.runs.expert_load import Layers, added, load_figures
from srl.stats import Estimate

# How many experts of a layer the map shows at most.
_MOST_EXPERTS = 64
# The loads of the first and the last shade: 0 and twice an even load.
_SCALE = (0.0, 2.0)


def experts(runs: Runs) -> str:
    """Returns maps of the load by expert at the end, and of the imbalance over training.

    For dense policies it returns an empty string.
    """
    maps = [part for named_run in runs if named_run.run.expert_load for part in _maps(named_run)]
    return f'<h2>Experts</h2><div class="charts">{"".join(maps)}</div>' if maps else ""


def _maps(named_run: Named) -> list[str]:
    loads = [
        load for load in named_run.run.expert_load if _shape(load[1]) == _shape(_last(named_run))
    ]
    late = loads[-max(1, len(loads) // 5) :]
    steps = late[0][0], late[-1][0]
    return [
        load_map(
            f"load of the experts, {span_of(steps)}{named_run.tag}",
            added([layers for _, layers in late]),
        ),
        _over_training(named_run, loads),
    ]


def _last(named_run: Named) -> Layers:
    return named_run.run.expert_load[-1][1]


def _shape(layers: Layers) -> list[int]:
    return [len(layer) for layer in layers]


def load_map(title: str, layers: Layers) -> str:
    """Returns a heat map, layers by experts, of the load as a multiple of an even share."""
    most = max(map(len, layers))
    about = "Times an even share: 1 is even, 0 an expert without a token."
    if most > _MOST_EXPERTS:
        about += f" The first {_MOST_EXPERTS} of {most} experts are shown."
    if len(layers) > ROWS:
        about += f" The first {ROWS} of {len(layers)} layers are shown."
    cells = [
        [_cell(count / (sum(layer) / len(layer) or 1)) for count in layer[:_MOST_EXPERTS]]
        for layer in layers[:ROWS]
    ]
    width = max(map(len, cells))
    padded = [[*row, *[None] * (width - len(row))] for row in cells]
    columns = [f"expert {number}" for number in range(width)]
    return heat_map(title, about, columns, _names(layers), padded, _SCALE)


def load_page(title: str, layers: Layers, by: Mapping[str, Mapping[str, Layers]]) -> str:
    """Returns a page of load.json: maps for all tokens, then for every value of every split.

    The page loads no other file.
    """
    maps = [load_map("all tokens", layers)]
    for split, values in by.items():
        for value, of in values.items():
            if any(map(sum, of)):
                maps.append(load_map(f"{split.replace('_', ' ')} {value}", of))
    return bare_page(title, f'<div class="charts">{"".join(maps)}</div>')


def _over_training(named_run: Named, loads: Sequence[tuple[int, Layers]]) -> str:
    """Returns a heat map, layers by training steps, of (largest load - mean) / mean."""
    size = -(-len(loads) // COLUMNS)
    bins = [loads[at : at + size] for at in range(0, len(loads), size)]
    columns = [span_of((part[0][0], part[-1][0])) for part in bins]
    totals = [added([layers for _, layers in part]) for part in bins]
    cells = [
        [_cell(_violation(total[number])) for total in totals] for number in range(len(loads[0][1]))
    ][:ROWS]
    about = "(Largest load - mean) / mean: 0 is even; shaded up to 2."
    title = f"imbalance by layer{named_run.tag}"
    return heat_map(title, about, columns, _names(loads[0][1]), cells, _SCALE)


def _violation(layer: Sequence[int]) -> float:
    return load_figures([layer])["max_router_violation"] if sum(layer) else math.nan


def _names(layers: Layers) -> list[str]:
    return [f"sparse layer {number}" for number in range(min(ROWS, len(layers)))]


def _cell(value: float) -> Estimate | None:
    return Estimate(value, math.nan, math.nan, 0) if math.isfinite(value) else None
