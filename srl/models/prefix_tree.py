"""Rows that share prefixes as one token tree, in which every shared token stands once.

The G rollouts of a prompt repeat that prompt, and the prompts of one trajectory are nested prefixes
of each other. A causal model gives a token the same hidden state wherever the tokens before it are
the same, so one node of the trie over all rows stands for all of its repetitions: the forward and
backward run over the nodes, and each row reads its log-probabilities off its own path.

Pure Python: what the tree is, how rows are cut into micro-batches, and which stretches of it are
worth attending to together. `tree_attention.py` computes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Row = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and completion ids."""

# Where rows leave a trunk within so few tokens of each other, they are cut off it together: the
# tokens between are attended to once per row, which is cheaper than a further kernel call.
_NEAR = 16
# Rows that leave a trunk together become a trunk of their own from so many shared tokens on.
_TRUNK = 32


@dataclass(frozen=True)
class PrefixTree:
    """The trie over B rows, its N nodes in depth-first order: parents come before their children.

    Attributes:
        tokens: [N] token ids.
        parents: [N] node before each node, -1 where a row begins.
        positions: [N] how many nodes come before it on its path: its position in every row.
        ends: [N] the node after the last one of its subtree. Node j is on the path to node i if and
            only if j <= i < ends[j].
        paths: for every row the nodes of its prompt and completion, in order.
        prompt_lengths: [B] how many of them are the prompt's.
    """

    tokens: list[int]
    parents: list[int]
    positions: list[int]
    ends: list[int]
    paths: list[list[int]]
    prompt_lengths: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> PrefixTree:
        """The tree of these rows. Rows may be equal, and may end inside one another."""
        texts = [[*prompt, *completion] for prompt, completion in rows]
        tokens: list[int] = []
        parents: list[int] = []
        positions: list[int] = []
        paths: list[list[int]] = [[] for _ in rows]
        # In lexicographic order a row shares with all rows before it what it shares with the last.
        last: list[int] = []
        path: list[int] = []
        for index in sorted(range(len(texts)), key=texts.__getitem__):
            text = texts[index]
            shared = common_prefix(last, text)
            first = len(tokens)
            fresh = text[shared:]
            tokens += fresh
            positions += range(shared, len(text))
            if fresh:
                parents.append(path[shared - 1] if shared else -1)
                parents += range(first, first + len(fresh) - 1)
            path = [*path[:shared], *range(first, first + len(fresh))]
            paths[index] = path
            last = text
        ends = list(range(1, len(tokens) + 1))
        for node in range(len(tokens) - 1, -1, -1):
            parent = parents[node]
            if parent >= 0 and ends[parent] < ends[node]:
                ends[parent] = ends[node]
        lengths = [len(prompt) for prompt, _ in rows]
        return cls(tokens, parents, positions, ends, paths, lengths)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def completion_nodes(self) -> list[int]:
        """Nodes that are a completion's in some row, in order."""
        found = {
            node
            for path, start in zip(self.paths, self.prompt_lengths, strict=True)
            for node in path[start:]
        }
        return sorted(found)

    @property
    def repeated_tokens(self) -> int:
        """Tokens that the rows have one by one."""
        return sum(map(len, self.paths))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists of tokens begin with together."""
    low, high = 0, min(len(a), len(b))
    # Equality of slices runs in C, token by token in Python does not.
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def pack_rows(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Indices of rows for each micro-batch: rows of like length, so that padding is small.

    A micro-batch is padded to its own longest row and stays within `max_tokens`, padding included;
    a single row longer than that makes a micro-batch of its own.
    """
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]) - len(rows[i][1]), i))
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        length = len(rows[index][0]) + len(rows[index][1])
        if not batches or (len(batches[-1]) + 1) * longest > max_tokens:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches


