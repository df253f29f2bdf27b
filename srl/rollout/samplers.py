"""Completions from the current policy, with `transformers` models and nothing else.

A prompt is read once for all its completions (`decoding.py`), and rows that have ended leave the
batch, so a step costs about what its longest completions cost. The sampling parameters are those
passed in and no others: `model.generate` would inherit top_p, top_k and a repetition penalty from
the model's own `generation_config`, and sampling would silently be off-policy.

Each token is drawn with a random number of its own (`uniforms.py`), by inverting the distribution:
the numbers depend on the seed and the prompt's key, and on nothing that is computed beside it. What
is sampled does neither, up to the rounding of logits: in bf16 another batch may round otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from srl.config.parts import SamplingSettings
from srl.data.text_limits import TextLimits
from srl.errors import DivergedError
from srl.models.expert_kernels import keeping_cast_weights
from srl.models.experts import sparse_layers
from srl.models.memory import fits_into_memory
from srl.models.positions import may_read_on
from srl.models.replay import Routes
from srl.models.tree_models import attending_over_trees
from srl.models.trial import NOT_FINITE
from srl.models.vocabulary import check_ids
from srl.rollout.bounds import TextBounds
from srl.rollout.choice import Way, way_of
from srl.rollout.decoding import Decoder
from srl.rollout.known_prompts import KnownPrompts
from srl.rollout.routes import RouteRecorder
from srl.rollout.uniforms import Uniforms

# After how many tokens one looks which completions have ended. Looking waits for a GPU, which has
# work queued up meanwhile.
_LOOK_EVERY = {"cpu": 1}
_LOOK_EVERY_ELSEWHERE = 8
# Of the tokens that are sampled together, so many are remembered where prompts go on.
_KNOWN_PART = 2


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: the longest completion, in tokens.
        temperature: 0 is greedy decoding.
        top_p: 1.0 is off.
        top_k: 0 is off.
        min_p: None is off.
        stop_ids: every token that ends a completion; the token stays in the completion.
        seed: of the random numbers.
        limits: what ends a completion, or closes its thought, by its text; None is nothing.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    limits: TextLimits | None = None

    @classmethod
    def of(
        cls,
        settings: SamplingSettings,
        *,
        seed: int,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        limits: TextLimits | None = None,
    ) -> SamplingParams:
        """Sampled, as the settings have it."""
        return cls(
            max_new_tokens=max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            stop_ids=stop_ids,
            seed=seed,
            limits=limits,
        )

    def warpers(self) -> LogitsProcessorList:
        """The library's logits processors for these parameters; empty for greedy decoding."""
        warpers = LogitsProcessorList()
        if self.temperature == 0:
            return warpers
        if self.temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            warpers.append(MinPLogitsWarper(self.min_p))
        return warpers


@dataclass(frozen=True)
class Prompt:
    """What a sampler continues.

    Attributes:
        ids: the prompt's tokens.
        key: names the prompt's place, in the training stream or in an evaluation: 64 bits that
            its random numbers follow from, so each place needs its own.
    """

    ids: Sequence[int]
    key: int


@dataclass(frozen=True)
class Completion:
    """What the policy wrote.

    Attributes:
        ids: the tokens, the one that ended it included.
        truncated: True if the length limit ended it.
        log_probs: each token's log-probability at the sampling temperature, before top_p, top_k
            and min_p; none for greedy decoding.
        forced: of each token whether it was written in the policy's place, to close its thought;
            none where no token was.
        routes: of a sparse policy the experts of every token, where they were recorded.
    """

    ids: list[int]
    truncated: bool
    log_probs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    routes: Routes | None = field(default=None, compare=False)


class Sampler(Protocol):
    """A generation back end."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
        *,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yields the index of each prompt with all of its completions, as soon as they are ready.

        So they can be scored beside the generation of the others. The policy must not be used
        otherwise until the iterator has ended.

        Args:
            prompts: what to continue.
            num_samples: completions of each prompt.
            params: how tokens are chosen.
            first_sample: the number of the first completion, where a prompt is sampled in parts.
        """
        ...

    def remembering(self) -> AbstractContextManager[None]:
        """Inside, prompts may be read from where they leave those that were sampled before.

        The policy must not change meanwhile.
        """
        ...


