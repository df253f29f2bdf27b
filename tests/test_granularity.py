"""Coarser and finer steps: what is cut where, and that no text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments import SPLITTERS
from environments.granularity import Granularity
from environments.types import DataError, Step, Trajectory

texts = st.text(alphabet="ab1=+,;. \n$()", max_size=40).filter(lambda text: text.strip())
steps = st.lists(st.builds(Step, texts, st.sampled_from(["", "why"]), st.sampled_from(["", "o"])))


def signs(found: Trajectory) -> list[str]:
    """All signs that are to be seen, in their order, with observations where they stand."""
    return ["".join(f"{one.text}{one.observation}".split()) for one in found.steps]


@given(
    steps.filter(len),
    st.sampled_from([None, *SPLITTERS]),
    st.integers(0, 30),
    st.one_of(st.none(), st.integers(2, 4)),
)
def test_no_text_is_lost(
    given_steps: list[Step], split_at: str | None, min_chars: int, max_steps: int | None
) -> None:
    before = Trajectory("p", tuple(given_steps))
    after = Granularity(split_at, min_chars, max_steps).apply(before)
    assert "".join(signs(after)) == "".join(signs(before))
    assert "".join(s.thought for s in after.steps).replace("\n", "") == "".join(
        s.thought for s in before.steps
    )
    assert sum(bool(s.observation) for s in after.steps) == sum(
        bool(s.observation) for s in before.steps
    )
    if max_steps is not None:
        fixed = sum(bool(s.observation) for s in before.steps)
        assert len(after.steps) <= max(max_steps, fixed + 1)


def of(*lines: str) -> Trajectory:
    return Trajectory("p", lines)


@pytest.mark.parametrize(
    ("splitter", "text", "expected"),
    [
        (
            "clauses",
            "He has 3 + 4 = 7 apples, so 7 - 2 = 5 are left; then he eats 1.5 of them. Done.",
            ["He has 3 + 4 = 7 apples,", "so 7 - 2 = 5 are left;", "then he eats 1.5 of them.",
             "Done."],
        ),
        ("clauses", "1,000 + 2,000 = 3,000", ["1,000 + 2,000 = 3,000"]),
        ("clauses", "We get $x = 1, and y$ is 2", ["We get $x = 1, and y$ is 2"]),
        (
            "equations",
            "First, 3 + 4 = 7, 7 * 2 = 14 and the rest is 20 - 14 = 6, which is it.",
            ["First, 3 + 4 = 7,", "7 * 2 = 14", "and the rest is 20 - 14 = 6, which is it."],
        ),
        ("equations", "No equation, and none here", ["No equation, and none here"]),
    ],
)  # fmt: skip
def test_where_it_is_cut(splitter: str, text: str, expected: list[str]) -> None:
    assert SPLITTERS[splitter](text) == expected


def test_joined_to_a_length_or_a_count() -> None:
    short = of("aa", "bb", "cc", "dddddd", "e")
    assert Granularity(min_chars=5).apply(short).texts == ("aa\nbb", "cc\ndddddd\ne")
    assert Granularity(max_steps=3).apply(short).texts == ("aa\nbb\ncc", "dddddd", "e")
    assert Granularity(max_steps=9).apply(short) is short


def test_what_was_observed_stays_between_the_steps() -> None:
    seen = Trajectory("p", (Step("a", "t", "seen"), Step("b", "u"), Step("c")))
    assert Granularity(max_steps=2).apply(seen).steps == (Step("a", "t", "seen"), Step("b\nc", "u"))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("coarse", "granularity is 'coarse'; give a block"),
        ({"split": "clauses"}, "unknown key 'split'; it has split_at, min_chars, max_steps"),
        ({"split_at": "words"}, "split_at is 'words'; allowed: numbered, lines"),
        ({"max_steps": 1}, "max_steps is 1; give a whole number from 2 on"),
        ({"split_at": ["clauses"]}, "split_at is .*; allowed: numbered"),
        ({"min_chars": 2.5}, "min_chars is 2.5; give a whole number from 0 on"),
        ({"max_steps": True}, "max_steps is True"),
    ],
)
def test_what_is_refused(block: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Granularity.of(block)
