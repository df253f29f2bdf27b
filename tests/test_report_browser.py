"""Reports opened in Chromium, as a reader opens them: from a file, with nothing else at hand.

Skipped by name where playwright or a Chromium is missing; `SRL_CHROMIUM` names one that is not on
the path. Throughout, the page may load nothing, log nothing and break nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import read_jsonl
from report_pages import EVIL, RECORD, made_up, train_toy, write_evil, write_run

from srl.logs.report.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("SRL_CHROMIUM") or shutil.which("chromium")
if not CHROMIUM:
    pytest.skip("no chromium on the path, and SRL_CHROMIUM names none", allow_module_level=True)

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A report in a browser, and everything it did that it should not."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


Open = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Opens a report file; the caller looks after what was complained about."""
    contexts = []

    def open_(path: Path, link: str = "", **options: object) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.set_default_timeout(120_000)
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on(
            "console",
            lambda said: (
                found.complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(path.resolve().as_uri() + link)
        found.page.wait_for_selector("html[data-ready]")
        return found

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture
def show(opened: Callable[..., Opened]) -> Iterator[Open]:
    """Opens a report file; at the end it has loaded nothing and complained of nothing."""
    all_of: list[Opened] = []

    def show_(path: Path, link: str = "", **options: object) -> Page:
        all_of.append(opened(path, link, **options))
        return all_of[-1].page

    yield show_
    for one in all_of:
        assert one.complaints == []
        assert {url.partition("#")[0] for url in one.requests} == {one.page.url.partition("#")[0]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_policy: Path) -> Path:
    """The folder with the runs `one` and `two`, trained from the command line."""
    folder = tmp_path_factory.mktemp("browser")
    words = ("--rewards.similarity", "1.0", "--rewards.novelty", "0.1")
    train_toy(folder, toy_policy, one=words, two=("--max_steps", "3", "--seed", "1"))
    return folder / "runs"


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    return write_report(runs / "one").path


def found(page: Page) -> tuple[int, int]:
    """How many groups and rollouts match, as the page says."""
    page.wait_for_selector("#found:not([aria-busy=true])")  # a filter waits for the end of typing
    words = page.inner_text("#found").replace(",", "").split()
    return int(words[0]), int(words[3])


def open_thoughts(page: Page, count: int) -> None:
    page.eval_on_selector_all("#group .thought", "all => all.forEach(n => { n.open = true; })")
    sync_api.expect(page.locator("#group .thought .words")).to_have_count(count)


def test_charts_are_drawn_in_both_themes(show: Open, report: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = show(report, color_scheme=scheme)
        boxes = page.eval_on_selector_all(
            "figure svg .line",
            "all => all.map(n => n.getBBox()).map(b => [b.width, b.height])",
        )
        assert len(boxes) > 20
        assert sum(width > 0 for width, _ in boxes) > 20  # a reason may have a single point
        assert sum(height > 0 for _, height in boxes) > 10  # a line may be flat
        lines = "figure:has(figcaption strong:text-is('reward')) svg .line"
        colours[scheme] = [
            page.eval_on_selector(lines, "node => getComputedStyle(node).stroke"),
            page.eval_on_selector("body", "node => getComputedStyle(node).backgroundColor"),
            page.eval_on_selector(
                ".h7, .h6, .h5", "node => getComputedStyle(node).backgroundColor"
            ),
            page.eval_on_selector(".bars", "node => getComputedStyle(node).stroke"),
        ]
        assert len(set(colours[scheme][:3])) == 3
        bars = page.eval_on_selector_all(".bars", "all => all.map(n => n.getBBox().height)")
        assert max(bars) > 20
    assert all(one != other for one, other in zip(*colours.values(), strict=True))


def test_two_runs_differ_by_more_than_colour(show: Open, runs: Path, tmp_path: Path) -> None:
    report = write_report(runs / "one", runs / "two", output=tmp_path / "both.html")
    page = show(report.path)
    chart = page.locator("figure", has=page.locator("strong", has_text="exact steps")).first
    styles = [
        chart.locator(f"svg[role=img] .s{k} > .line").evaluate(
            "n => [getComputedStyle(n).stroke, getComputedStyle(n).strokeDasharray]"
        )
        for k in (0, 1)
    ]
    assert styles[0][0] != styles[1][0]
    assert styles[0][1] != styles[1][1]
    assert chart.locator(".legend").inner_text().split() == ["one", "two"]
    first = found(page)
    page.select_option("#f-run", label="two")
    records = read_jsonl(runs / "two/steps.jsonl")
    assert found(page)[1] == len(records) != first[1]
    page.evaluate("location.hash = '#r=2:5'")
    page.wait_for_selector("#group .attempt[aria-current][data-line='5']")
    assert page.input_value("#f-run") == "1"


def test_a_rollout_is_found_by_a_word(show: Open, runs: Path, report: Path) -> None:
    page = show(report)
    records = read_jsonl(runs / "one/steps.jsonl")
    whole = found(page)
    assert whole[1] == len(records)
    page.fill("#f-search", "QUICKLY")  # case does not count
    hits = [r for r in records if "quickly" in str(r["action"]).lower() + str(r["thought"])]
    groups = {(r["phase"], r["train_step"], r["group_id"]) for r in hits}
    assert found(page) == (len(groups), len(hits))
    page.click("#groups li >> nth=0")
    sync_api.expect(page.locator("#groups li >> nth=0")).to_have_attribute("aria-selected", "true")
    first = hits[0]
    key = ("phase", "train_step", "group_id")
    group = [r for r in records if all(r[k] == first[k] for k in key)]
    attempts = page.locator("#group .attempt")
    assert attempts.count() == len(group)
    for k, record in enumerate(group):
        words = attempts.nth(k).inner_text()
        assert f"reward {record['reward']:.3f}".replace("-", "−") in words
        if record["format_failure"] is None:
            assert str(record["action"]).strip() in words
            marked = "".join(attempts.nth(k).locator("mark").all_inner_texts())
            total = len(str(record["action"]).strip()) + len(str(record["expert_step"]))
            assert 2 * len(marked) / total == pytest.approx(record["rewards"]["similarity"])  # type: ignore[index]
        else:
            assert f"format failure: {record['format_failure']}" in words
    # Those that have the word stand out.
    assert page.locator("#group .attempt:not(.no)").count() == sum(r in hits for r in group)
    # The marks in the expert's step are those of the attempt one looks at.
    exact = next((k for k, r in enumerate(group) if r["reward"] == max(q["reward"] for q in group)))  # type: ignore[type-var]
    attempts.nth(exact).hover()
    marked = attempts.nth(exact).locator(".words mark").all_inner_texts()
    sync_api.expect(page.locator("#expert mark")).to_have_text(marked)
    page.fill("#f-search", "no such words anywhere")
    assert found(page) == (0, 0)
    sync_api.expect(page.locator("#group")).to_have_text("No group matches.")
    page.fill("#f-search", str(first["problem_id"]))
    same = [r for r in records if r["problem_id"] == first["problem_id"]]
    assert found(page)[1] == len(same)


def test_thoughts_fold(show: Open, report: Path) -> None:
    page = show(report)
    thought = page.locator("#group .thought").first
    sync_api.expect(thought.locator(".words")).to_have_count(0)
    thought.locator("summary").click()
    sync_api.expect(thought.locator(".words")).to_contain_text("hm")
    thought.locator("summary").click()
    sync_api.expect(thought.locator(".words")).to_be_hidden()


def test_filters(show: Open, runs: Path, report: Path) -> None:
    page = show(report)
    records = read_jsonl(runs / "one/steps.jsonl")

    def count(wanted: Callable[[dict], bool]) -> tuple[int, int]:  # type: ignore[type-arg]
        hits = [r for r in records if wanted(r)]
        return len({(r["phase"], r["train_step"], r["group_id"]) for r in hits}), len(hits)

    def check(wanted: Callable[[dict], bool]) -> None:  # type: ignore[type-arg]
        assert found(page) == count(wanted)
        page.click("#f-reset")
        assert found(page) == count(lambda r: True)

    page.select_option("#f-phase", "eval")
    check(lambda r: r["phase"] == "eval")
    page.fill("#f-from", "2")
    page.fill("#f-to", "3")
    check(lambda r: 2 <= r["train_step"] <= 3)
    page.fill("#f-index", "1")
    check(lambda r: r["step_index"] == 1)
    page.select_option("#f-kept", "dropped")
    check(lambda r: r["phase"] == "train" and not r["kept"])
    page.select_option("#f-failure", "any")
    found(page)
    page.click("#groups li >> nth=1")  # the attempt that matches is the one that is looked at
    sync_api.expect(page.locator("#groups li >> nth=1")).to_have_attribute("aria-selected", "true")
    sync_api.expect(page.locator("#group .attempt.shown")).to_contain_text("format failure")
    check(lambda r: r["format_failure"] is not None)
    name = next(r["format_failure"] for r in records if r["format_failure"])
    page.select_option("#f-failure", label=str(name))
    check(lambda r: r["format_failure"] == name)
    page.fill("#f-above", "0.4")
    page.fill("#f-below", "0.9")
    check(lambda r: r["reward"] is not None and 0.4 <= r["reward"] <= 0.9)
    page.select_option("#f-source", label=str(records[0]["source"]))
    check(lambda r: True)

    page.select_option("#f-phase", "train")
    page.select_option("#f-sort", "worst")
    found(page)
    trained = [r for r in records if r["phase"] == "train"]
    means = sorted({(r["train_step"], r["group_id"]): r["group_mean"] for r in trained}.values())  # type: ignore[type-var]
    shown = page.locator("#groups li span:nth-child(2)").all_inner_texts()
    assert shown == [f"{mean:.3f}".replace("-", "−") for mean in means]


def test_keys(show: Open, report: Path) -> None:
    page = show(report)

    def current_is(place: int) -> None:
        selected = page.locator("#groups [aria-selected=true]")
        sync_api.expect(selected).to_have_attribute("data-place", str(place))

    current_is(0)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    current_is(1)
    for _ in range(60):  # at the last group no further
        page.keyboard.press("j")
    current_is(found(page)[0] - 1)
    page.focus("#f-search")
    page.keyboard.type("jk")  # letters, not commands
    sync_api.expect(page.locator("#f-search")).to_have_value("jk")


def test_links(show: Open, runs: Path, report: Path) -> None:
    records = read_jsonl(runs / "one/steps.jsonl")
    page = show(report, "#r=7")
    card = page.locator("#group .attempt[aria-current]")
    assert card.get_attribute("data-line") == "7"
    assert str(records[6]["problem_id"]) in page.inner_text("#group h3")
    link = page.locator("#note a[href^='#r=']").last
    line = str(link.get_attribute("href")).removeprefix("#r=")
    page.select_option("#f-phase", "eval")  # a filter that hides it gives way
    found(page)
    link.click()
    page.wait_for_selector(f"#group .attempt[aria-current][data-line='{line}']")
    assert page.input_value("#f-phase") == ""
    page.locator("#steps a[href^='#find=']").first.click()
    sync_api.expect(page.locator("#f-search")).not_to_have_value("")
    assert found(page)[0] >= 1
    page.evaluate("location.hash = '#r=999999'")
    sync_api.expect(page.locator("#found")).to_contain_text("not in this")


def test_links_into_two_runs(show: Open, runs: Path, tmp_path: Path) -> None:
    page = show(write_report(runs / "one", runs / "two", output=tmp_path / "both.html").path)
    links = ("a[href^='#find=']:not([href*=':'])", "a[href^='#find=2:']")
    for run in (1, 0, 1):
        page.locator(f"#steps {links[run]}").first.click()
        sync_api.expect(page.locator("#f-run")).to_have_value(str(run))
        assert found(page)[0] >= 1
        asked = page.input_value("#f-search")
        assert asked in {
            str(r["problem_id"]) for r in read_jsonl(runs / ("one", "two")[run] / "steps.jsonl")
        }
    page.evaluate("location.hash = '#find=9:nothing'")  # no such run: nothing happens
    page.evaluate("location.hash = '#find=a%3Ab'")
    sync_api.expect(page.locator("#f-search")).to_have_value("a:b")
    assert page.input_value("#f-run") == "0"


def test_a_phone(show: Open, report: Path) -> None:
    page = show(report, viewport={"width": 360, "height": 740}, has_touch=True)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.eval_on_selector_all("details", "all => all.forEach(n => { n.open = true; })")
    boxes = [box.bounding_box() for box in page.locator("#group .attempt").all()]
    assert len({box["x"] for box in boxes if box}) == 1  # below one another
    assert len({box["y"] for box in boxes if box}) == len(boxes) == 4
    figures = [box.bounding_box() for box in page.locator("#training figure").all()]
    assert len({box["x"] for box in figures if box}) == 1


def test_paper(show: Open, report: Path) -> None:
    page = show(report, color_scheme="dark")
    page.emulate_media(media="print")
    for control in ("nav", "#rollouts", "#filters"):
        assert not page.is_visible(control)
    assert page.locator("figure").count() == page.locator("figure >> visible=true").count() > 10
    background = page.eval_on_selector("body", "n => getComputedStyle(n).backgroundColor")
    ink = page.eval_on_selector("body", "n => getComputedStyle(n).color")
    assert background == "rgb(255, 255, 255)"
    assert ink == "rgb(29, 33, 38)"


def test_without_javascript(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert "needs JavaScript" in page.inner_text("#rollouts")
    assert page.locator("#training figure svg[role=img]").count() > 10
    page.click("#training figure details summary >> nth=0")
    sync_api.expect(page.locator("#training figure table >> nth=0")).to_be_visible()
    context.close()


def test_an_old_browser(browser: Browser, report: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(report.as_uri())
    page.wait_for_selector("#failed:visible")
    assert "cannot unpack the rollouts" in page.inner_text("#failed")
    assert not page.is_visible("#viewer")
    context.close()


def test_only_our_script_runs(opened: Callable[..., Opened], report: Path) -> None:
    one = opened(report)
    one.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hacked = 1";
          document.body.append(script);
          const box = document.createElement("div");
          box.innerHTML = "<img src=x onerror='window.hacked = 2'><b style='color:red'>a</b>";
          document.body.append(box);
        }"""
    )
    for _ in range(2400):  # two minutes at most
        if len(one.complaints) >= 3:
            break
        one.page.wait_for_timeout(50)
    assert len(one.complaints) >= 3
    assert one.page.evaluate("window.hacked") is None
    assert all("Content Security Policy" in complaint for complaint in one.complaints)


def test_hostile_text(show: Open, tmp_path: Path) -> None:
    report = write_report(write_evil(tmp_path), output=tmp_path / "report.html")
    page = show(report.path)
    plain = page.evaluate("[...document.querySelectorAll('*')].map(n => n.tagName)")
    assert page.evaluate("window.hacked") is None
    template = {"IMG", "IFRAME", "OBJECT", "EMBED", "LINK", "BASE"}
    assert not template & set(plain)
    assert plain.count("SCRIPT") == 2
    assert plain.count("STYLE") == 1
    for k, evil in enumerate(EVIL):
        page.evaluate(f"location.hash = '#r={3 * k + 1}'")
        page.wait_for_selector(f"#group .attempt[aria-current][data-line='{3 * k + 1}']")
        open_thoughts(page, 3)
        shown = page.inner_text("#group")
        visible = "".join(sign if sign.isprintable() else f"\\u{{{ord(sign):x}}}" for sign in evil)
        assert f"{visible} action" in shown
        assert f"problem {visible}, step 2 of 4" in page.inner_text("#group h3")
        assert f"source {visible}" in shown
        assert f"format failure: {visible}" in shown
        assert f"{visible} thought" in shown
    for evil in (EVIL[0], EVIL[6]):
        page.fill("#f-search", evil[:12])
        assert found(page) == (1, 3)
    page.fill("#f-search", "")
    for name in ("#f-source", "#f-failure"):  # names that come from the log are options, as text
        assert page.locator(f"{name} option").count() >= len(EVIL)
        page.select_option(name, index=4)
        assert found(page)[0] == 1
        page.select_option(name, index=0)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("[...document.querySelectorAll('img, iframe, script')].length") == 2


def test_long_texts(show: Open, tmp_path: Path) -> None:
    long = "x" * 19_999 + "😀" + "<b>" * 300_000
    records = [replace(RECORD, rollout=k, action=long, thought=long) for k in range(8)]
    page = show(write_report(write_run(tmp_path / "run", records)).path)
    first = page.locator("#group .attempt").first
    assert len(first.locator(".words").inner_text()) < 20_100
    first.locator("button").click()
    sync_api.expect(first.locator("button")).to_have_count(0)
    shown = first.locator(".words").inner_text()
    assert "[cut here: 920,000 characters, see the log]" in shown
    assert "😀<b><b>" in shown
    open_thoughts(page, 8)


def test_many_rollouts(show: Open, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made_up(250, groups=10, size=8))
    page = show(write_report(run).path)
    assert found(page) == (2500, 20_000)
    took = page.evaluate(
        """() => {
          const start = performance.now();
          document.getElementById("f-search").value = "eggs are left";
          applyFilter();
          return performance.now() - start;
        }"""
    )
    assert took < 10_000  # milliseconds: not a matter of minutes
    assert found(page) == (2500, 20_000)
    assert page.locator("#groups li").count() == 300
    sync_api.expect(page.locator("#found")).to_contain_text("the first 300 are listed")
