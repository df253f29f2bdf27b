"""Charts: what is drawn stands where the numbers say, needs no colour to be read, is safe HTML."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_pages import Page

import srl.logs.report
from srl.logs.report.charts import (
    SERIES,
    SHADES,
    Series,
    heat_map,
    line_chart,
    plain_series,
    span_of,
    ticks,
)
from srl.logs.report.markup import number, points, table, text, with_interval
from srl.stats import Estimate

NAN = math.nan
STYLE = (Path(srl.logs.report.__file__).parent / "page" / "page.css").read_text(encoding="utf-8")


def exactly(*values: float | None, spread: float = 0.1) -> list[Estimate | None]:
    return [None if v is None else Estimate(v, v - spread, v + spread, 8) for v in values]


def bins(count: int) -> list[tuple[int, int]]:
    return [(k, k) for k in range(1, count + 1)]


def outline(chart: str, kind: str, slot: int = 0) -> list[list[tuple[float, float]]]:
    """The points of each part of a series' line, or the top and the bottom of each of its bars."""
    found = re.search(rf'<g class="s{slot}">.*?<path class="{kind}" d="([^"]*)"', chart)
    parts = found[1].replace("V", "L0 ").split("M")[1:] if found else []
    return [
        [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", p)] for p in parts
    ]


# ---- scales -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.72, 0.98, [0.75, 0.8, 0.85, 0.9, 0.95]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (1, 40, [5, 10, 15, 20, 25, 30, 35, 40]),
        (0, 7e-9, [0, 1e-9, 2e-9, 3e-9, 4e-9, 5e-9, 6e-9, 7e-9]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e100, 1e100), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, relative: float) -> None:
    high = low + relative * max(1.0, abs(low))
    marks = ticks(low, high)
    assert 3 <= len(marks) <= 9
    slack = 1e-6 * (high - low) + 1e-11 * max(abs(low), abs(high))
    assert all(low - slack <= mark <= high + slack for mark in marks)
    assert marks == sorted(marks)


@given(st.lists(st.floats(-1e160, 1e160) | st.none(), min_size=1, max_size=8), st.booleans())
def test_everything_is_inside_the_picture(values: list[float | None], share: bool) -> None:
    chart = line_chart("t", "c", [Series("a", bins(len(values)), exactly(*values))], share=share)
    for kind in ("line", "bars"):
        for part in outline(chart, kind):
            assert all(0 <= x <= 420 and 0 <= y <= 210 for x, y in part)
    assert "nan" not in chart
    Page(chart)


@given(
    st.sampled_from([0.1, 1 / 3, 0.0, -0.0, 5e-324, 1e-310, 1e-160, 9e149, -9e149]),
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 1e-17, 2e-16, 9e-7, 2e-6]),  # of the value
            st.sampled_from([0.0, 5e-324, 1e-18, 1e-16, 1e308, math.inf, math.nan]),  # interval
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_values_that_are_alike_but_for_rounding(
    value: float, apart: list[tuple[float, float]], share: bool
) -> None:
    values = [
        Estimate(value * (1 + more), value * (1 + more) - half, value * (1 + more) + half, 8)
        for more, half in apart
    ]
    chart = line_chart("t", "c", [Series("a", bins(len(values)), values)], share=share)
    for kind in ("line", "bars"):
        for part in outline(chart, kind):
            assert all(0 <= x <= 420 and 0 <= y <= 210 for x, y in part)
    assert "nan" not in chart
    assert chart.count('class="up"') >= 3  # an axis with numbers


def test_an_outlying_interval_does_not_flatten_the_line() -> None:
    values = exactly(0.4, 0.5, 0.6, 0.5, 0.4)
    values[2] = Estimate(0.6, -40.0, 41.0, 2)
    chart = line_chart("t", "c", [Series("a", bins(5), values)])
    ((_, top), *_, (_, bottom)) = sorted(outline(chart, "line")[0], key=lambda point: point[1])
    assert bottom - top > 40


# ---- lines --------------------------------------------------------------------------------------


