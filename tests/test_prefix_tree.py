"""The prefix tree against brute force: nothing lost, nothing twice, and cut where it should be."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from srl.models import prefix_tree
from srl.models.prefix_tree import PrefixTree, Row, common_prefix, pack_trees, trunks_and_leaves

NEAR, TRUNK = prefix_tree._NEAR, prefix_tree._TRUNK
# Runs of one token, of lengths around those at which a trunk is cut or begun.
RUNS = sorted({1, 2, 3, NEAR - 1, NEAR, NEAR + 1, TRUNK - 1, TRUNK, TRUNK + 1})


@st.composite
def row_lists(draw: st.DrawFn) -> list[Row]:
    """Rows over three tokens, most of which begin as one and the same text does.

    So they branch and nest, end inside one another, are equal, have empty completions, or are
    empty as a whole.
    """
    runs = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(RUNS)), max_size=3)
    trunk = [token for token, count in draw(runs) for _ in range(count)]
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 8))):
        text = trunk[: draw(st.integers(0, len(trunk)))]
        text += [token for token, count in draw(runs) for _ in range(count)]
        cut = draw(st.integers(0, len(text)))
        rows += [(text[:cut], text[cut:])] * draw(st.integers(1, 2))
    return draw(st.permutations(rows))


def texts_of(rows: list[Row]) -> list[tuple[int, ...]]:
    return [(*prompt, *completion) for prompt, completion in rows]


def trie(rows: list[Row]) -> set[tuple[int, ...]]:
    """Every node of the trie as the text that leads to it."""
    return {text[:n] for text in texts_of(rows) for n in range(1, len(text) + 1)}


@given(row_lists())
def test_every_row_is_read_off_its_path_and_every_prefix_is_one_node(rows: list[Row]) -> None:
    tree = PrefixTree.of(rows)
    prefixes: dict[int, tuple[int, ...]] = {}
    for text, path in zip(texts_of(rows), tree.paths, strict=True):
        assert tuple(tree.tokens[node] for node in path) == text
        for n, node in enumerate(path, start=1):
            assert prefixes.setdefault(node, text[:n]) == text[:n]
    assert set(prefixes) == set(range(len(tree)))
    assert set(prefixes.values()) == trie(rows)
    assert len(tree) == len(tree.tokens) == len(trie(rows))
    assert tree.prompt_lengths == [len(prompt) for prompt, _ in rows]
    assert tree.repeated_tokens == sum(map(len, texts_of(rows)))


@given(row_lists())
def test_parents_positions_and_ends_are_those_of_the_paths(rows: list[Row]) -> None:
    tree = PrefixTree.of(rows)
    N = len(tree)
    assert len(tree.parents) == len(tree.positions) == len(tree.ends) == N
    ancestors: dict[int, list[int]] = {}
    for path in tree.paths:
        for position, node in enumerate(path):
            assert tree.positions[node] == position
            assert tree.parents[node] == (path[position - 1] if position else -1)
            ancestors[node] = path[: position + 1]
    assert all(parent < node for node, parent in enumerate(tree.parents))
    for node in range(N):
        assert [j for j in range(N) if j <= node < tree.ends[j]] == ancestors[node]


@given(row_lists())
def test_completion_nodes_are_those_that_some_row_completes_with(rows: list[Row]) -> None:
    tree = PrefixTree.of(rows)
    completed = {
        text[:n]
        for text, (prompt, _) in zip(texts_of(rows), rows, strict=True)
        for n in range(len(prompt) + 1, len(text) + 1)
    }
    nodes = tree.completion_nodes
    assert nodes == sorted(set(nodes))
    reached = {
        node: text[:n]
        for text, path in zip(texts_of(rows), tree.paths, strict=True)
        for n, node in enumerate(path, start=1)
    }
    assert {reached[node] for node in nodes} == completed
    assert len(nodes) == len(completed)


tokens = st.lists(st.integers(0, 1), max_size=12)


@given(tokens, tokens, tokens)
def test_the_common_prefix_is_counted_token_by_token(
    start: list[int], a: list[int], b: list[int]
) -> None:
    one, two = start + a, start + b
    n = 0
    while n < min(len(one), len(two)) and one[n] == two[n]:
        n += 1
    assert common_prefix(one, two) == common_prefix(two, one) == n
    assert common_prefix(tuple(one), tuple(two)) == n


@given(row_lists(), st.integers(1, 150))
def test_packed_trees_hold_every_row_once_within_the_limit(rows: list[Row], limit: int) -> None:
    batches = pack_trees(rows, limit)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or len(trie([rows[i] for i in batch])) <= limit
        assert batch


@given(row_lists())
def test_rows_that_fit_together_are_not_cut(rows: list[Row]) -> None:
    assert len(pack_trees(rows, len(trie(rows)) + 1)) == min(len(rows), 1)


def trajectory(start: list[int], token: int, steps: int, step: int) -> list[Row]:
    """Nested prompts, each a step longer than the one before, with three completions of each."""
    return [
        ([*start, *[token] * (step * (n + 1))], [10 + c, *[20 + n] * 4])
        for n in range(steps)
        for c in range(3)
    ]


def test_a_cut_falls_between_trajectories_not_inside_one() -> None:
    start = [1, 2, 3, 4]
    one, two = trajectory(start, 5, steps=3, step=20), trajectory(start, 6, steps=3, step=20)
    mixed = [row for pair in zip(one, two, strict=True) for row in pair]
    alone, both = len(trie(one)), len(trie(mixed))
    assert both == 2 * alone - len(start)
    # With room for one trajectory, or for one and nearly all of the other.
    for limit in (alone, alone + 30, both - 1):
        batches = pack_trees(mixed, limit)
        assert sorted(map(sorted, batches)) == [[*range(0, 18, 2)], [*range(1, 18, 2)]]
    assert len(pack_trees(mixed, both)) == 1


def test_what_is_left_behind_a_cut_is_filled_up_again() -> None:
    start = [1, 2, 3, 4]
    one, two = (trajectory(start, token, steps=3, step=20) for token in (50, 51))
    last: list[Row] = [([*start, *[52] * 30], [5] * 6)]
    # The first is cut off when some of the second are there; those and the last one just fit.
    limit = len(trie([*two, *last]))
    assert len(trie(one + two[:2])) <= limit < len(trie(one + two[:4]))
    batches = pack_trees([*one, *two, *last], limit)
    assert list(map(sorted, batches)) == [[*range(9)], [*range(9, 19)]]


def test_a_cut_does_not_leave_a_scrap() -> None:
    """Behind the first row nothing is shared, but cutting there would hardly make any room."""
    rows = [([1, 2, 3], [4]), *trajectory([], 5, steps=4, step=20)]
    first, rest = pack_trees(rows, len(trie(rows)) - 1)
    assert 0 in first
    assert len(first) > len(rest) == 1


def test_a_row_beyond_the_limit_stands_alone() -> None:
    rows: list[Row] = [([1], [2]), ([1, 2] * 10, []), ([1], [3]), ([1, 2] * 10, [])]
    assert sorted(pack_trees(rows, 5)) == [[0], [1], [2], [3]]


@given(row_lists())
def test_a_leaf_and_the_trunk_before_it_are_a_row(rows: list[Row]) -> None:
    tree = PrefixTree.of(rows)
    trunks, leaves = trunks_and_leaves(tree)
    found = Counter()
    for leaf in leaves:
        before = trunks[leaf.trunk].path[: leaf.cut] if leaf.trunk >= 0 else []
        assert len(before) == leaf.cut
        found[(*before, *leaf.nodes)] += 1
    assert found == Counter({tuple(path) for path in tree.paths if path})
    for number, trunk in enumerate(trunks):
        assert -1 <= trunk.parent < number
        before = trunks[trunk.parent].path if trunk.parent >= 0 else []
        assert before[: trunk.start] == trunk.path[: trunk.start]
        assert trunk.start <= len(before)
        assert trunk.start < len(trunk.path)
        # From the root along parents: a stretch of some row.
        assert [tree.parents[node] for node in trunk.path] == [-1, *trunk.path[:-1]]


def test_nested_prompts_are_one_trunk_with_one_cut_a_step() -> None:
    step = NEAR + 1
    rows = trajectory([], 5, steps=4, step=step)
    tree = PrefixTree.of(rows)
    [trunk], leaves = trunks_and_leaves(tree)
    assert (trunk.parent, trunk.start) == (-1, 0)
    assert trunk.path == tree.paths[-1][: 4 * step]
    assert {leaf.trunk for leaf in leaves} == {0}
    assert Counter(leaf.cut for leaf in leaves) == {step * n: 3 for n in (1, 2, 3, 4)}
    assert {len(leaf.nodes) for leaf in leaves} == {5}


def test_rows_that_leave_a_trunk_near_each_other_are_cut_off_it_together() -> None:
    long = [5] * 60
    rows: list[Row] = [(long[:n], [10 + n, 7]) for n in (30, 32, 30 + NEAR - 1, 60)]
    [trunk], leaves = trunks_and_leaves(PrefixTree.of(rows))
    assert len(trunk.path) == 30
    assert sorted((leaf.cut, len(leaf.nodes)) for leaf in leaves) == [
        (30, 2),
        (30, 4),
        (30, NEAR + 1),
        (30, 32),
    ]


def test_branches_that_share_enough_are_trunks_of_their_own() -> None:
    start = [1] * 20
    rows = trajectory(start, 5, steps=1, step=TRUNK) + trajectory(start, 6, steps=1, step=TRUNK + 9)
    trunks, leaves = trunks_and_leaves(PrefixTree.of(rows))
    [root] = [trunk for trunk in trunks if trunk.parent < 0]
    [branch] = [trunk for trunk in trunks if trunk.parent >= 0]
    # The first trunk follows the branch with more tokens, the other one leaves it.
    assert (len(root.path), len(branch.path), branch.start) == (20 + TRUNK + 9, 20 + TRUNK, 20)
    assert Counter(leaf.cut for leaf in leaves) == {20 + TRUNK + 9: 3, 20 + TRUNK: 3}
    fewer = trajectory(start, 5, steps=1, step=TRUNK - 1)
    fewer += trajectory(start, 6, steps=1, step=TRUNK + 9)
    assert len(trunks_and_leaves(PrefixTree.of(fewer))[0]) == 1


def test_rows_that_share_nothing_have_no_trunk() -> None:
    rows: list[Row] = [([token] * 40, [token, 9]) for token in range(3)]
    trunks, leaves = trunks_and_leaves(PrefixTree.of(rows))
    assert trunks == []
    assert [(leaf.trunk, leaf.cut, len(leaf.nodes)) for leaf in leaves] == [(-1, 0, 42)] * 3
    assert all(b == a + 1 for leaf in leaves for a, b in pairwise(leaf.nodes))


def test_no_rows_are_no_tree() -> None:
    tree = PrefixTree.of([])
    assert (len(tree), tree.completion_nodes, tree.repeated_tokens) == (0, [], 0)
    assert trunks_and_leaves(tree) == ([], [])
    assert pack_trees([], 10) == []
