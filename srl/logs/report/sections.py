"""The parts of a report that are words and tables: tables, accuracy, steps of note, settings.

Each function takes the runs to show, one or two to compare, and gives a piece of HTML. The top
is in `headline.py`, the curves are in `curves.py`, the rollouts in `embedded.py` and the page's
script. No figure is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote

from srl.logs.figures import (
    FIXED,
    REWARD_METRIC,
    by,
    metrics_of,
    most_frequent,
)
from srl.logs.report.curves import Named
from srl.logs.report.markup import Raw, figure_cell, number, points, table, text
from srl.logs.run_data import RunData
from srl.logs.tried_steps import TriedStep
from srl.redaction import shareable, shareable_command
from srl.runs.attempts import Accuracy
from srl.runs.folder import changed_keys, flattened, plain
from srl.runs.records import StepRecord

PROBLEMS = 20
ROWS = 100
_EXCERPT = 140
_LONGEST_LINK = 200  # an id has 16 characters, unless somebody else wrote the log


def tables(runs: Sequence[Named]) -> str:
    """By step index, from either end, by number of steps, source and problem."""
    return "".join(
        (
            _by_table(runs, "step_index", "step index", ROWS),
            _by_table(runs, "steps_left", "steps left", ROWS),
            _by_table(runs, "num_steps", "expert's steps", ROWS),
            _by_table(runs, "source", "source", ROWS),
            _by_table(runs, "problem_id", "problem", PROBLEMS),
        )
    )


def _by_table(runs: Sequence[Named], column: str, title: str, most: int) -> str:
    """One row a value, or one a value and run; of each run the `most` values with most rollouts."""
    several = len(runs) > 1
    metrics = list(dict.fromkeys(m for one in runs for m in metrics_of(one.run.log)))
    metrics = [m for m in metrics if m.name != "group_std"]
    metrics.sort(key=lambda m: m.name in FIXED and m is not REWARD_METRIC)
    rows: dict[object, list[tuple[int, list[object]]]] = {}
    sizes: dict[object, int] = {}
    for place, one in enumerate(runs):
        records = most_frequent(one.train, column, most)
        cells = by(records, column, metrics_of(one.run.log))
        for k, key in enumerate(cells.keys):
            numbers = (cells.records[k], cells.groups[k], cells.problems[k])
            found = [cells.metrics[m.name][k] if m.name in cells.metrics else None for m in metrics]
            figures = [figure_cell(f, share=m.share) for f, m in zip(found, metrics, strict=True)]
            run = [one.name] if several else []
            rows.setdefault(key, []).append((place, [*run, *map(number, numbers), *figures]))
            sizes[key] = sizes.get(key, 0) + cells.records[k]
    if not rows:
        return ""
    keys = sorted(rows, key=lambda key: (isinstance(key, str), key))
    if column == "problem_id":
        keys.sort(key=lambda key: -sizes[key])
    head = [title, *(["run"] if several else []), "rollouts", "groups", "problems"]
    body = [[_key(key, column, place), *cells] for key in keys for place, cells in rows[key]]
    some = f" (the {most} with most rollouts)" if len(rows) >= most else ""
    numbers_table = table([*head, *(m.label for m in metrics)], body, words=1 + several)
    return f"<h3>By {text(title)}{some}</h3>{numbers_table}"


def _key(key: object, column: str, place: int) -> object:
    if column != "problem_id" or len(str(key)) > _LONGEST_LINK:
        return key
    asked = quote(str(key), safe="", errors="replace")
    return Raw(f'<a href="#find={_in_run(place)}{text(asked)}">{text(key)}</a>')


def _in_run(place: int) -> str:
    """Which run a link of the viewer means; the first needs no number."""
    return f"{place + 1}:" if place else ""


def accuracy(runs: Sequence[Named]) -> str:
    """Held-out problems solved before and after, and why others were not."""
    several = len(runs) > 1
    rows: list[list[object]] = []
    for one in runs:
        for found in one.run.accuracies():
            rows.append(
                [
                    found.when,
                    "step by step" if found.mode == "steps" else "whole solution",
                    "sampled" if found.sampled else "greedy",
                    *([one.name] if several else []),
                    number(found.estimate.n),
                    figure_cell(found.estimate, share=True),
                    _failures(found),
                ]
            )
        gain = one.run.gain()
        if gain is not None:
            shown, _, between = points(gain).partition(" [")
            said = Raw(f'{shown} <span class="ci">[{between}</span>')
            rows.append(
                ["after − before", "step by step", "greedy", *([one.name] if several else []),
                 number(gain.n), said, ""]
            )  # fmt: skip
    if not rows:
        return ""
    head = [
        "when",
        "way",
        "decoding",
        *(["run"] if several else []),
        "problems",
        "solved",
        "why not",
    ]
    return "<h3>Held-out problems</h3>" + table(head, rows, words=3 + several, tail=1)


def _failures(found: Accuracy) -> str:
    ordered = sorted(found.failures.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered) or "–"


def steps_of_note(
    runs: Sequence[Named],
    found: Sequence[Mapping[str, Sequence[TriedStep]]],
    inside: Sequence[set[int]],
) -> str:
    """The best, the worst and the most improved expert steps, each with a link into the viewer."""
    parts = []
    for place, (one, lists, rows) in enumerate(zip(runs, found, inside, strict=True)):
        if len(runs) > 1:
            parts.append(f"<h3>{text(one.name)}</h3>")
        for title, steps in lists.items():
            parts.append(f"<h3>{text(title[:1].upper() + title[1:])}</h3>")
            if not steps:
                parts.append(
                    '<p class="none">None was tried at two times, and better at the last.</p>'
                )
                continue
            records = one.run.log.read([step.row for step in steps])
            body = [
                [
                    _place(
                        step,
                        record,
                        f"#r={_in_run(place)}{step.row + 1}" if step.row in rows else None,
                    ),
                    _excerpt(record.expert_step),
                    _excerpt(record.action),
                    number(step.rollouts),
                    number(step.reward),
                    _from_to(number(step.first), number(step.last), step),
                    _from_to(number(step.first_step), number(step.last_step), step),
                ]
                for step, record in zip(steps, records, strict=True)
            ]
            head = ["step", "expert's step", "best attempt of the last time", "rollouts",
                    "mean reward", "first → last", "at training step"]  # fmt: skip
            parts.append(table(head, body, words=3))
    return "".join(parts)


def _from_to(first: str, last: str, step: TriedStep) -> str:
    return last if step.first_step == step.last_step else f"{first} → {last}"


def _place(step: TriedStep, record: StepRecord, link: str | None) -> Raw:
    said = f"{text(step.problem_id[:8])}, {step.step_index + 1}/{record.num_steps}"
    return Raw(f'<a href="{text(link)}">{said}</a>' if link else said)


def _excerpt(words: str) -> Raw:
    one_line = " ".join(words.split())
    shown = one_line if len(one_line) <= _EXCERPT else f"{one_line[:_EXCERPT]}…"
    return Raw(f'<span class="said">{text(shown)}</span>')


def settings(runs: Sequence[Named]) -> str:
    """Settings, environment and command; for two runs what differs comes first."""
    parts = []
    if len(runs) > 1 and all(one.run.config is not None for one in runs):
        differ = _differences(*(plain(one.run.config) for one in runs))
        items = "".join(f"<li>{line}</li>" for line in differ)
        names = f"{text(runs[0].name)} → {text(runs[1].name)}"
        same = '<p class="none">All settings are the same.</p>'
        parts.append(f"<h3>Settings that differ, {names}</h3>")
        parts.append(f"<ul>{items}</ul>" if items else same)
    parts.append(
        _flat_table("Settings", runs, lambda run: run.config, "This run has no config.yaml.")
    )
    parts.append(_flat_table("Environment", runs, lambda run: run.environment, "Not recorded."))
    for one in runs:
        path = one.run.folder.command
        if path.is_file():
            shown = shareable_command(path.read_text(encoding="utf-8", errors="replace").strip())
            name = f", {text(one.name)}" if len(runs) > 1 else ""
            parts.append(f"<h3>Command{name}</h3><pre>{text(shown, most=20_000)}</pre>")
    return "".join(parts)


def _differences(old: object, new: object) -> list[str]:
    """What differs, as HTML. Folders are not told, but that they differ is."""
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    told = changed_keys(*(shareable(one) for one in (old, new)))  # type: ignore[arg-type]
    untold = len(changed_keys(old, new)) - len(told)
    lines = [f"<code>{text(line)}</code>" for line in told]
    return lines + ([f"{number(untold)} more, in the folder of a path alone"] if untold else [])


def _flat_table(
    title: str,
    runs: Sequence[Named],
    of: Callable[[RunData], Mapping[str, object] | None],
    missing: str,
) -> str:
    flat = [flattened(shareable(plain(of(one.run) or {}))) for one in runs]
    keys = list(dict.fromkeys(key for part in flat for key in part))
    if not keys:
        return f'<h3>{text(title)}</h3><p class="none">{text(missing)}</p>'
    head = ["key", *((one.name for one in runs) if len(runs) > 1 else ["value"])]
    body = [[key, *(_value(part, key) for part in flat)] for key in keys]
    return (
        f"<details class=fold><summary>{text(title)}</summary>"
        f"{table(head, body, words=len(head))}</details>"
    )


def _value(flat: Mapping[str, object], key: str) -> Raw:
    if key not in flat:
        return Raw("–")
    value = flat[key]
    said = (
        {None: "none", True: "true", False: "false"}.get(value)
        if isinstance(value, bool | None)
        else str(value)
    )
    return Raw(f"<code>{text(said)}</code>")
