"""Rows and micro-batches: nothing is lost, nothing too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from srl.batch import pack_rows


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