def key_of(*parts: str | int) -> int:
    """A prompt's key, 64 bits, out of what names its place."""
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def complete(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    num_samples: int,
    params: SamplingParams,
    *,
    first_sample: int = 0,
) -> list[list[Completion]]:
    """All completions, in the order of the prompts; arguments as in `Sampler.sample`."""
    done = dict(sampler.sample(prompts, num_samples, params, first_sample=first_sample))
    return [done[index] for index in range(len(prompts))]


def make_sampler(
    model: PreTrainedModel, *, pad_id: int, settings: SamplingSettings, record_routes: bool = False
) -> Sampler:
    """The sampler of a policy: training, validation, evaluation and benchmarks get theirs here.

    Args:
        model: the bare model.
        pad_id: any token id; padding is masked out.
        settings: `rollout_token_budget` and `prefix_tree` matter.
        record_routes: note the experts of every token of a sparse policy.
    """
    return LocalSampler(
        model,
        pad_id=pad_id,
        token_budget=settings.rollout_token_budget,
        share=settings.prefix_tree,
        record_routes=record_routes,
    )


class LocalSampler:
    """Samples from a model in this process.

    Args:
        model: a causal language model.
        pad_id: any token id; padding is masked out.
        token_budget: prompts are sampled together while their completions' prompt and completion
            tokens, at full length, stay within it. Bounds the memory of the cache.
        share: let completions share their prompts, where the model can.
        record_routes: note the experts of every token, where the model has any, its way of
            decoding says where tokens stand, and all prompts are read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pad_id: int,
        token_budget: int,
        share: bool = True,
        record_routes: bool = False,
    ) -> None:
        self.model = model
        self.pad_id = pad_id
        self.token_budget = token_budget
        self.share = share
        self._sparse = sparse_layers(model) if record_routes else []
        self._known: KnownPrompts | None = None

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """See `Sampler.remembering`. On a GPU, where reading is cheap and memory dear, nothing is
        kept. Keeps half of `token_budget` at most, beside what is sampled."""
        before = self._known
        if self.model.device.type == "cpu" and may_read_on(self.model):
            self._known = KnownPrompts(self.token_budget // _KNOWN_PART)
        try:
            yield
        finally:
            self._known = before

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
        *,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Sampler.sample`."""
        way = way_of(self.model, share=self.share)
        check_ids(self.model, [prompt.ids for prompt in prompts])
        lengths = [len(prompt.ids) for prompt in prompts]
        samples = range(first_sample, first_sample + num_samples)
        sizes = {
            "rollout_token_budget": self.token_budget,
            "the length of a completion": params.max_new_tokens,
        }
        advice = f"one prompt and its {num_samples} completions are always sampled together"
        # Dropout off, and gradient checkpointing out of the way of the cache.
        was_training = self.model.training
        self.model.eval()
        try:
            with (
                fits_into_memory("sampling", self.model.device, sizes, advice),
                keeping_cast_weights(),
            ):
                for chunk in _chunks(
                    lengths, num_samples, params.max_new_tokens, self.token_budget, way
                ):
                    decoder = way.decoder(self.model, self.pad_id, self._known)
                    with attending_over_trees(self.model) if way.shared else nullcontext():
                        asked = [prompts[i] for i in chunk]
                        records = self._sparse and way.places and self._known is None
                        recorder = (
                            RouteRecorder(
                                self._sparse, len(asked) * num_samples, params.max_new_tokens
                            )
                            if records
                            else None
                        )
                        for place, group in _decode(decoder, asked, samples, params, recorder):
                            yield chunk[place], group
        finally:
            self.model.train(was_training)


