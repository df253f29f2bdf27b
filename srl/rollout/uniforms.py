"""The random numbers of sampling: one for each token, as a function of where the token stands.

Each is drawn by Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a
counter-based generator: from (seed, prompt's key) and (sample, token's place) alone. So they
depend neither on which rows are sampled together and in which order, nor on when a row leaves the
batch, nor on how many processes share the work. NumPy keeps Philox's stream of raw
numbers stable across its versions and platforms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Numbers drawn at once for each row; Philox gives four at a count.
_BLOCK = 64
_NUMBERS_A_COUNT = 4


def uniforms(seed: int, key: int, sample: int, first: int, count: int) -> np.ndarray:
    """Numbers from 0 to below 1 for the tokens `first`, `first` + 1, … of one completion; float64.

    Args:
        seed: the run's.
        key: the prompt's, 64 bits.
        sample: the completion's number among those of its prompt.
        first: a multiple of 4.
        count: how many.
    """
    bits = np.random.Philox(
        key=np.array([seed, key], dtype=np.uint64),
        counter=np.array([first // _NUMBERS_A_COUNT, sample, 0, 0], dtype=np.uint64),
    )
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53


class Uniforms:
    """The numbers of n prompts with g completions each, token after token.

    Args:
        seed: the run's.
        keys: one a prompt.
        samples: the numbers of the g completions.
        device: where they are used.
    """

    def __init__(
        self, seed: int, keys: Sequence[int], samples: Sequence[int], device: torch.device
    ) -> None:
        self._seed = seed
        self._rows = [(key, sample) for key in keys for sample in samples]
        # Apple's GPUs have no float64: there numbers stay on the CPU, and tokens are drawn there.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self._block = torch.empty(0)

    def at(self, place: int) -> Tensor:
        """Float64 [n * g], of the tokens at `place`; places are asked for in turn, from 0."""
        if place % _BLOCK == 0:
            drawn = [uniforms(self._seed, *row, first=place, count=_BLOCK) for row in self._rows]
            self._block = torch.from_numpy(np.stack(drawn, axis=1)).to(self.device)
        return self._block[place % _BLOCK]
