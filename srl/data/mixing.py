"""Mixes the rows of several sources in an exact ratio.

The next unit comes from a source that is not ahead of its share. Among these sources, the source
whose next unit is due first is chosen (worst-case fair queueing: Bennett and Zhang, "WF2Q",
INFOCOM 1996). So at every place of the stream, the amount taken from a source differs from its
share of the total by less than one unit, whatever the weights and the units' sizes. Random draws
of sources would differ by the square root of the number of draws.

Long solutions have more steps, so a share can be of rows, of trajectories or of the expert's
tokens. `mix_by` chooses one of these measures; the shares by the other two follow from it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from srl.config.mixture import MixBy, Mixture
from srl.data.adaptive import AdaptiveShares
from srl.data.steps import StepExample, trajectory_numbers
from srl.data.stream import PromptStream, check_state, permuted
from srl.errors import UsageError

# A source counts as ahead of its share only beyond this tolerance, because sums are rounded.
_ROUNDING = 1e-9


class MixedStream:
    """An endless stream of row indices that mixes sources; it replaces a `PromptStream`.

    Every source has its own order, and a new order each time it starts again.

    Args:
        examples: the rows; each row's source is in the mixture.
        mixture: the shares.
        seed: the seed of the orders.
        tokens: the number of the expert's tokens in each row.
        in_order: the rows of a trajectory come one after another, and count as one unit.
        data: a digest of the rows, as `digest_of` returns it.

    Attributes:
        cursor: how many rows were handed out.
        drawn, kept: the amounts of each source in all rows given to `count`, and in those of them
            that were trained on.
        is_over: all rows of a source have been handed out, and the mixture stops training then.
        takes_any_state: whether the stream accepts the state of other rows or another seed.

    Raises:
        UsageError: a row's source has no weight, or a source has no rows.
    """

    def __init__(
        self,
        examples: Sequence[StepExample],
        mixture: Mixture,
        seed: int,
        *,
        tokens: Sequence[int],
        in_order: bool = False,
        data: str = "",
    ) -> None:
        self.mixture = mixture
        self.num_rows = len(examples)
        self.seed = seed
        self.data = data
        self.cursor = 0
        self._shares = mixture.shares
        self.adaptive = (
            None if mixture.adaptive is None else AdaptiveShares(mixture.shares, mixture.adaptive)
        )
        self.is_over = False
        self.takes_any_state = False
        sizes = _sizes(examples, tokens)
        self._examples = examples
        self.drawn, self.kept, self._whole = (Amounts(examples, sizes, mixture) for _ in range(3))
        units = trajectory_numbers(examples) if in_order else list(range(len(examples)))
        self._sources = _by_source(examples, units, sizes[mixture.mix_by], mixture, seed)
        self._whole.add([row for source in self._sources.values() for row in chain(*source.units)])
        self._lags = dict.fromkeys(mixture.weights, 0.0)
        self._waiting: set[str] = set()
        self._rest: list[int] = []  # rows of the current unit that were not handed out yet

    @property
    def shares(self) -> Mapping[str, float]:
        """Returns the share of each source in the next units."""
        return self._shares if self.adaptive is None else self.adaptive.shares

    def take(self, n: int) -> list[int]:
        """Returns the indices of the next `n` rows."""
        if n < 0:
            raise UsageError(f"{n} rows asked of the prompt stream; ask for 0 or more")
        rows = []
        for _ in range(n):
            if not self._rest:
                self._rest = self._next_unit()
            rows.append(self._rest.pop(0))
            self.cursor += 1
        return rows

    def count(
        self, rows: Sequence[int], kept: Sequence[bool], spreads: Sequence[float] = ()
    ) -> dict[str, float]:
        """Counts the rows of an optimiser step and those trained on, and updates adaptive shares.

        Args:
            rows: the rows.
            kept: whether each row was trained on.
            spreads: the standard deviation of the rewards of each row's attempts, if there are any.

        Returns:
            Figures for the log. `share/row/NAME` and `kept_share/row/NAME`, and the same for
            trajectories and tokens, are shares since the start. Adaptive shares with `spreads` add
            `next_share/NAME` and `signal/NAME`.
        """
        self.drawn.add(rows)
        self.kept.add([row for row, is_kept in zip(rows, kept, strict=True) if is_kept])
        figures = {**self.drawn.figures("share"), **self.kept.figures("kept_share")}
        if self.adaptive is not None and spreads:
            sources = [self._examples[row].source for row in rows]
            of_kept = [s if is_kept else 0.0 for s, is_kept in zip(spreads, kept, strict=True)]
            self.adaptive.update(sources, of_kept)
            for name, share in self.adaptive.shares.items():
                figures[f"next_share/{name}"] = share
                figures[f"signal/{name}"] = self.adaptive.signals.get(name, math.nan)
        return figures

    @property
    def rows_an_epoch(self) -> int:
        """Returns the number of rows of all sources, without rows that `same_problem` drops."""
        return int(math.fsum(self._whole.amounts["row"].values()))

    def nominal(self) -> dict[MixBy, dict[str, float]]:
        """Returns measure -> source -> share, as they follow from the configured shares."""
        asked = self.mixture.mix_by
        totals = self._whole.amounts
        shares: dict[MixBy, dict[str, float]] = {}
        for measure, amounts in totals.items():
            parts = {
                name: share * amounts[name] / totals[asked][name]
                for name, share in self._shares.items()
            }
            all_parts = math.fsum(parts.values())
            shares[measure] = {name: part / all_parts for name, part in parts.items()}
        return shares

    def line(self) -> str:
        """Returns the shares in words, for the start of a run."""
        nominal, by = self.nominal(), self.mixture.mix_by
        words = {"row": "rows", "trajectory": "trajectories", "token": "the expert's tokens"}
        parts = []
        for name, rows in self._whole.amounts["row"].items():
            others = [
                f"{nominal[measure][name]:.1%} of {words[measure]}"
                for measure in nominal
                if measure != by
            ]
            parts.append(
                f"{name} {nominal[by][name]:.1%} of {words[by]} ({', '.join(others)}; "
                f"{rows:,.0f} rows of {self._whole.amounts['trajectory'][name]:,.0f} solutions)"
            )
        shared = sum(len(who) > 1 for who in _tellers(self._examples, [*nominal[by]]).values())
        if shared:
            rule = self.mixture.same_problem
            parts.append(f"{shared:,} problems are in several sources (same_problem: {rule})")
        return f"mixture: {'; '.join(parts)}"

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, as JSON values."""
        return {
            **self._identity(),
            "cursor": self.cursor,
            "adaptive": None if self.adaptive is None else self.adaptive.state_dict(),
            "lags": dict(self._lags),
            "waiting": sorted(self._waiting),
            "rest": list(self._rest),
            "is_over": self.is_over,
            "drawn": self.drawn.amounts,
            "kept": self.kept.amounts,
            "sources": {
                name: [source.epoch, source.place] for name, source in self._sources.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` stopped.

        Raises:
            UsageError: the state is incomplete; or it is of other data, another mixture or another
                seed, and `takes_any_state` is False.
        """
        ours = self._identity()
        check_state(state, ours, unless=self.takes_any_state)
        self.cursor = state["cursor"]
        if any(state[name] != value for name, value in ours.items()):
            return  # other rows, mixture or seed: every source starts again
        if self.adaptive is not None:
            self.adaptive.load_state_dict(state["adaptive"])
        self._lags = dict(state["lags"])
        self._waiting = set(state["waiting"])
        self._rest = list(state["rest"])
        self.is_over = state["is_over"]
        self.drawn.amounts = state["drawn"]
        self.kept.amounts = state["kept"]
        for name, (epoch, place) in state["sources"].items():
            self._sources[name].go_to(epoch, place)

    def _identity(self) -> dict[str, Any]:
        mixture = self.mixture
        return {
            "num_rows": self.num_rows,
            "seed": self.seed,
            "data": self.data,
            "mixture": [
                [[name, weight] for name, weight in mixture.weights.items()],
                mixture.mix_by,
                mixture.same_problem,
                mixture.when_exhausted,
                None if mixture.adaptive is None else asdict(mixture.adaptive),
            ],
        }

    def _next_unit(self) -> list[int]:
        """Returns the rows of the unit that is due first, of the sources that are not ahead."""
        present = [name for name in self._sources if name not in self._waiting]
        total = math.fsum(self.shares[name] for name in present)
        shares = {name: self.shares[name] / total for name in present}
        sizes = {name: self._sources[name].size for name in present}
        scale = _ROUNDING * max(sizes.values())
        behind = [name for name in present if self._lags[name] >= -scale]
        due = min(behind, key=lambda name: (sizes[name] - self._lags[name]) / shares[name])
        for name in present:
            self._lags[name] += shares[name] * sizes[due]
        self._lags[due] -= sizes[due]
        source = self._sources[due]
        rows = source.pop()
        if source.was_seen_whole:
            self._seen_whole(due)
        return rows

    def _seen_whole(self, source: str) -> None:
        if self.mixture.when_exhausted == "stop":
            self.is_over = True
        elif self.mixture.when_exhausted == "drop":
            self._waiting.add(source)
            if len(self._waiting) == len(self._sources):
                self._waiting.clear()
            # The remaining sources start again without lags, and a waiting source builds up none.
            self._lags = dict.fromkeys(self._lags, 0.0)


Stream = PromptStream | MixedStream


class _Source:
    """The units of one source, in a new order every epoch."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.units: list[list[int]] = []  # the rows of each unit
        self.sizes: list[float] = []
        # (first, number) of each unit: it comes in the epochs e with (e + first) % number == 0.
        self.turns: list[tuple[int, int]] = []
        self.epoch, self.place = 0, 0
        self.was_seen_whole = False  # the last unit handed out completed the source
        self._order: list[int] = []

    @property
    def size(self) -> float:
        """Returns the size of the next unit."""
        return self.sizes[self._now()]

    def pop(self) -> list[int]:
        """Returns the rows of the next unit, and moves on."""
        rows = self.units[self._now()]
        self.place += 1
        self.was_seen_whole = False
        if self.place == len(self._order):
            # If sources take turns with a problem, it takes several epochs to hand out all units.
            rounds, before = max(number for _, number in self.turns), self.epoch
            self.go_to(self.epoch + 1, 0)
            self._now()
            self.was_seen_whole = self.epoch // rounds > before // rounds
        return list(rows)

    def go_to(self, epoch: int, place: int) -> None:
        """Moves to a place of an epoch."""
        self.epoch, self.place, self._order = epoch, place, []

    def _now(self) -> int:
        while not self._order:
            has_turn = [(self.epoch + first) % number == 0 for first, number in self.turns]
            order = permuted(len(self.units), f"{self.seed}-{self.epoch}")
            self._order = [unit for unit in order if has_turn[unit]]
            if not self._order:  # other sources have the turn for all problems of this epoch
                self.epoch += 1
        return self._order[self.place]


class Amounts:
    """The amount counted for each source, by every measure.

    Attributes:
        amounts: measure -> source -> amount.
    """

    def __init__(
        self,
        examples: Sequence[StepExample],
        sizes: Mapping[MixBy, Sequence[float]],
        mixture: Mixture,
    ) -> None:
        self._examples, self._sizes = examples, sizes
        self.amounts: dict[MixBy, dict[str, float]] = {
            measure: dict.fromkeys(mixture.weights, 0.0) for measure in sizes
        }

    def add(self, rows: Sequence[int]) -> None:
        """Adds rows to the amounts of their sources."""
        for measure, sizes in self._sizes.items():
            for row in rows:
                self.amounts[measure][self._examples[row].source] += sizes[row]

    def figures(self, name: str) -> dict[str, float]:
        """Returns `name/measure/source` -> share; NaN if nothing was counted."""
        figures = {}
        for measure, amounts in self.amounts.items():
            total = math.fsum(amounts.values())
            for source, amount in amounts.items():
                figures[f"{name}/{measure}/{source}"] = amount / total if total else math.nan
        return figures


def _sizes(examples: Sequence[StepExample], tokens: Sequence[int]) -> dict[MixBy, list[float]]:
    """Returns measure -> size of each row: 1 row, its part of a trajectory, or its tokens."""
    numbers = trajectory_numbers(examples)
    rows = Counter(numbers)
    return {
        "row": [1.0] * len(examples),
        "trajectory": [1 / rows[number] for number in numbers],
        "token": [float(count) for count in tokens],
    }


def _by_source(
    examples: Sequence[StepExample],
    units: Sequence[int],
    sizes: Sequence[float],
    mixture: Mixture,
    seed: int,
) -> dict[str, _Source]:
    sources = {name: _Source(f"{seed}-{name}") for name in mixture.weights}
    if strange := {example.source for example in examples} - sources.keys():
        raise UsageError(
            f"rows of source {sorted(strange)[0]!r}, which has no weight in the mixture (it has "
            f"{', '.join(sources)}); give it one"
        )
    tellers = _tellers(examples, list(sources))
    places: dict[int, int] = {}
    for row, (example, unit) in enumerate(zip(examples, units, strict=True)):
        source, who = sources[example.source], tellers[example.problem_id]
        if mixture.same_problem == "once" and example.source != _drawn(
            example.problem_id, who, mixture.shares, seed
        ):
            continue
        if unit not in places:
            places[unit] = len(source.units)
            source.units.append([])
            source.sizes.append(0.0)
            turns = (0, 1)
            if mixture.same_problem == "in_turn":
                first = int(_fraction(f"{seed}:turn:{example.problem_id}") * len(who))
                turns = (first + who.index(example.source), len(who))
            source.turns.append(turns)
        source.units[places[unit]].append(row)
        source.sizes[places[unit]] += sizes[row]
    if empty := [name for name, source in sources.items() if not source.units]:
        raise UsageError(
            f"source {empty[0]!r} has no rows to train on; give it other data, or take it out"
            + (", or set same_problem: all" if mixture.same_problem == "once" else "")
        )
    return sources


def _tellers(examples: Sequence[StepExample], order: Sequence[str]) -> dict[str, list[str]]:
    """Returns problem -> the sources that solve it, in the given order."""
    by_problem: dict[str, set[str]] = {}
    for example in examples:
        by_problem.setdefault(example.problem_id, set()).add(example.source)
    return {
        problem: [source for source in order if source in who]
        for problem, who in by_problem.items()
    }


def _drawn(problem: str, who: Sequence[str], shares: Mapping[str, float], seed: int) -> str:
    """Returns one source of a problem, drawn by the shares; always the same for one seed."""
    place = _fraction(f"{seed}:once:{problem}") * math.fsum(shares[name] for name in who)
    for name in who:
        place -= shares[name]
        if place < 0:
            return name
    return who[-1]


def _fraction(text: str) -> float:
    """Returns a number from 0 to below 1 that the text determines."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
