"""Text that no splitter, loader or prompt may choke on."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import build_tokenizer

from environments import DataError, Environment, LoadReport, Step, Trajectory, load_trajectories
from environments.splitting import (
    SPLITTERS,
    merge_fragments,
    split_auto,
    split_lines,
    split_paragraphs,
    split_sentences,
    step_title,
)
from srl.data.prompts import PromptFormat

# ---- what stays whole ---------------------------------------------------------------------------

CODE = "x = 1\n\ny = 2. So\n\nz"
TABLE = "| a | b |\n|---|:-:|\n| 1. So | 2 |\n| 3 | 4 |"
WHOLE = {
    "tildes": f"~~~\n{CODE}\n~~~",
    "tildes with a name": f"~~~ python\n{CODE}\n~~~",
    "ticks in tildes": f"~~~\n```\n{CODE}\n\n~~~",
    "tildes in ticks": f"```md\n~~~\n{CODE}\n~~~\n\nIt\n```",
    "four ticks around three": f"````md\n```\n{CODE}\n```\n\nIt is.\n````",
    "a longer end": f"```\n{CODE}\n`````",
    "ticks in a line of code": f"```\na ``` b\n\n{CODE}\n```",
    "indented": f"  ~~~\n  {CODE}\n  ~~~",
    "in a list": f"- ~~~\n  {CODE}\n  ~~~",
    "CRLF": f"~~~\n{CODE}\n~~~".replace("\n", "\r\n"),
    "nested": "\\begin{a}\n\nx. So\n\n\\begin{a}\n\ny\n\n\\end{a}\n\nz\n\n\\end{a}",
    "nested with other names": "\\begin{a}\n\n\\begin{b}\n\ny. So\n\n\\end{b}\n\n\\end{a}",
    "table": TABLE,
    "table without edges": "a | b\n--|--\n1. So | 2",
    "table of formulas": "|$a$|$b$.|\n|-|-|\n|$1$.|$2$|",
}


@pytest.mark.parametrize("split", [split_lines, split_paragraphs, split_sentences])
@pytest.mark.parametrize("name", WHOLE)
def test_blocks_are_never_cut(name: str, split) -> None:  # type: ignore[no-untyped-def]
    block = WHOLE[name]
    steps = split(f"First we look.\n\n{block}\n\nThen we stop.\n\nIt is 4.")
    assert [step for step in steps if block.strip() in step]
    assert steps[-2:] == ["Then we stop.", "It is 4."]


def test_what_is_not_closed_opens_nothing() -> None:
    for mark in ("~~~", "````", "\\begin{a}", "```\n"):
        assert split_paragraphs(f"One.\n\n{mark}\n\nTwo.\n\nThree.")[-2:] == ["Two.", "Three."]
    assert split_lines("a | b\nc | d") == ["a | b", "c | d"]  # no rule under a head
    assert split_paragraphs("5 ~~~ 6\n\nOne\n\n~~~\n\nTwo") == ["5 ~~~ 6", "One\n\n~~~", "Two"]


def test_a_rule_is_no_step() -> None:
    text = "---\n\nOne.\n\n***\n\nTwo.\n\n\u200b\n\n===\n\nThree.\n\n---"
    assert split_paragraphs(text) == [
        "---\n\nOne.\n\n***",
        "Two.\n\n\u200b\n\n===",
        "Three.\n\n---",
    ]
    assert split_auto("---\n\n***") == ["---\n\n***"]
    assert split_lines("x = 1\n=\n∎\n<") == ["x = 1\n=", "∎", "<"]


# ---- cost ---------------------------------------------------------------------------------------

SIZE = 40_000
UNITS = (
    "$1 ",
    "$ ",
    "$x ",
    "$1 $1\n\n",
    "\\begin{a}",
    "\\end{a}",
    "\\[",
    "\\(",
    "$$ ",
    "[asy]",
    "```\n",
    "~~~\n",
    "```a\n",
    "~~~ ",
    ". ",
    "A. ",
    " ",
    "\n",
    "\n ",
    "a|b\n",
    "|-|\n",
    "|-",
    "-",
    "(",
    "`",
    "\\",
    "|a|b|\n|-|-|\n",
    "1. **a ",
    "---\n\n",
    "\u200b\n\n",
    "a.\r\n\r\n",
)
SHAPES = {
    **{f"{unit!r} again and again": unit * (SIZE // len(unit)) for unit in UNITS},
    "nested": "\\begin{a}" * (SIZE // 16) + "\\end{a}" * (SIZE // 16),
    "names": "".join(f"\\begin{{a{number}}}" for number in range(SIZE // 14)),
    "shrinking fences": "\n".join("`" * length for length in range(280, 3, -1)),
    "numbered formulas": "".join(f"{n}. **T** \\[y\\]\n" for n in range(1, SIZE // 18)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_splitting_costs_what_the_text_is_long(shape: str) -> None:
    text = SHAPES[shape]
    started = time.process_time()
    for split in SPLITTERS.values():
        split(text)
    step_title(text)
    merge_fragments(text.split(), 10**9)
    # Linear work takes a tenth of a second or two; quadratic work took a quarter of a minute.
    assert time.process_time() - started < 4


# ---- rows ---------------------------------------------------------------------------------------

END = "The answer is 4."


HALF = "half a character (a lone surrogate such as \\ud800)"
WORDLESS = "a step without a letter, a digit or a symbol"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": "q\ud800"}, HALF),
        ({"steps": ["a\udfff", END]}, HALF),
        ({"answer": "\ud800"}, HALF),
        ({"thoughts": ["\ud800", ""]}, HALF),
        ({"observations": ["\ud800", ""]}, HALF),
        ({"solution": "a \ud800.\n\nSo b.", "steps": None}, HALF),
        ({"steps": ["\u200b", END]}, WORDLESS),
        ({"steps": ["---", END]}, WORDLESS),
        ({"steps": ["|---|", "…", END]}, WORDLESS),
        ({"steps": ["\u3164", END]}, WORDLESS),
        ({"steps": ["~~~\n~~~", END]}, WORDLESS),
        ({"steps": ["a", " "]}, "empty step"),
        ({"problem": "\u200b\ufeff"}, "no problem"),
        ({"problem": ""}, "no problem"),
        ({"steps": ["a"] * 5001}, "more than 5,000 steps (cut the solution into larger ones)"),
    ],
)
def test_rows_that_cannot_be_are_counted_by_reason(
    row: dict[str, object], reason: str, tmp_path: Path
) -> None:
    row = {"problem": "q", "steps": ["a", END], **row}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [row, {"problem": "p", "steps": ["a", END]}])))
    report = LoadReport()
    columns = {"thoughts_column": "thoughts", "observations_column": "observations"}
    given = {key: column for key, column in columns.items() if column in row}
    found = load_trajectories("files", str(path), report=report, max_dropped_share=1.0, **given)
    assert [one.problem for one in found] == ["p"]
    assert report.dropped == Counter({reason: 1})


ODD = ["a\x00b", "\ufeffBOM", "a\r\nb", "a\u2028b\u2029c", "\u202eabc\u2066", "∎", "=>", "√2", "😀"]


@pytest.mark.parametrize("text", ODD)
def test_odd_characters_are_kept_as_they_are(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"problem": text, "steps": [text, f"{text} 4"], "answer": text, "id": 1}
    path.write_text("\n".join(map(json.dumps, [row, {**row, "steps": [text, END]}])))
    found = load_trajectories("files", str(path))
    assert [one.texts for one in found] == [(text, f"{text} 4"), (text, END)]
    assert len({one.problem_id for one in found}) == 1
    tokenizer = build_tokenizer()
    ids = PromptFormat(tokenizer, system_prompt=None).encode(text, [text])
    assert tokenizer.decode(ids) == f"{text}\n\n{text}\n\n"


class Own(Environment):
    """A loader of one's own that checks nothing."""

    def load(
        self, path: str | None = None, *, report: LoadReport, limit: int | None = None
    ) -> list[Trajectory]:
        return [
            Trajectory("", ("a", "b")),
            Trajectory("half\ud800", ("a", "b")),
            Trajectory("rule", (Step("a"), Step("---"))),
            Trajectory("board\n##.", (Step("^"), Step("<"))),
        ]


def test_a_loader_of_ones_own_is_held_to_the_same() -> None:
    report = LoadReport()
    found = load_trajectories(Own(), report=report, max_dropped_share=1.0)
    assert [one.texts for one in found] == [("^", "<")]
    assert report.dropped == {"no problem": 1, HALF: 1, WORDLESS: 1}


def test_half_a_character_in_any_prompt_is_said() -> None:
    form = PromptFormat(build_tokenizer(), system_prompt=None)
    for write in (lambda: form.encode("\ud800", []), lambda: form.encode_whole("a\udfff")):
        with pytest.raises(DataError, match=r"half a character.*\\ud"):
            write()
    with pytest.raises(DataError, match="half a character"):
        PromptFormat(build_tokenizer(), system_prompt="\ud800").encode("a", [])