def pack_trees(rows: Sequence[Row], max_nodes: int) -> list[list[int]]:
    """Indices of rows for each micro-batch, whose trees have at most `max_nodes` nodes each.

    Rows that share much stay together: where the next row does not fit, the cut is made where least
    is shared, among the places that leave at least half of what was gathered. A row that is longer
    than `max_nodes` makes a micro-batch of its own.
    """
    texts = [[*prompt, *completion] for prompt, completion in rows]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    batches: list[list[int]] = []
    batch: list[int] = []
    shared: list[int] = []  # of each row in the batch with the one before it
    nodes = 0
    for index in order:
        prefix = common_prefix(texts[batch[-1]], texts[index]) if batch else 0
        while batch and nodes + len(texts[index]) - prefix > max_nodes:
            cut = _cheapest_cut([*shared, prefix], [len(texts[i]) for i in batch], nodes)
            batches.append(batch[:cut])
            batch, shared = batch[cut:], [0, *shared[cut + 1 :]]
            shared = shared[: len(batch)]
            nodes = sum(len(texts[i]) for i in batch) - sum(shared)
            prefix = prefix if batch else 0
        batch.append(index)
        shared.append(prefix)
        nodes += len(texts[index]) - prefix
    return [*batches, batch] if batch else batches


def _cheapest_cut(shared: Sequence[int], lengths: Sequence[int], nodes: int) -> int:
    """Before which row to cut, 1 to len(lengths), the last of these being behind all of them."""
    best, so_far = len(lengths), 0
    for cut in range(1, len(lengths)):
        so_far += lengths[cut - 1] - shared[cut - 1]
        if 2 * so_far >= nodes and shared[cut] < shared[best]:
            best = cut
    return best


@dataclass(frozen=True)
class Trunk:
    """A stretch of the tree that several rows run along.

    Attributes:
        parent: number of the trunk that it branches off, or -1.
        start: how many nodes of the parent's path come before it.
        path: nodes from the root to its end, those `start` included.
    """

    parent: int
    start: int
    path: list[int]


@dataclass(frozen=True)
class Leaf:
    """The rest of a row, behind the place where it is cut off a trunk.

    Attributes:
        trunk: number of that trunk, or -1 for a row that shares nothing.
        cut: how many nodes of the trunk's path come before the leaf.
        nodes: the row's other nodes. The first of them may still be the trunk's own.
    """

    trunk: int
    cut: int
    nodes: list[int]


def trunks_and_leaves(tree: PrefixTree) -> tuple[list[Trunk], list[Leaf]]:
    """The tree as trunks, and on them one leaf for each distinct row.

    Along the first trunk, wherever rows part, goes the branch with most tokens on it. Rows that
    leave are leaves, or a further trunk if they share enough with each other.
    """
    # Nodes are numbered depth first, so the last one names a row and gives its place in the order.
    paths = [path for _, path in sorted({path[-1]: path for path in tree.paths if path}.items())]
    shared = [0, *(common_prefix(a, b) for a, b in pairwise(paths))]
    trunks: list[Trunk] = []
    leaves: list[Leaf] = []
    waiting = [(range(len(paths)), -1, 0)] if paths else []
    while waiting:
        rows, parent, start = waiting.pop()
        parts = _along_the_trunk(paths, shared, rows)
        # Nodes that rows of a part share with each other, counted from the root.
        common = [min((shared[i] for i in part[1:]), default=0) for _, part in parts]
        cuts = []
        last = start
        for (depth, _), together in zip(parts, common, strict=True):
            if depth - last >= _NEAR or together - depth >= _TRUNK:
                last = depth
            cuts.append(last)
        number = parent
        if last > start:
            number = len(trunks)
            spine = paths[parts[-1][1][0]]
            trunks.append(Trunk(parent, start, spine[:last]))
        for (depth, part), together, cut in zip(parts, common, cuts, strict=True):
            if together - depth >= _TRUNK:
                waiting.append((part, number, cut))
            else:
                leaves += [Leaf(number, cut, paths[row][cut:]) for row in part]
    return trunks, leaves


def _along_the_trunk(
    paths: Sequence[Sequence[int]], shared: Sequence[int], rows: range
) -> list[tuple[int, range]]:
    """Which rows leave the trunk of `rows`, and behind how many nodes; the last one ends it.

    Args:
        paths: all rows' nodes, in the order of the tree.
        shared: how many nodes each has in common with the one before it.
        rows: those to look at, neighbours in that order.
    """
    parts: list[tuple[int, range]] = []
    depth = 0
    while len(rows) > 1:
        depth = min(shared[i] for i in rows[1:])
        borders = [rows.start, *(i for i in rows[1:] if shared[i] == depth), rows.stop]
        branches = [range(a, b) for a, b in pairwise(borders)]
        rows = max(branches, key=lambda branch: sum(len(paths[i]) - depth for i in branch))
        parts += [(depth, branch) for branch in branches if branch != rows]
    return [*parts, (depth, rows)]
