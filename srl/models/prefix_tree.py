"""Builds one token tree from rows that share prefixes; the tree holds each shared token once.

The G rollouts of a prompt repeat that prompt, and the prompts of one trajectory are nested prefixes
of each other. A causal model gives a token the same hidden state wherever the tokens before it are
the same. So one node of the trie over all rows represents all repetitions of its token. The forward
and backward run over the nodes, and each row reads its log-probabilities along its own path.

This module is pure Python. It builds the tree, splits rows into micro-batches, and finds the parts
of the tree that are worth attending to together. `tree_attention.py` computes with the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Row = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and completion ids."""

# Rows that leave a trunk within fewer than this many tokens of each other are cut off together. The
# tokens between are attended to once per row, which is cheaper than another kernel call.
_NEAR = 16
# Rows that leave a trunk together become a new trunk if they share at least this many more tokens.
_TRUNK = 32


@dataclass(frozen=True)
class PrefixTree:
    """The trie over B rows, with N nodes in depth-first order: parents come before their children.

    Attributes:
        tokens: [N] token ids.
        parents: [N] the node before each node, -1 where a row begins.
        positions: [N] the number of nodes before each node on its path, which is its position in
            every row.
        ends: [N] one more than the last node of each subtree. Node j is on the path to node i if
            and only if j <= i < ends[j].
        paths: for every row, the nodes of its prompt and completion, in order.
        prompt_lengths: [B] the number of prompt tokens of each row.
    """

    tokens: list[int]
    parents: list[int]
    positions: list[int]
    ends: list[int]
    paths: list[list[int]]
    prompt_lengths: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> PrefixTree:
        """Builds the tree of these rows. Rows may be equal, and may be prefixes of other rows."""
        texts = [[*prompt, *completion] for prompt, completion in rows]
        tokens: list[int] = []
        parents: list[int] = []
        positions: list[int] = []
        paths: list[list[int]] = [[] for _ in rows]
        # In lexicographic order, no earlier row shares a longer prefix than the row just before.
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
        """The nodes that belong to the completion of at least one row, in order."""
        nodes = {
            node
            for path, start in zip(self.paths, self.prompt_lengths, strict=True)
            for node in path[start:]
        }
        return sorted(nodes)

    @property
    def repeated_tokens(self) -> int:
        """The number of tokens of all rows, shared tokens counted again for each row."""
        return sum(map(len, self.paths))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the length of the common prefix of two token lists."""
    low, high = 0, min(len(a), len(b))
    # A comparison of slices runs in C. A loop over tokens would run in Python.
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def pack_rows(rows: Sequence[Row], max_tokens: int) -> list[list[int]]:
    """Groups rows of similar length into micro-batches, so that padding is small.

    Returns the indices of the rows of each micro-batch. A micro-batch is padded to its own longest
    row and has at most `max_tokens` tokens, padding included. A row longer than that makes a
    micro-batch of its own.
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
    """Groups rows into micro-batches whose trees have at most `max_nodes` nodes each.

    Returns the indices of the rows of each micro-batch. Rows that share long prefixes stay
    together. If the next row does not fit, the gathered rows are cut where two neighbours share
    least, among the places with at least half of the gathered nodes before the cut. A row longer
    than `max_nodes` makes a micro-batch of its own.
    """
    texts = [[*prompt, *completion] for prompt, completion in rows]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    batches: list[list[int]] = []
    batch: list[int] = []
    shared: list[int] = []  # tokens that each row in the batch shares with the row before it
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
    """Returns the index of the row to cut before: 1 to len(lengths), which is after all rows."""
    best, so_far = len(lengths), 0
    for cut in range(1, len(lengths)):
        so_far += lengths[cut - 1] - shared[cut - 1]
        if 2 * so_far >= nodes and shared[cut] < shared[best]:
            best = cut
    return best


@dataclass(frozen=True)
class Trunk:
    """A part of a path in the tree that several rows share.

    Attributes:
        parent: the number of the trunk that this trunk branches off, or -1.
        start: the number of nodes of the parent's path before this trunk.
        path: the nodes from the root to the end of this trunk; the first `start` are the parent's.
    """

    parent: int
    start: int
    path: list[int]


@dataclass(frozen=True)
class Leaf:
    """The rest of a row after the place where the row is cut off a trunk.

    Attributes:
        trunk: the number of that trunk, or -1 for a row without a trunk.
        cut: the number of nodes of the trunk's path before the leaf.
        nodes: the row's remaining nodes. The first ones may still belong to the trunk.
    """

    trunk: int
    cut: int
    nodes: list[int]


def trunks_and_leaves(tree: PrefixTree) -> tuple[list[Trunk], list[Leaf]]:
    """Splits the tree into trunks and one leaf for each distinct row.

    At each fork, a trunk follows the branch whose rows have the most remaining tokens. Rows that
    leave it become leaves, or a further trunk if they share enough tokens with each other.
    """
    # Nodes are numbered depth first, so a row's last node identifies the row and gives its order.
    paths = [path for _, path in sorted({path[-1]: path for path in tree.paths if path}.items())]
    shared = [0, *(common_prefix(a, b) for a, b in pairwise(paths))]
    trunks: list[Trunk] = []
    leaves: list[Leaf] = []
    waiting = [(range(len(paths)), -1, 0)] if paths else []
    while waiting:
        rows, parent, start = waiting.pop()
        parts = _along_the_trunk(paths, shared, rows)
        # The number of nodes that all rows of a part share, counted from the root.
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
    """Returns the groups of rows that leave the trunk of `rows`, each with the nodes before it.

    Each entry is (number of nodes before the group leaves, the group). The last entry ends the
    trunk.

    Args:
        paths: the nodes of all rows, in the order of the tree.
        shared: the number of nodes that each row shares with the row before it.
        rows: the rows to look at, which are neighbours in that order.
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
