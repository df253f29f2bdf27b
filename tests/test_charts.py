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
from srl.logs.report.axes import Scale, Series, plain_series, span_of, ticks
from srl.logs.report.charts import SERIES, line_chart
from srl.logs.report.markup import figure_cell, number, seconds, size, table, text
from srl.logs.report.markup import points as in_points
from srl.stats import Estimate

NAN = math.nan
STYLE = (Path(srl.logs.report.__file__).parent / "page" / "page.css").read_text(encoding="utf-8")


def exactly(*values: float | None, spread: float = 0.1) -> list[Estimate | None]:
    return [None if v is None else Estimate(v, v - spread, v + spread, 8) for v in values]


def bins(count: int) -> list[tuple[int, int]]:
    return [(k, k) for k in range(1, count + 1)]


def outline(chart: str, kind: str, slot: int = 0) -> list[list[tuple[float, float]]]:
    """The corners of each part of a path."""
    found = re.search(rf'<path class="{kind} s{slot}" d="([^"]*)"', chart)
    if found is None:
        return []
    return [
        [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", part)]
        for part in found[1].split("M")[1:]
    ]


# ---- scales -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.72, 0.98, [0.7, 0.8, 0.9, 1]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (1, 40, [0, 10, 20, 30, 40]),
        (0, 7e-9, [0, 2e-9, 4e-9, 6e-9, 8e-9]),
        (3, 3, [2.8, 2.9, 3, 3.1, 3.2]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e100, 1e100, allow_subnormal=False), st.floats(1e-12, 1e100), st.integers(2, 8))
def test_ticks_are_few_round_and_around(low: float, spread: float, about: int) -> None:
    high = low + spread
    marks = ticks(low, high, about)
    assert len(marks) <= 2 * about + 2
    assert marks[0] <= low + 1e-6 * abs(low) + spread
    assert marks == sorted(marks)


@given(st.lists(st.floats(-1e60, 1e60) | st.none(), min_size=1, max_size=8), st.booleans())
def test_everything_is_inside_the_picture(values: list[float | None], share: bool) -> None:
    chart = line_chart("t", "c", [Series("a", bins(len(values)), exactly(*values))], share=share)
    for kind in ("line", "band"):
        for part in outline(chart, kind):
            assert all(0 <= x <= 420 and 0 <= y <= 210 for x, y in part)
    assert "nan" not in chart
    Page(chart)


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
    ((*band,),) = outline(chart, "band")
    assert len(band) == 10
    assert band[0][1] - band[-1][1] == pytest.approx(-0.2 * whole, abs=0.3)
    titles = re.findall(r"<title>(.*?)</title>", chart)
    assert titles[3] == "step 4: 0.250 [0.150, 0.350], n = 8"
    assert len(titles) == 5


def test_gaps() -> None:
    values = exactly(0.1, 0.2, None, 0.3, None, 0.2, 0.1)
    chart = line_chart("t", "c", [Series("a", bins(7), values)])
    assert [len(part) for part in outline(chart, "line")] == [2, 2]  # alone it is a point
    assert chart.count("<title>") == 5
    (found,) = Page(chart).tables
    assert found.column("value") == ["0.100", "0.200", "–", "0.300", "–", "0.200", "0.100"]


def test_no_interval_no_band() -> None:
    points = [*zip(bins(4), (2.0, NAN, 3.0, 1.0), strict=True)]
    chart = line_chart("t", "c", [plain_series("a", points)])
    assert 'class="band' not in chart
    (found,) = Page(chart).tables
    assert found.head == ["training step", "value"]


@pytest.mark.parametrize("series", [[], [Series("a", [], [])], [Series("a", bins(1), [None])]])
def test_nothing_to_draw(series: list[Series]) -> None:
    chart = line_chart("t", "c", series)
    assert "Nothing to draw yet." in chart
    assert "<svg" not in chart