def test_a_line_stands_where_its_values_are() -> None:
    chart = line_chart("t", "c", [Series("a", bins(5), exactly(0.0, 1.0, 0.5, 0.25, 1.0))])
    ((*line,),) = outline(chart, "line")
    xs, ys = [x for x, _ in line], [y for _, y in line]
    assert all(b - a == pytest.approx(xs[1] - xs[0], abs=0.2) for a, b in pairwise(xs))
    whole = ys[0] - ys[1]
    assert whole > 100
    assert ys[0] - ys[2] == pytest.approx(whole / 2, abs=0.2)
    assert ys[0] - ys[3] == pytest.approx(whole / 4, abs=0.2)
    bars = outline(chart, "bars")
    assert len(bars) == 5
    assert [top - bottom for (_, top), (_, bottom) in bars] == pytest.approx(
        [-0.2 * whole] * 5, 0.01
    )
    titles = re.findall(r"<title>(.*?)</title>", chart)
    assert titles[3] == "step 4: 0.250 [0.150, 0.350], n = 8"
    assert len(titles) == 5


def test_gaps() -> None:
    values = exactly(0.1, 0.2, None, 0.3, None, 0.2, 0.1)
    chart = line_chart("t", "c", [Series("a", bins(7), values)])
    assert [len(part) for part in outline(chart, "line")] == [2, 1, 2]  # alone it is a point
    assert chart.count("<title>") == 5
    (found,) = Page(chart).tables
    assert [row[0] for row in found.rows] == [f"step {k}" for k in (1, 2, 4, 6, 7)]


def test_no_interval_no_bar() -> None:
    points = [*zip(bins(4), (2.0, NAN, 3.0, 1.0), strict=True)]
    chart = line_chart("t", "c", [plain_series("a", points)])
    assert outline(chart, "bars") == []
    assert Page(chart).tables[0].column("a") == ["2.000", "3.000", "1.000"]


@pytest.mark.parametrize("series", [[], [Series("a", [], [])], [Series("a", bins(1), [None])]])
def test_nothing_to_draw(series: list[Series]) -> None:
    assert line_chart("t", "c", series) == ""


def test_series_differ_without_colour() -> None:
    many = [Series(f"run {k}", bins(3), exactly(k, k, k)) for k in range(9)]
    chart = line_chart("t", "About.", many)
    assert re.findall(r'<g class="(s\d)">', chart) == [f"s{k}" for k in range(SERIES)]
    dashes = dict(re.findall(r"\.(s\d) > \.line \{ stroke-dasharray: ([\d. ]+); \}", STYLE))
    assert len(set(dashes.values())) == SERIES - 1  # and the first is not dashed
    legend = re.search(r"<p class=legend>(.*?)</p>", chart)
    assert legend is not None
    assert re.findall(r"run \d", legend[1]) == [f"run {k}" for k in range(SERIES)]
    assert "<span>About. Not drawn: run 6, run 7, run 8.</span>" in chart


def test_a_run_without_values_leaves_the_others_colours() -> None:
    empty = Series("one", bins(3), [None, None, None])
    chart = line_chart("t", "c", [empty, Series("two", bins(3), exactly(1, 2, 3))])
    assert '<g class="s1">' in chart
    assert "s0" not in chart
    assert Page(chart).tables[0].head[1] == "two"


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ((0.0, 1.0), True, ["0 %", "25 %", "50 %", "75 %", "100 %"]),
        ((0.0, 3e-5), False, ["0", "5e−06", "1e−05", "1.5e−05", "2e−05", "2.5e−05", "3e−05"]),
        ((0.5, 1.25), False, ["0.6", "0.8", "1", "1.2"]),
        ((0.5, 0.5), False, ["0.45", "0.475", "0.5", "0.525", "0.55"]),
    ],
)
def test_marks_of_the_axis(values: tuple[float, float], share: bool, expected: list[str]) -> None:
    series = plain_series("a", [*zip(bins(2), values, strict=True)])
    chart = line_chart("t", "c", [series], share=share)
    assert re.findall(r'class="up"[^>]*>([^<]*)<', chart) == expected


# ---- heat maps, colours -------------------------------------------------------------------------


