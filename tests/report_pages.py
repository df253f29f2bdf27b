"""For the tests of reports: runs to report on, and a reader of pages that knows none of our code.

The page is read with `html.parser`: its tables by title, its charts, the data that the viewer gets.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import step_logs
from conftest import train, write_config, write_toy_data

from srl.runs.records import RecordWriter, StepRecord

Row = Mapping[str, object]
VOID = {"meta", "input", "br", "link", "img"}

RECORD = replace(
    step_logs.RECORD,
    source="toy",
    prompt_tokens=120,
    completion_tokens=31,
    thought="3 - 1",
    action="She has 3 - 1 = 2 left.",
    expert_step="3 - 1 = 2 eggs are left.",
    rewards={"similarity": 0.75},
)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In `folder` as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def train_toy(folder: Path, policy: Path, **runs: Sequence[str]) -> None:
    """Train runs of the toy as a user does: name -> words of the command line."""
    with inside(folder):
        write_toy_data(folder / "data.jsonl", 40)
        write_config(folder / "config.yaml", model=str(policy))
        for name, words in runs.items():
            assert train(*words, name=name) == 0


def write_run(
    folder: Path,
    records: Iterable[StepRecord],
    *,
    problems: Iterable[Row] = (),
    metrics: Iterable[Row] = (),
    attempts: Iterable[Row] = (),
) -> Path:
    """A run folder with these logs and nothing else, as a trainer used from Python leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    with RecordWriter(folder / "steps.jsonl") as writer:
        writer.write(records)
    for name, rows in (("problems", problems), ("metrics", metrics), ("eval", attempts)):
        if rows := list(rows):
            with RecordWriter(folder / f"{name}.jsonl") as writer:
                writer.write(rows)
    return folder


def made_up(
    steps: int = 10, *, groups: int = 4, size: int = 2, start: int = 1, **changes: object
) -> list[StepRecord]:
    """Groups of records that are alike but for `changes`; every group is of another problem."""
    return [
        replace(
            RECORD,
            train_step=step,
            group_id=group,
            rollout=rollout,
            problem_id=f"{step:08x}{group:08x}",
            **changes,  # type: ignore[arg-type]
        )
        for step in range(start, start + steps)
        for group in range(groups)
        for rollout in range(size)
    ]


EVIL = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    '" onmouseover="window.hacked=1" x=\'',
    "javascript:window.hacked=1",
    "{{script}}{{data}}<!--",
    "]]></title></style><style>*{display:none}</style>",
    "\u202eevil\u2066\u200b\ufeff",
    "nul\0 esc\x1b[31m bell\x07 \ud83d alone",
    "&lt;b&gt; &amp;lt;",
)


def write_evil(folder: Path) -> Path:
    """A run in which everything that a user or a model names is hostile."""
    log, problems = [], []
    for k, evil in enumerate(EVIL):
        step = f"{evil} step"
        problems.append(
            {"problem_id": evil, "problem": evil, "steps": [evil, step], "answer": evil}
        )
        log += [
            replace(
                RECORD,
                train_step=1 + k,
                rollout=rollout,
                problem_id=evil,
                source=evil,
                thought=f"{evil} thought",
                action=f"{evil} action",
                expert_step=step,
                previous_step=evil,
                format_failure=evil if rollout == 2 else None,
                rewards=dict.fromkeys(EVIL, 0.5 + rollout / 8),
                kept=k % 2 == 0,
                dropped_because=None if k % 2 == 0 else evil,
            )
            for rollout in range(3)
        ]
    name = "<img src=x onerror=alert(1)>\"'&\u202e"
    run = write_run(
        folder / name,
        log,
        problems=problems,
        metrics=[{"step": 1, "reward": 0.5, "loss": 0.1, EVIL[0]: 1.0}],
        attempts=[
            {"when": evil, "mode": evil, "sample": 0, "problem_id": evil, "correct": False,
             "source": evil, "failure": evil, "num_steps": 2, "steps": [evil]}
            for evil in EVIL
        ],
    )  # fmt: skip
    (run / "config.yaml").write_text(
        json.dumps({"model": EVIL[0], EVIL[1]: {EVIL[2]: EVIL[3]}}), encoding="utf-8"
    )
    (run / "command.txt").write_text(EVIL[0] + EVIL[1], encoding="utf-8")
    (run / "environment.json").write_text(json.dumps({EVIL[0]: EVIL[1], "started": EVIL[1]}))
    return run


@dataclass
class Table:
    """A table of the page: its title, its columns, its rows as text."""

    title: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def column(self, name: str, which: int = 0) -> list[str]:
        """The `which`-th column of that name."""
        places = [k for k, title in enumerate(self.head) if title == name]
        return [row[places[which]] for row in self.rows]


class Page(HTMLParser):
    """What a page says.

    Attributes:
        tables: every table.
        titles: of the figures.
        tags: every element's name, with its attributes.
        words: all text outside of scripts and styles.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.tables: list[Table] = []
        self.titles: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self._text = ""
        self._heading = ""
        self._packed = ""
        self.feed(source)
        self.close()
        assert self._open == [], f"elements that are never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.words += " "
        if tag == "table":
            self.tables.append(Table(self._heading))
        elif tag == "tr" and "tbody" in self._open:
            self.tables[-1].rows.append([])
        if tag in ("th", "td", "h2", "h3", "summary", "strong"):
            self._text = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1] == tag, f"</{tag}> inside of {self._open[-3:]}"
        self._open.pop()
        self.words += " "
        text = " ".join(self._text.split())
        if tag in ("th", "td"):
            target = self.tables[-1]
            (target.rows[-1] if "tbody" in self._open else target.head).append(text)
        elif tag in ("h2", "h3", "strong") or (tag == "summary" and "figure" not in self._open):
            self._heading = text
            if tag == "strong":
                self.titles.append(text)

    def handle_data(self, data: str) -> None:
        inside_script = self._open[-1:] in (["script"], ["style"])
        if inside_script:
            if self.tags[-1][1].get("id") == "data":
                self._packed += data
        else:
            self._text += data
            self.words += data

    def table(self, title: str) -> Table:
        """The one table of that title."""
        found = [table for table in self.tables if table.title == title]
        assert len(found) == 1, (title, [table.title for table in self.tables])
        return found[0]

    @property
    def runs(self) -> list[dict]:  # type: ignore[type-arg]
        """The runs that are embedded for the viewer."""
        return json.loads(gzip.decompress(base64.b64decode(self._packed)))["runs"]


def same(shown: str, value: float | None) -> bool:
    """Whether `shown` is `value`, a share in per cent, to the last digit that is shown."""
    if value is None:
        return shown == "–"
    number = shown.replace("−", "-").replace(",", "").removesuffix("points").strip()
    if number.endswith("%"):
        number, value = number.removesuffix("%").strip(), 100 * value
    match = re.fullmatch(r"([+-]?\d+)(?:\.(\d+))?(?:e([+-]\d+))?", number)
    assert match, f"{shown!r} is no number"
    half = 0.5 * 10.0 ** (int(match[3] or 0) - len(match[2] or ""))
    return abs(float(number) - value) <= half * (1 + 1e-6) + 1e-12


def with_interval(shown: str) -> tuple[str, str, str]:
    """`46.6 % [42.5, 50.7]` taken apart, each with its unit; no interval gives two empty texts."""
    value, _, rest = shown.partition(", n = ")[0].partition(" [")
    if not rest:
        return value, "", ""
    unit = " %" if value.endswith("%") else ""
    low, high = re.fullmatch(r"(\S+), (\S+)\]", rest).groups()  # type: ignore[union-attr]
    return value, low + unit, high + unit
