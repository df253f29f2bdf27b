"""Rows and micro-batches: nothing is lost, nothing too long, and a tree only where it pays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from srl.models.prefix_tree import PrefixTree, Row, pack_rows
from srl.training.batch import _WORTH_A_TREE, MicroBatch, micro_batches


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=30),
    limit=st.integers(1, 60),
)
def test_micro_batches_hold_every_row_once_within_the_limit(
    lengths: list[tuple[int, int]], limit: int
) -> None:
    rows = [([0] * prompt, [0] * completion) for prompt, completion in lengths]
    batches = pack_rows(rows, limit)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        longest = max(sum(lengths[index]) for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= limit


texts = st.lists(st.integers(0, 1), max_size=9)


@given(
    rows=st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), texts)),
    limit=st.integers(1, 60),
)
def test_trees_and_padded_rows_hold_every_row_once_within_the_limit(
    rows: list[Row], limit: int
) -> None:
    batches = micro_batches(rows, limit, trees=True)
    assert sorted(index for batch in batches for index in batch.rows) == list(range(len(rows)))
    for batch in batches:
        members = [rows[index] for index in batch.rows]
        longest = max(len(prompt) + len(completion) for prompt, completion in members)
        repeated = len(members) * longest
        if batch.tree:
            nodes = len(PrefixTree.of(members))
            assert nodes <= limit
            assert nodes < repeated
        else:
            assert len(members) == 1 or repeated <= limit


@given(
    rows=st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), texts)),
    limit=st.integers(1, 60),
)
def test_without_trees_rows_are_padded_as_they_are_packed(rows: list[Row], limit: int) -> None:
    expected = [MicroBatch(part, tree=False) for part in pack_rows(rows, limit)]
    assert micro_batches(rows, limit, trees=False) == expected


def test_a_tree_is_made_where_padded_rows_have_enough_times_its_tokens() -> None:
    for shared in range(1, 90):
        rows: list[Row] = [([1] * shared, [n] * (90 - shared)) for n in (2, 3)]
        rows.append(([1] * shared, []))  # with padding as long as the others
        nodes = shared + 2 * (90 - shared)
        assert micro_batches(rows, 270, trees=True)[0].tree == (3 * 90 / nodes >= _WORTH_A_TREE)


def test_only_rows_that_share_much_become_a_tree() -> None:
    shared: list[Row] = [([1] * 40, [2, n]) for n in range(4)]
    alone: list[Row] = [([n] * 10, [2] * 10) for n in range(3, 7)]
    assert micro_batches(shared, 100, trees=True) == [MicroBatch([0, 1, 2, 3], tree=True)]
    assert micro_batches(alone, 100, trees=True) == [MicroBatch([0, 1, 2, 3], tree=False)]
    # Each kind keeps to its own, whatever the order; a tree of 45 nodes leaves room for no other.
    mixed = [row for pair in zip(alone, shared, strict=True) for row in pair]
    tree, *padded = micro_batches(mixed, 45, trees=True)
    assert tree == MicroBatch([1, 3, 5, 7], tree=True)
    assert [batch.tree for batch in padded] == [False, False]
    assert sorted(index for batch in padded for index in batch.rows) == [0, 2, 4, 6]
