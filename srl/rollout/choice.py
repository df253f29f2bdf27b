"""Chooses the fastest decoder whose logits for a model equal those of its plain forward.

The choice is made by a trial, once per model. The trial appends a few tokens to prompts of several
lengths and removes rows from the batch. At every step it compares the logits with those of the
plain forward of each row alone. So a model whose cache works differently is sampled more slowly or
refused, but never sampled wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srl.errors import DivergedError, UsageError
from srl.models.rounding import WorstError, tolerated
from srl.models.tree_models import FAILURES, attending_over_trees, devices_of, refusal
from srl.models.trial import few_tokens, named, plain_logits, short_length
from srl.rollout.decoding import CachedDecoder, Decoder, SharedDecoder
from srl.rollout.fallbacks import UncachedDecoder, UnpaddedDecoder
from srl.rollout.known_prompts import KnownPrompts

_ROOM = 64  # the room for known prompts in a trial, in tokens: more than its prompts have


@dataclass(frozen=True)
class Way:
    """A decoder, and the conditions of its use.

    Attributes:
        decoder: makes a decoder from a model, any token id, and the prompts that were read before.
        shared: completions share their prompt; to be called inside `attending_over_trees`.
        one_length: prompts that are sampled together must be equally long.
        places: the decoder knows the places of prompt tokens, so that routes can be recorded.
        slower: for the user, what makes the decoder slower and why; empty if nothing does.
    """

    decoder: Callable[[PreTrainedModel, int, KnownPrompts | None], Decoder]
    shared: bool = False
    one_length: bool = False
    places: bool = False
    slower: str = ""

    def line(self) -> str:
        """Returns the message for the user about slower sampling; empty if it is not slower."""
        return self.slower and f"this model is sampled slower than others, {self.slower}"


_SHARED = Way(lambda model, _, known: SharedDecoder(model, known), shared=True, places=True)
_CACHED = Way(lambda model, pad_id, _: CachedDecoder(model, pad_id), places=True)
_FALLBACKS = (
    Way(
        lambda model, pad_id, _: UnpaddedDecoder(model, pad_id),
        one_length=True,
        slower="with prompts of one length at a time",
    ),
    Way(
        lambda model, pad_id, _: UncachedDecoder(model, pad_id),
        slower="without a cache: every token reads its whole row again",
    ),
)

_ways: WeakKeyDictionary[PreTrainedModel, dict[bool, Way]] = WeakKeyDictionary()


def way_of(model: PreTrainedModel, *, share: bool) -> Way:
    """Returns the way to sample from this model. Each model is tried once for each `share`.

    Args:
        model: the bare model.
        share: completions may share their prompts.

    Raises:
        UsageError: no way gives the logits of the plain forward.
        DivergedError: the model's logits are not finite.
    """
    known = _ways.setdefault(model, {})
    if share not in known:
        known[share] = _find(model, share)
    return known[share]


def _find(model: PreTrainedModel, share: bool) -> Way:
    shared = (_SHARED,) if share and refusal(model) is None else ()
    reasons: list[str] = []
    for way in (*shared, _CACHED, *_FALLBACKS):
        reason = _try(model, way)
        if reason is None:
            why = f" ({reasons[-1]})" if way.slower else ""
            return replace(way, slower=way.slower and f"{way.slower}{why}")
        reasons.append(reason)
    raise UsageError(
        f"{named(model)} cannot be sampled exactly, so it is neither trained nor evaluated: even "
        f"without a cache, {reasons[-1]}. A model whose tokens see what follows them gives this; "
        "take a causal decoder, such as Qwen/Qwen2.5-0.5B-Instruct"
    )


@torch.no_grad()
def _try(model: PreTrainedModel, way: Way) -> str | None:
    """Returns why this way does not give the logits of the plain forward; None if it does."""
    prompts, written = _texts(model)
    together = [[0, 1], [2]] if way.one_length else [[0, 1, 2]]
    was_training = model.training
    model.eval()
    worst = WorstError()
    known = KnownPrompts(_ROOM) if way.shared else None
    device = next(model.parameters()).device
    try:
        with (
            torch.random.fork_rng(devices_of(model)),
            torch.autocast(device.type, enabled=False),
        ):
            for chosen in together:
                rows = [(i, sample) for i in chosen for sample in range(len(written[0]))]
                plain = {
                    (i, sample): partial(plain_logits, model, [*prompts[i], *written[i][sample]])
                    for i, sample in rows
                }
                expected = {row: logits() for row, logits in plain.items()}
                allowed = {row: tolerated(model, plain[row], expected[row]) for row in rows}
                with attending_over_trees(model) if way.shared else nullcontext():
                    for row, length, logits in _decoded(
                        lambda: way.decoder(model, 0, known), prompts, written, chosen, rows
                    ):
                        right = expected[row]
                        place = len(prompts[row[0]]) - 1 + length
                        error = (logits - right[place]).abs().max() / right.abs().max()
                        worst.add(error[None], allowed[row][place, None])
    except DivergedError:
        raise
    except FAILURES as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        model.train(was_training)
    if not worst.fits:
        return f"its logits token by token differ from those of the plain forward {worst}"
    return None


def _texts(model: PreTrainedModel) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Returns three prompts, two of them equally long, and two continuations of each, all of one
    length."""
    length = short_length(model, room=5)
    lengths = (length, length, length // 2)
    prompts = [few_tokens(model, 3 * i, count) for i, count in enumerate(lengths)]
    return prompts, [[few_tokens(model, 11 * i + 2 * j, 4) for j in range(2)] for i in range(3)]


def _decoded(
    make: Callable[[], Decoder],
    prompts: Sequence[Sequence[int]],
    written: Sequence[Sequence[Sequence[int]]],
    chosen: Sequence[int],
    rows: list[tuple[int, int]],
) -> Iterator[tuple[tuple[int, int], int, Tensor]]:
    """Yields each row, its number of tokens written so far, and its logits, after every step.

    Some rows leave the batch on the way. At the end another decoder reads each prompt together with
    the tokens of its first row, as a new prompt.
    """
    decoder = make()
    logits = decoder.start([prompts[i] for i in chosen], len(written[0]))
    for length in range(len(written[0][0])):
        for row, own in zip(rows, logits.float(), strict=True):
            yield row, length, own
        if length == 2:  # the second row of the first prompt and the rows of the last prompt stay
            wanted = [row == (chosen[0], 1) or row[0] == chosen[-1] != chosen[0] for row in rows]
            kept = decoder.worth_keeping(torch.tensor(wanted, device=logits.device))
            if kept is not None:
                decoder.keep(kept)
                rows = [rows[i] for i in kept.tolist()]
        token = torch.tensor([written[i][j][length] for i, j in rows], device=logits.device)
        logits = decoder.step(token)
    for row, own in zip(rows, logits.float(), strict=True):
        yield row, len(written[0][0]), own
    grown = [[*prompts[i], *written[i][0]] for i in chosen]
    for i, own in zip(chosen, make().start(grown, 1).float(), strict=True):
        yield (i, 0), len(written[0][0]), own
