"""Draws one random number for each sampled token, as a function of the token's place.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a counter-based
generator, draws each number from (seed, prompt's key) and (sample, token's place) alone. So the
numbers do not depend on which rows are sampled together or in which order, on when a row leaves
the batch, or on how many processes share the work. NumPy keeps Philox's stream of raw numbers
stable across its versions and platforms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Numbers drawn at once for each row; Philox gives four numbers for each count.
_BLOCK = 64
_NUMBERS_A_COUNT = 4


def uniforms(seed: int, key: int, sample: int, first: int, count: int) -> np.ndarray:
    """Returns float64 numbers in [0, 1) for tokens `first`, `first` + 1, … of one completion.

    Args:
        seed: the run's seed.
        key: the prompt's key, 64 bits.
        sample: the completion's number among those of its prompt.
        first: the place of the first token, a multiple of 4.
        count: how many numbers to return.
    """
    bits = np.random.Philox(
        key=np.array([seed, key], dtype=np.uint64),
        counter=np.array([first // _NUMBERS_A_COUNT, sample, 0, 0], dtype=np.uint64),
    )
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53


class Uniforms:
    """The random numbers of n prompts with g completions each, token by token.

    Args:
        seed: the run's seed.
        keys: the key of each prompt.
        samples: the numbers of the g completions.
        device: the device that uses the random numbers.
    """

    def __init__(
        self, seed: int, keys: Sequence[int], samples: Sequence[int], device: torch.device
    ) -> None:
        self._seed = seed
        self._rows = [(key, sample) for key in keys for sample in samples]
        # Apple's GPUs have no float64, so numbers stay on the CPU, and tokens are drawn there.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self._block = torch.empty(0)

    def at(self, place: int) -> Tensor:
        """Returns the numbers, float64 [n * g], of the tokens at `place`.

        Callers must ask for the places in order, from 0.
        """
        if place % _BLOCK == 0:
            drawn = [uniforms(self._seed, *row, first=place, count=_BLOCK) for row in self._rows]
            self._block = torch.from_numpy(np.stack(drawn, axis=1)).to(self.device)
        return self._block[place % _BLOCK]