def _decode(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    samples: Sequence[int],
    params: SamplingParams,
    recorder: RouteRecorder | None,
) -> Iterator[tuple[int, list[Completion]]]:
    """All completions of prompts that fit into memory together, each prompt's when complete."""
    num_samples = len(samples)
    with recorder.listening() if recorder else nullcontext():
        logits = decoder.start([prompt.ids for prompt in prompts], num_samples)
    if recorder is not None:
        recorder.read(decoder.places)  # type: ignore[attr-defined]
    device = logits.device
    look_every = _LOOK_EVERY.get(device.type, _LOOK_EVERY_ELSEWHERE)
    stop = torch.tensor(sorted(params.stop_ids), device=device)
    warpers = params.warpers()
    cut = bool(params.top_k or params.top_p < 1.0 or params.min_p is not None)
    numbers = Uniforms(params.seed, [prompt.key for prompt in prompts], samples, device)
    # No processor in use looks at the tokens so far.
    no_ids = torch.empty(0, dtype=torch.long, device=device)
    n = len(prompts)
    shape = n * num_samples, params.max_new_tokens
    written = torch.full(shape, -1, device=device)
    log_probs = torch.zeros(shape, device=device)
    done = torch.zeros(n * num_samples, dtype=torch.bool, device=device)
    given = torch.zeros(n, dtype=torch.bool, device=device)
    row_of = torch.arange(n * num_samples, device=device)  # [rows in the batch] -> completion
    ended = torch.zeros_like(row_of, dtype=torch.bool)
    bounds = None if params.limits is None else TextBounds(params.limits, written)
    for length in range(1, params.max_new_tokens + 1):
        logits = logits.float()
        if params.temperature == 0:
            token = logits.argmax(-1)
        else:
            probabilities = warpers(no_ids, logits).softmax(-1)
            token = _draw(probabilities, numbers.at(length - 1)[row_of.to(numbers.device)])
            if cut:  # what was drawn from is not the whole distribution
                probabilities = (logits / params.temperature).softmax(-1)
            log_probs[row_of, length - 1] = probabilities.gather(1, token[:, None])[:, 0].log()
        if bounds is not None:
            token = bounds.force(token, length - 1, row_of, ended)
        written[row_of, length - 1] = torch.where(ended, -1, token)
        ended = ended | torch.isin(token, stop)
        last = length == params.max_new_tokens
        if last or length % look_every == 0:
            # Both are no numbers if one logit is none; `isfinite` of all takes ten times as long.
            if not bool(torch.stack(torch.aminmax(logits)).isfinite().all()):
                raise DivergedError(NOT_FINITE)
            if bounds is not None:
                ended = ended | bounds.end(length, row_of)
            done[row_of] = ended | last
            ready = done.view(n, -1).all(1) & ~given
            if bool(ready.any()):
                for place in ready.nonzero().squeeze(1).tolist():
                    own = slice(place * num_samples, (place + 1) * num_samples)
                    texts = zip(written[own].tolist(), log_probs[own].tolist(), strict=True)
                    group = [_completion(ids, values, params) for ids, values in texts]
                    if recorder is not None:
                        group = [
                            replace(one, routes=recorder.of(own.start + g, place, len(one.ids)))
                            for g, one in enumerate(group)
                        ]
                    yield place, group if bounds is None else bounds.mark(group, own.start)
                given |= ready
                if bool(given.all()):
                    return
            kept = decoder.worth_keeping(~ended)
            if kept is not None:
                decoder.keep(kept)
                token, row_of, ended = (tensor[kept] for tensor in (token, row_of, ended))
        with recorder.listening() if recorder else nullcontext():
            logits = decoder.step(token)
        if recorder is not None:
            recorder.wrote(row_of, length - 1)


def _completion(ids: list[int], log_probs: list[float], params: SamplingParams) -> Completion:
    """Without the filling behind its end."""
    written = [token for token in ids if token >= 0]
    sampled = log_probs[: len(written)] if params.temperature else []
    return Completion(written, written[-1] not in params.stop_ids, sampled)


def _draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """One token [rows] from each line of [rows, V]: where a number [rows] falls.

    In float64, because in float32 words less likely than 1e-7 would never come. Probabilities that
    are no numbers give some token, so that no assertion ends a GPU's work before the message.
    """
    with _any_algorithm():
        cumulative = probabilities.to(numbers.device).double().cumsum(-1)
    reached = numbers[:, None] * cumulative[:, -1:]
    # The first place above it: a word of probability 0 is never the first.
    found = torch.searchsorted(cumulative, reached, right=True)
    return found.squeeze(1).clamp(max=probabilities.shape[1] - 1).to(probabilities.device)


@contextmanager
def _any_algorithm() -> Iterator[None]:
    """Inside, `full_determinism` does not refuse CUDA's cumsum, whose float64 sums may differ by
    the last digit."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns)


def _chunks(
    lengths: Sequence[int],
    num_samples: int,
    max_new_tokens: int,
    token_budget: int,
    way: Way,
) -> Iterator[list[int]]:
    """Indices of prompts to sample together: of like length, within the budget, one at least.

    A prompt counts once where its completions share it, else once for each of them.
    """
    chunk: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first one is the longest: the others are padded to it.
        longest = lengths[chunk[0] if chunk else index]
        tokens = num_samples * max_new_tokens + longest * (1 if way.shared else num_samples)
        other = way.one_length and lengths[index] != longest
        if chunk and (other or (len(chunk) + 1) * tokens > token_budget):
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk
