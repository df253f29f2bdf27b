"""Splitters: where they cut, where they must not, and that no text is ever lost."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.splitting import (
    SPLITTERS,
    Splitter,
    merge_fragments,
    shows_something,
    split_auto,
    split_lines,
    split_numbered,
    split_paragraphs,
    split_sentences,
    step_title,
)

DATA = Path(__file__).parents[2] / "shared" / "data"


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


# Pieces that the splitters look at, in any order and any nonsense combination.
NUMBERS = ["1. **A** ", "2. **B** ", "3. **", "1. ", "10.", "3.14", "   2. **x** y", "**"]
SPACES = [" ", "\n", "\n\n", " \n\t\n", "\r\n", "\u2028", "\u00a0"]
DOLLARS = ["$", "$$", "\\$", "\\(", "\\)", "\\[", "\\]", "\\\\[2pt]", "{", "}", "(", '"', "é"]
BLOCKS = ["\\begin{align*}", "\\end{align*}", "\\begin{x}", "[asy]", "[/asy]", "```"]
WORDS = [".", ". ", "? ", "!", "...", "Mr. ", "e.g. ", "A. ", "So x", "then ", "The "]
PIECES = st.sampled_from([*NUMBERS, *SPACES, *DOLLARS, *BLOCKS, *WORDS])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join))


@pytest.mark.parametrize("name", SPLITTERS)
@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_joined_steps_are_the_text_up_to_white_space(name: str, text: str) -> None:
    steps = SPLITTERS[name](text)
    assert bare("".join(steps)) == bare(text)
    assert all(step == step.strip() and step for step in steps)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_untitled_numbering_loses_nothing_either(text: str) -> None:
    assert bare("".join(split_numbered(text, titles=False))) == bare(text)


@settings(deadline=None)
@given(
    parts=st.lists(st.lists(PIECES, min_size=1, max_size=4).map("".join), max_size=8),
    min_chars=st.integers(0, 30),
)
def test_merging_keeps_the_text_and_leaves_no_fragment(parts: list[str], min_chars: int) -> None:
    merged = merge_fragments(parts, min_chars)
    assert bare("".join(merged)) == bare("".join(parts))
    assert len(merged) <= 1 or all(len(step) >= min_chars for step in merged)


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("gsm8k_train.jsonl", "answer"),
        ("math_train.jsonl", "solution"),
        ("svamp_teachers.jsonl", "solution"),
    ],
)
def test_nothing_is_lost_on_real_solutions(file: str, column: str) -> None:
    path = DATA / file
    if not path.exists():
        pytest.skip(f"real data {file} is not at hand")
    lines = path.read_text(encoding="utf-8").splitlines()[::7]
    for solution in (json.loads(line)[column] for line in lines):
        for split in SPLITTERS.values():
            assert bare("".join(split(solution))) == bare(solution)


# ---------------------------------------------------------------- numbered steps


def test_numbered_steps_are_cut_at_each_next_number() -> None:
    text = "1. **Set up** Let x = 2.\n\n2. **Solve:** So y = 4.\nMore.\n3. **End** Done."
    assert split_numbered(text) == [
        "1. **Set up** Let x = 2.",
        "2. **Solve:** So y = 4.\nMore.",
        "3. **End** Done.",
    ]


def test_text_before_the_first_step_belongs_to_it() -> None:
    assert split_numbered("To solve this:\n\n1. **A** a\n2. **B** b") == [
        "To solve this:\n\n1. **A** a",
        "2. **B** b",
    ]


def test_decimals_do_not_split() -> None:
    text = "1. **A** pi is\n2.71 and\n2. **B** then\n3.14 **is** pi\n3.**x** is no step"
    assert len(split_numbered(text)) == 2


def test_inner_lists_do_not_split() -> None:
    text = (
        "1. **A** we list\n1. first\n2. second\n3. third\n"
        "2. **B** cases\n   3. **inner** one\n   4. **inner** two\n3. **C** end"
    )
    assert [step_title(step) for step in split_numbered(text)] == ["A", "B", "C"]


def test_bold_items_that_do_not_continue_the_sequence_do_not_split() -> None:
    text = "1. **A** a\n2. **B** cases:\n1. **one** x\n2. **two** y\n5. **five** z\n3. **C** c"
    assert [step_title(step) for step in split_numbered(text)] == ["A", "B", "C"]


def test_a_sequence_that_starts_elsewhere_or_has_one_step_comes_back_whole() -> None:
    for text in ("2. **B** b\n3. **C** c", "1. **A** only", "1. **A** a\n3. **C** c", "no steps"):
        assert split_numbered(text) == [text]
    assert split_numbered(" \n ") == []


def test_markers_in_code_and_display_formulas_do_not_split() -> None:
    text = "1. **A** a\n```\n2. **no** b\n```\n2. **B** b\n\\[\n3. **no**\n\\]\n3. **C** c"
    assert len(split_numbered(text)) == 3


def test_a_price_does_not_hide_a_step() -> None:
    assert len(split_numbered("1. **A** it costs $5\n2. **B** and $7")) == 2


def test_ten_steps_and_more() -> None:
    text = "\n".join(f"{number}. **T{number}** text" for number in range(1, 13))
    assert len(split_numbered(text)) == 12


def test_plain_numbers_split_only_without_titles() -> None:
    text = "1. First.\n2. Second.\n   3. inner\n3. Third."
    assert split_numbered(text) == [text]
    assert split_numbered(text, titles=False) == [
        "1. First.",
        "2. Second.\n   3. inner",
        "3. Third.",
    ]


@pytest.mark.parametrize(
    ("step", "title"),
    [
        ("1. **Set up the sum** text", "Set up the sum"),
        ("12. **Solve for \\(x\\):** text", "Solve for \\(x\\)"),
        ("**Express \\(p\\):**\n   text", "Express \\(p\\)"),
        ("**Claim**: text", "Claim"),
        ("Some words.\n\n1. **A** text", "A"),
        ("We have **bold** words", None),
        ("1. plain", None),
        ("**unclosed", None),
        ("****", None),
        ("", None),
    ],
)
def test_step_title(step: str, title: str | None) -> None:
    assert step_title(step) == title


# ---------------------------------------------------------------- lines and paragraphs


def test_lines() -> None:
    assert split_lines("a = 1\r\n\n  b = 2 \nc") == ["a = 1", "b = 2", "c"]
    assert split_lines("so\n\\[\nx\n\\]\nend") == ["so", "\\[\nx\n\\]", "end"]


def test_paragraphs_are_cut_at_blank_lines_outside_display_formulas() -> None:
    assert split_paragraphs("a\nb\n\nc\n \t\n\nd") == ["a\nb", "c", "d"]
    formula = "we get\n\\begin{align*}\nx\n\n\\begin{align*}y\\end{align*}\n\nz\n\\end{align*}"
    assert split_paragraphs(f"{formula}\n\nend") == [formula, "end"]


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["We have $x=2.5$ and $y=3$.", "Then $x+y = 5.5$!", "Is it so?", "Yes."],
        ["So $x = 3.$", "Thus $y = 4.$", "$z$ follows."],
        ["Hence \\[x = 3. \\text{ A. B}\\] holds.", "So \\(a. B\\) too."],
        ["We add \\begin{align*}\na &= 1. \\\\[2pt]\nB &= 2.\n\\end{align*}", "Then stop."],
        ["Take $$x. Y$$ again, e.g. Newton, i.e. Isaac, cf. Euler vs. Gauss.", "Go on."],
        ["By Mr. J. Smith and Dr. Who, it costs 3.50 dollars.", "He has 2."],
        ["Then 1, 2, ... and 5! ways.", "There are \\$2.50 left.", "The end."],
        ['He said "It is so."', "Then (it was odd.)", "We left."],
        ["we note\n1. First of all\n2. Second of all.", "Then we stop."],
        ["First do this.", "2. Then do that.", "3. Stop."],
        ["Look: [asy] draw(A. B); [/asy]", "By symmetry it holds."],
        ["It costs $5.", "Then he pays $7 more.", "So $12 it is."],
        ["The sum is $1, 2, ...$ The rest follows."],
        ["We write\n\n\\[x\\]\n\nwhich is $y$,\n\nso it ends."],
        ["A heading", "Then a paragraph"],
    ],
)
def test_sentences(sentences: list[str]) -> None:
    for gap in (" ", "\n", "\n\n"):
        if sentences[0] == "A heading" and gap != "\n\n":
            continue  # only a blank line parts sentences without a full stop
        assert split_sentences(gap.join(sentences)) == sentences


def test_a_display_formula_ends_a_sentence_without_a_space() -> None:
    assert split_sentences("We get \\[x = 1.\\]Thus $y$.") == ["We get \\[x = 1.\\]", "Thus $y$."]
    assert split_sentences("We get \\[x = 1,\\]so $y$.") == ["We get \\[x = 1,\\]so $y$."]


def test_an_unclosed_formula_swallows_nothing() -> None:
    text = "It is $5 now. Then it grew. \\[ x. And \\begin{a} so. The end."
    assert len(split_sentences(text)) > 2
    assert split_sentences("A stray $ here.\n\nThen $x$. So.")[0] == "A stray $ here."


def test_auto_takes_the_first_that_splits() -> None:
    assert len(split_auto("1. **A** a. B.\n\nmore\n\n2. **B** b")) == 2
    assert split_auto("One. Two.\nStill.\n\nThree.") == ["One. Two.\nStill.", "Three."]
    assert split_auto("One. Two.\nThree.") == ["One. Two.", "Three."]
    assert split_auto("One. Two.") == ["One.", "Two."]
    assert split_auto("One") == ["One"]
    assert split_auto("") == []


def test_merging_joins_to_the_step_before_and_the_first_to_the_next() -> None:
    assert merge_fragments(["Long enough.", "OR", "Long again."], 5) == [
        "Long enough. OR",
        "Long again.",
    ]
    assert merge_fragments(["OR", "Long enough."], 5) == ["OR Long enough."]
    assert merge_fragments(["a", "b"], 0, joiner="\n") == ["a", "b"]
    assert merge_fragments(["a", "b"], 2, joiner="\n") == ["a\nb"]


@pytest.mark.parametrize(
    "piece", ["\\begin{a}", "$", "\\[", "\\\\", ". A", "1. **", " ", "\n", "("]
)
def test_long_nonsense_does_not_hang(piece: str) -> None:
    started = time.process_time()
    for split in SPLITTERS.values():
        split(piece * 4000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("fence", ["```", "````", "~~~", "~~~~~"])
def test_a_fence_of_code_stays_whole_whatever_it_is_made_of(fence: str) -> None:
    inner = "```\n\nx = 1\n\n```" if fence not in ("```", "~~~") else "x = 1\n\n\ny = 2"
    code = f"{fence}python\n{inner}\n{fence}"
    assert split_paragraphs(f"First.\n\n{code}\n\nLast.") == ["First.", code, "Last."]


@pytest.mark.parametrize("split", SPLITTERS.values(), ids=SPLITTERS)
def test_a_rule_or_an_invisible_line_is_no_step(split: Splitter) -> None:
    text = "---\n\n1. **A** One = one.\n\n---\n\n\u200b\n\n2. **B** Two = two.\n\n***"
    steps = split(text)
    assert len(steps) >= 2
    assert all(map(shows_something, steps))
    assert "".join("".join(steps).split()) == "".join(text.split())
    assert split("---") == ["---"]  # a text comes back whole where there is nothing else


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        *[(one, True) for one in ("a", "7", "∎", "^", ">", "⊥", "?", "x --- y", "~~~\nx\n~~~")],
        *[
            (one, False)
            for one in ("", " ", "\u200b", "---", "***\n---", "\ufeff", "\u0301", "```")
        ],
    ],
)
def test_what_shows_something(text: str, shows: bool) -> None:
    assert shows_something(text) is shows


HOSTILE = {
    "dollars": "$1 " * 100_000,
    "dollars and blank lines": ("$1 $2 \n" * 300 + "\n\n") * 150,
    "begins": "".join(f"\\begin{{e{number}}}" for number in range(20_000)),
    "nested": "\\begin{a}" * 15_000 + "\\end{a}" * 15_000,
    "numbered formulas": "".join(f"{number}. **a** $$x$$\n" for number in range(1, 9_000)),
    "fences": "```\n" * 60_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_long_texts_cost_time_in_proportion(text: str) -> None:
    """300 kB; under a second here, and hours when every mark was searched to the end."""
    started = time.process_time()
    for split in SPLITTERS.values():
        merge_fragments(split(text), 10**6)
    assert time.process_time() - started < 20


# ---- blocks that stay whole ----------------------------------------------------------------------

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
def test_blocks_are_never_cut(name: str, split: Splitter) -> None:
    block = WHOLE[name]
    steps = split(f"First we look.\n\n{block}\n\nThen we stop.\n\nIt is 4.")
    assert [step for step in steps if block.strip() in step]
    assert steps[-2:] == ["Then we stop.", "It is 4."]


def test_what_is_not_closed_opens_nothing() -> None:
    for mark in ("~~~", "````", "\\begin{a}", "```\n"):
        assert split_paragraphs(f"One.\n\n{mark}\n\nTwo.\n\nThree.")[-2:] == ["Two.", "Three."]
    assert split_lines("a | b\nc | d") == ["a | b", "c | d"]  # no rule under a head


@pytest.mark.parametrize(
    "unit",
    [
        "```\n",
        "~~~\n",
        "```a\n",
        "~~~ ",
        "|a|b\n|-|-|\n",
        "a|b\n",
        "|-|\n",
        "|-",
        "`",
        "~",
        "-",
        "> ",
    ],
)
def test_blocks_cost_what_the_text_is_long(unit: str) -> None:
    shrinking = "\n".join("`" * length for length in range(280, 3, -1))
    for text in (unit * (40_000 // len(unit)), shrinking + unit * 9_000):
        started = time.process_time()
        for split in SPLITTERS.values():
            split(text)
        assert time.process_time() - started < 4  # linear work takes a tenth of a second or two
