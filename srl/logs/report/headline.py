"""The top of a report: what the run is, how far it got, its key figures, and what to look at.

Compared are the first and the last fifth of training, as in the remarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow.compute as pc

from srl.logs.figures import FIXED, metrics_of, sampling_yield
from srl.logs.index import REWARD
from srl.logs.report.axes import span_of, steps_of
from srl.logs.report.curves import Named
from srl.logs.report.markup import interval, number, points, seconds, text
from srl.logs.report.remarks import fifths, remarks_of
from srl.logs.run_data import RunData
from srl.stats import Estimate


def header(runs: Sequence[Named]) -> str:
    """For each run: what it is, how far it got, and a row of key figures."""
    return "".join(_run_header(one, k, len(runs) > 1) for k, one in enumerate(runs))


def _run_header(one: Named, place: int, several: bool) -> str:
    run = one.run
    records = run.log.table
    evaluated = records.num_rows - one.train.num_rows
    last = pc.max(records["train_step"]).as_py()
    asked = (run.config or {}).get("max_steps")
    of = f" of {asked:,}" if isinstance(asked, int) and asked > 0 else ""
    state = "complete" if run.complete else "not complete"
    facts = [
        f"training step {last:,}{of}",
        f"{records.num_rows:,} rollouts recorded, {evaluated:,} of them in validations",
    ]
    started = (run.environment or {}).get("started")
    if started:
        facts.append(f"started {_moment(str(started))}")
    written = datetime.fromtimestamp(run.log.path.stat().st_mtime, UTC).isoformat()
    facts.append(f"last record {_moment(written)}")
    title = (
        f'<h2 class="run"><span class="swatch s{place}"></span>{text(one.name)}</h2>'
        if several
        else ""
    )
    words = f'<span class="state {"done" if run.complete else "open"}">{state}</span>'
    said = "".join(f"<span>{text(fact)}</span>" for fact in facts)
    return (
        f'{title}<p class="facts">{words}{said}</p><div class="tiles">{"".join(_tiles(one))}</div>'
    )


def _tiles(one: Named) -> list[str]:
    run = one.run
    tiles = [*_accuracy_tile(run)]
    parts = fifths(run)
    if parts.keys:
        names = [m for m in metrics_of(run.log) if m.name in ("reward", REWARD + "similarity")]
        for metric in (*names, FIXED["format_failures"]):
            cells = parts.metrics[metric.name]
            when = " → ".join(
                dict.fromkeys(span_of(steps_of(key)) for key in (parts.keys[0], parts.keys[-1]))
            )
            tiles.append(
                _tile(metric.label, [cells[0], cells[-1]][: len(parts.keys)], when, metric.share)
            )
    sampled = sampling_yield(run.log.table, most=1)
    if sampled:
        kept, tried = sampled[0].kept, sampled[0].tried
        tiles.append(
            _plain_tile(
                "groups kept", number(kept / tried, share=True), f"{kept:,} of {tried:,} tried"
            )
        )
        tokens = pc.sum(one.train["completion_tokens"]).as_py()
        took = run.seconds()
        tiles.append(
            _plain_tile(
                "tokens written",
                _large(tokens),
                f"in {seconds(took)}" if took else "in training",
            )
        )
    return tiles


def _accuracy_tile(run: RunData) -> list[str]:
    found = {a.when: a.estimate for a in run.accuracies() if a.mode == "steps" and not a.sampled}
    if "before" in found or "after" in found:
        shown = [found[when] for when in ("before", "after") if when in found]
        gain = run.gain()
        note = " → ".join(when for when in ("before", "after") if when in found)
        if gain is not None:
            note = points(gain)
        if "after" in found and run.policy_step is not None:
            note += f"; after: policy of step {run.policy_step:,}, the best on validation"
        return [_tile("held-out problems solved", shown, note, True)]
    validations = run.validation_accuracy()
    if not validations:
        return []
    ends = [validations[0], validations[-1]][: len(validations)]
    note = " → ".join(f"step {step}" for step, _ in ends)
    return [_tile("validation problems solved", [e for _, e in ends], note, True)]


def _tile(label: str, values: Sequence[Estimate | None], note: str, share: bool) -> str:
    ends = '<span class="to">→</span>'.join(
        f'<span class="end"><b>{number(None if v is None else v.value, share=share)}</b>'
        f'<span class="ci">{"" if v is None else interval(v, share=share)}</span></span>'
        for v in values
    )
    return (
        f'<div class="tile pair"><h3>{text(label)}</h3><p class="ends">{ends}</p>'
        f'<p class="note">{text(note)}</p></div>'
    )


def _plain_tile(label: str, figure: str, note: str) -> str:
    return (
        f'<div class="tile"><h3>{text(label)}</h3><p class="ends"><b>{text(figure)}</b></p>'
        f'<p class="note">{text(note)}</p></div>'
    )


def remarks(runs: Sequence[Named]) -> str:
    """What to look at, by the rules of `remarks.py`."""
    lists = []
    for one in runs:
        found = remarks_of(one.run)
        items = "".join(
            f'<li class="{"good" if r.good else "look"}" data-rule="{r.rule}">{text(r.text)}</li>'
            for r in found
        )
        name = f"<h3>{text(one.name)}</h3>" if len(runs) > 1 else ""
        none = '<p class="none">No rule found anything.</p>'
        lists.append(name + (f'<ul class="remarks">{items}</ul>' if items else none))
    return "".join(lists)


def _moment(iso: str) -> str:
    """`2026-11-22 13:01 UTC`, or what it is if it is none."""
    try:
        moment = datetime.fromisoformat(iso).astimezone(UTC)
    except (ValueError, OverflowError):
        return iso
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _large(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value:,}"