def test_series_differ_without_colour() -> None:
    chart = line_chart("t", "c", [Series(f"run {k}", bins(3), exactly(k, k, k)) for k in range(9)])
    assert re.findall(r'class="line (s\d)" d="M(?!1 6H)', chart) == [f"s{k}" for k in range(SERIES)]
    markers = re.findall(r'<g class="points s\d few"><path d="M[\d. ]+([a-z])', chart)
    assert len(set(markers)) >= 3
    dashes = dict(re.findall(r"\.line\.(s\d) \{ stroke-dasharray: ([\d. ]+); \}", STYLE))
    assert len(set(dashes.values())) == SERIES - 1  # and the first is not dashed
    legend = re.search(r'<p class="legend">(.*?)</p>', chart)
    assert legend is not None
    assert re.findall(r"run \d", legend[1]) == [f"run {k}" for k in range(SERIES)]


def test_a_run_without_values_leaves_the_others_colours() -> None:
    empty = Series("one", bins(3), [None, None, None])
    chart = line_chart("t", "c", [empty, Series("two", bins(3), exactly(1, 2, 3))])
    assert 'class="line s1"' in chart
    assert "s0" not in chart
    assert Page(chart).tables[0].head[1] == "two"


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ((0.0, 1.0), True, ["0 %", "25 %", "50 %", "75 %", "100 %"]),
        ((0.001, 0.004), True, ["0.0 %", "0.1 %", "0.2 %", "0.3 %", "0.4 %"]),
        ((0.0, 3e-5), False, ["0", "1e−5", "2e−5", "3e−5"]),
        ((1200.0, 5200.0), False, ["2,000", "3,000", "4,000", "5,000"]),
        ((0.5, 1.25), False, ["0.50", "0.75", "1.00", "1.25"]),
    ],
)
def test_marks_of_the_axis(values: tuple[float, float], share: bool, expected: list[str]) -> None:
    series = plain_series("a", [*zip(bins(2), values, strict=True)])
    chart = line_chart("t", "c", [series], share=share)
    assert re.findall(r'class="tick end"[^>]*>([^<]*)<', chart) == expected


def test_lines_that_are_too_many_are_named() -> None:
    many = [Series(f"s{k}", bins(2), exactly(1, 2)) for k in range(8)]
    assert "<span>About. Not drawn: s6, s7.</span>" in line_chart("t", "About.", many)
    assert "Not drawn" not in line_chart("t", "About.", many[:6])


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
    assert contrast(colours["ink"], colours["mark"]) >= 4.5
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
    assert in_points(Estimate(0.252, 0.212, 0.292, 560)) == "+25.2 points [21.2, 29.2]"
    assert figure_cell(Estimate(0.5, 0.25, 0.75, 4)) == (
        '0.500 <span class="ci">[0.250, 0.750]</span>'
    )
    assert figure_cell(Estimate(0.5, NAN, NAN, 4)) == "0.500"
    assert [seconds(v) for v in (3.2, 196.4, 7325)] == ["3 s", "3 min 16 s", "2 h 2 min"]
    assert [size(v) for v in (10, 783_000, 1_650_000)] == ["1 kB", "783 kB", "1.6 MB"]
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
        line_chart(evil, evil, [Series(evil, bins(2), exactly(1, 2))] * 2, along=evil),
        table([evil, evil], [[evil, evil]]),
    ]
    for chart in charts:
        page = Page(chart)
        assert "script" not in {tag for tag, _ in page.tags}
        names = {name for _, attributes in page.tags for name in attributes}
        assert not {name for name in names if name.startswith("on") or name == "style"}
        assert "\u202e" not in chart
        assert evil.replace("\u202e", "\\u{202e}") in page.words


def test_scales_never_leave_the_picture() -> None:
    scale = Scale(0.0, 1.0, 200.0, 10.0, [0.0, 1.0])
    assert [scale(v) for v in (-5.0, 0.0, 0.5, 1.0, 9.0)] == [200, 200, 105, 10, 10]