def test_heat_map() -> None:
    cells = [exactly(0.0, 0.5, None), exactly(1.0, 0.99, 0.01)]
    chart = heat_map("t", "c", ["steps 1–4", "steps 5–8", "step 9"], ["0", "1"], cells, (0.0, 1.0))
    shades = re.findall(r'<span class="h(\d)" title="([\d.]+)', chart)
    assert shades == [
        ("0", "0.000"), (str(SHADES // 2), "0.500"), (str(SHADES - 1), "1.000"),
        (str(SHADES - 1), "0.990"), ("0", "0.010"),
    ]  # fmt: skip
    (found,) = Page(chart).tables
    assert found.head == ["", "steps 1–4", "steps 5–8", "step 9"]
    assert found.rows == [["0", "0.000", "0.500", "–"], ["1", "1.000", "0.990", "0.010"]]
    assert all(f".h{k} {{ background" in STYLE for k in range(SHADES))


@pytest.mark.parametrize("theme", [0, 1])
def test_what_is_written_can_be_read(theme: int) -> None:
    """Contrast (WCAG 2): 4.5 for words, 3 for lines."""
    colours = {
        name: pair[theme]
        for name, *pair in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\);", STYLE)
    }
    for ground in ("paper", "card"):
        for name in ("ink", "soft", "link", "good", "look"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for k in range(SERIES):
            assert contrast(colours[f"s{k}"], colours[ground]) >= 3, (k, ground)
    for ground in ("mark", "hit"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
    assert contrast(colours["ink"], colours["faint"]) >= 4.5


def linear(colour: str) -> list[float]:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]


def contrast(one: str, other: str) -> float:
    weights = (0.2126, 0.7152, 0.0722)
    light = sorted(
        sum(w * p for w, p in zip(weights, linear(c), strict=True)) for c in (one, other)
    )
    return (light[1] + 0.05) / (light[0] + 0.05)


# ---- words and numbers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.73951, "0.740"), (0, "0"), (0.0, "0.000"), (-0.0001, "−1.00e−04"), (1234.5, "1,234"),
        (99.96, "100"), (12.34, "12.3"), (9.99951, "10.0"), (-1.0, "−1.000"), (4978, "4,978"),
        (None, "–"), (NAN, "–"), (math.inf, "–"), (-0.0, "0.000"), (3.7e-9, "3.70e−09"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_shares_and_others() -> None:
    assert number(0.4661, share=True) == "46.6 %"
    assert number(-0.0001, share=True) == "0.0 %"
    assert points(Estimate(0.252, 0.212, 0.292, 560)) == "+25.2 points [21.2, 29.2]"
    assert points(Estimate(-0.1, -0.2, 0.1, 560)) == "−10.0 points [−20.0, 10.0]"
    assert with_interval(Estimate(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750]"
    assert with_interval(Estimate(0.5, NAN, NAN, 4)) == "0.500"
    assert span_of((3, 3)) == "step 3"


def test_text_is_safe_and_visible() -> None:
    assert text("<a href=\"x\" id='y'>&") == "&lt;a href=&quot;x&quot; id=&#x27;y&#x27;&gt;&amp;"
    unseen = "a\u202eb\u200b\ud800\0\x1b\nc\td"
    assert text(unseen) == "a\\u{202e}b\\u{200b}\\u{d800}\\u{0}\\u{1b}\nc\td"
    assert text("é 数 😀") == "é 数 😀"
    assert text("x" * 5000).endswith("… (5,000 characters)")
    assert len(text("x" * 5000)) < 2100


def test_hostile_names() -> None:
    evil = "\"><script>alert(1)</script><svg onload='x'>\u202e"
    charts = [
        line_chart(evil, evil, [Series(evil, bins(2), exactly(1, 2))] * 2),
        heat_map(evil, evil, [evil, evil], [evil], [exactly(1, 2)], (0.0, 2.0)),
        table([evil, evil], [[evil, evil]]),
    ]
    for chart in charts:
        page = Page(chart)
        assert "script" not in {tag for tag, _ in page.tags}
        names = {name for _, attributes in page.tags for name in attributes}
        assert not {name for name in names if name.startswith("on") or name == "style"}
        assert "\u202e" not in chart
        assert evil.replace("\u202e", "\\u{202e}") in page.words
