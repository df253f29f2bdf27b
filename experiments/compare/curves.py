"""Writes a page with a comparison's training curves, by difficulty.

Only rows that sample rollouts have curves. A point is the mean of four updates and of all seeds
that are finished.

    python experiments/compare/curves.py [runs/compare]       # writes runs/compare/curves.html
"""

from __future__ import annotations

import argparse
import html
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from statistics import fmean

from cells import finished

from srl.logs.report.charts import SERIES, Series, line_chart, plain_series
from srl.runs.records import read_rows

UPDATES = 4  # updates per point

Updates = list[Mapping[str, object]]


def updates_of(output: Path) -> dict[str, dict[str, list[Updates]]]:
    """Returns, for rows with rollouts: difficulty -> row -> the updates of each seed's training."""
    by_difficulty: dict[str, dict[str, list[Updates]]] = defaultdict(lambda: defaultdict(list))
    for difficulty, row, run in finished(output):
        if run.metrics.is_file():
            lines = [line for line in read_rows(run.metrics) if "groups_tried" in line]
            if lines:
                by_difficulty[difficulty][row].append(lines)
    return by_difficulty


def pictures(rows: Collection[str]) -> Iterator[list[str]]:
    """Yields the rows of each picture: at most `SERIES`, with SRL in all of them."""
    others = [row for row in rows if row != "srl"]
    first = ["srl"] if "srl" in rows else []
    room = SERIES - len(first)
    for start in range(0, max(1, len(others)), room):
        yield first + others[start : start + room]


def curve(name: str, seeds: Iterable[Updates], figure: str, per: str | None = None) -> Series:
    """Returns a figure along training, as a share of the figure `per` if it is given."""
    points: dict[int, list[float]] = defaultdict(list)
    for updates in seeds:
        for line in updates:
            value = float(str(line[figure])) / (1.0 if per is None else float(str(line[per])))
            points[(int(str(line["step"])) - 1) // UPDATES].append(value)
    return plain_series(
        name,
        [((UPDATES * k + 1, UPDATES * (k + 1)), fmean(values)) for k, values in points.items()],
    )


def page(output: Path) -> str:
    """Returns the page as HTML.

    Raises:
        SystemExit: there is no finished training.
    """
    parts = []
    for difficulty, rows in updates_of(output).items():
        parts.append(f'<section><h2>{html.escape(difficulty)}</h2><div class="charts">')
        for title, caption, figure, per in (
            ("Groups that teach", "Rewards differ in them.", "groups_kept", "groups_tried"),
            ("Reward", "Each row's own: similarity, or the answer.", "reward", None),
            ("Length", "Tokens of a rollout.", "completion_tokens", None),
        ):
            for shown in pictures(rows):
                lines = [curve(row, rows[row], figure, per) for row in shown]
                parts.append(line_chart(title, caption, lines, share=per is not None))
        parts.append("</div></section>")
    if not parts:
        raise SystemExit(f"{output}: no finished training there; give the folder of a comparison")
    style = (files("srl.logs.report") / "page" / "page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(str(output))}'
        f"</title><style>{style}</style><main>{''.join(parts)}</main></html>"
    )


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", nargs="?", default="runs/compare", type=Path)
    output = parser.parse_args().output
    path = output / "curves.html"
    path.write_text(page(output), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
