"""Draws the sweep: speed over P/C, one line for each number of nested prompts.

matplotlib is imported only here. `pip install -e '.[dev]'` installs it, and nothing else needs it.
Equal figures give the same file, byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contest import Contest

COLOURS = ("#4269d0", "#d1700a", "#2f8f46", "#b5367a", "#666666")
MISSING = (
    "the sweep's plot needs matplotlib, which is not installed: "
    "`make setup`, or pip install -e '.[dev]'; or leave the row `sweep` out"
)


def check_matplotlib() -> None:
    """Checks that matplotlib is installed, before an hour of measuring and not after it.

    Raises:
        SystemExit: it is missing; the message says what to do.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SystemExit(MISSING) from None


def draw(contests: Sequence[Contest], path: Path) -> None:
    """Writes an SVG with two panels: speed over TRL, and over our own repeated rows."""
    check_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "srl", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, against in zip(panels, ("over TRL", "over rows"), strict=True):
            _panel(panel, contests, against)
        panels[0].set_ylabel("speed of one update")
        panels[0].set_title("over TRL's GRPOTrainer", fontsize=9)
        panels[1].set_title("over our own repeated rows", fontsize=9)
        panels[1].legend(frameon=False, fontsize=8, title="dashed: ratio of tokens")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(panel: object, contests: Sequence[Contest], against: str) -> None:
    by_prompts: dict[object, list[dict[str, object]]] = {}
    for contest in contests:
        by_prompts.setdefault(contest.figures["K"], []).append(contest.figures)
    shares = sorted({point["P/C"] for line in by_prompts.values() for point in line})
    for colour, (K, line) in zip(COLOURS, by_prompts.items(), strict=False):
        x = [point["P/C"] for point in line]
        panel.plot(x, [point["ceiling"] for point in line], "--", color=colour, lw=0.9)
        panel.plot(
            x, [point[against] for point in line], "o-", color=colour, ms=3.5, label=f"K = {K}"
        )
    panel.axhline(1, color="#999999", lw=0.8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log", base=2)
    panel.set_xticks([share for share in shares if share == round(share, 1)])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_major_formatter("{x:g}x")
    panel.set_xlabel("prompt tokens / completion tokens")
    panel.grid(color="#eeeeee")
    panel.spines[["top", "right"]].set_visible(False)
