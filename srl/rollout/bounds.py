"""Applies limits on text while completions are written: `srl/data/text_limits.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srl.data.text_limits import TextLimits

if TYPE_CHECKING:
    from srl.rollout.samplers import Completion


class TextBounds:
    """Applies limits on text to completions that are written together.

    Args:
        limits: the limits.
        written: tokens [completions, length], filled by the sampler; -1 where no token is.
    """

    def __init__(self, limits: TextLimits, written: Tensor) -> None:
        self._limits = limits
        self._written = written
        self._end_ids = torch.tensor(sorted(limits.end_ids), device=written.device)
        self._looked = 0  # the number of tokens of each completion that were checked for an end
        n = len(written)
        self._open = torch.zeros(n, dtype=torch.bool, device=written.device)
        self._over = [False] * n

    def force(self, token: Tensor, place: int, row_of: Tensor, ended: Tensor) -> Tensor:
        """Returns the tokens [rows] to write at `place`; too long thoughts get the closing tag.

        Args:
            token: the tokens that the policy drew.
            place: the place of the tokens in their completions.
            row_of: [rows] -> completion.
            ended: [rows], True for complete completions.
        """
        limits = self._limits
        at = place - limits.think_budget
        if not limits.think_budget or not 0 <= at < len(limits.close_ids):
            return token
        if at == 0:
            rows = row_of[~ended].tolist()
            ids = self._written[rows, :place].tolist()
            still = [row for row, own in zip(rows, ids, strict=True) if limits.is_open(own)]
            self._open[still] = True
        forced = self._open[row_of] & ~ended
        return torch.where(forced, limits.close_ids[at], token)

    def end(self, length: int, row_of: Tensor) -> Tensor:
        """Returns which completions [rows] their text has ended, and erases tokens after the end.

        Args:
            length: the most tokens of a completion so far.
            row_of: [rows] -> completion.
        """
        ended = torch.zeros_like(row_of, dtype=torch.bool)
        if not self._limits.end_ids:
            return ended
        # Checks the tokens since the last call. This includes completions that an end token has
        # ended since then, because their text may have ended earlier.
        can_end = torch.isin(self._written[row_of, self._looked : length], self._end_ids).any(1)
        for place in can_end.nonzero().squeeze(1).tolist():
            row = int(row_of[place])
            ids = self._written[row, :length].tolist()
            for end in range(self._looked + 1, length + 1):
                if ids[end - 1] in self._limits.end_ids and self._limits.is_over(ids[:end]):
                    self._written[row, end:] = -1
                    self._over[row] = True
                    ended[place] = True
                    break
        self._looked = length
        return ended

    def mark(self, group: Sequence[Completion], first: int) -> list[Completion]:
        """Returns completions with `truncated` and `forced` set as the limits require.

        Args:
            group: the completions.
            first: the number of the first completion.
        """
        limits, marked = self._limits, []
        opened = self._open[first : first + len(group)].tolist()
        for row, (completion, was_open) in enumerate(zip(group, opened, strict=True), first):
            if self._over[row]:
                completion = replace(completion, truncated=False)
            if was_open:
                start, stop = limits.think_budget, limits.think_budget + len(limits.close_ids)
                places = range(len(completion.ids))
                completion = replace(completion, forced=[start <= place < stop for place in places])
            marked.append(completion)
        return marked
