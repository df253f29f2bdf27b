"""Samples completions from the current policy, with `transformers` models and nothing else.

A prompt is read once for all its completions (`decoding.py`), and rows that have ended leave the
batch, so a step costs about what its longest completions cost. Only the sampling parameters passed
in are used: `model.generate` would inherit top_p, top_k and a repetition penalty from the model's
own `generation_config`, and sampling would silently be off-policy.

Each token is drawn with its own random number (`uniforms.py`), by inverting the distribution. The
numbers depend on the seed and the prompt's key, but not on the rest of the batch. So the sampled
tokens do not depend on it either, except through rounding: in bf16 another batch may round the
logits differently.
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

# The number of tokens between two checks for completions that have ended. A check must wait for the
# work that is queued on a GPU.
_LOOK_EVERY = {"cpu": 1}
_LOOK_EVERY_ELSEWHERE = 8
# The token budget over this number is the most tokens that are kept of prompts already read.
_KNOWN_PART = 2


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters.

    Attributes:
        max_new_tokens: the longest completion, in tokens.
        temperature: 0 is greedy decoding.
        top_p: 1.0 is off.
        top_k: 0 is off.
        min_p: None is off.
        stop_ids: every token that ends a completion; the token stays in the completion.
        seed: the seed of the random numbers.
        limits: the limits on a completion's text, which end it or close its thought; None is no
            limits.
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
        """Returns the parameters with the settings' temperature, top_p, top_k and min_p."""
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
        """Returns the logits processors of transformers for these parameters; none if greedy."""
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
    """A prompt for a sampler to continue.

    Attributes:
        ids: the prompt's tokens.
        key: 64 bits that identify the prompt's place in the training stream or in an evaluation.
            The random numbers depend on the key, so each place needs its own.
    """

    ids: Sequence[int]
    key: int


@dataclass(frozen=True)
class Completion:
    """A completion that the policy wrote.

    Attributes:
        ids: the tokens, including the token that ended the completion.
        truncated: True if the length limit ended the completion.
        log_probs: each token's log-probability at the sampling temperature, before top_p, top_k
            and min_p; empty for greedy decoding. At a forced token it is that of the drawn token,
            which the forced one replaced.
        forced: whether each token was forced, to close the thought, instead of drawn; empty if
            none was.
        routes: the experts of every token of a sparse policy, if they were recorded.
    """

    ids: list[int]
    truncated: bool
    log_probs: list[float] = field(default_factory=list)
    forced: list[bool] = field(default_factory=list)
    routes: Routes | None = field(default=None, compare=False)


class Sampler(Protocol):
    """The interface of a generation engine."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
        *,
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yields the index of each prompt with all of its completions, as soon as they are ready.

        So they can be scored while others are generated. Until the iterator has ended, nothing
        else may use the policy.

        Args:
            prompts: the prompts to continue.
            num_samples: completions of each prompt.
            params: the sampling parameters.
            first_sample: the number of the first completion, if a prompt is sampled in parts.
        """
        ...

    def remembering(self) -> AbstractContextManager[None]:
        """Returns a context in which later prompts may reuse what they share with earlier ones.

        The policy must not change inside the context.
        """
        ...


def key_of(*parts: str | int) -> int:
    """Returns a prompt's key, 64 bits, made from the parts that identify its place."""
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
    """Returns all completions, in the order of the prompts; arguments as in `Sampler.sample`."""
    done = dict(sampler.sample(prompts, num_samples, params, first_sample=first_sample))
    return [done[index] for index in range(len(prompts))]


def make_sampler(
    model: PreTrainedModel, *, pad_id: int, settings: SamplingSettings, record_routes: bool = False
) -> Sampler:
    """Returns the sampler of a policy, for training, validation, evaluation and benchmarks.

    Args:
        model: the bare model.
        pad_id: any token id; padding is masked out.
        settings: `rollout_token_budget` and `prefix_tree` are used.
        record_routes: record the experts of every token of a sparse policy.
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
        token_budget: the most prompt and completion tokens, at full length, of prompts that are
            sampled together; one prompt is always allowed. Bounds the memory of the cache.
        share: let completions share their prompts, if the model can.
        record_routes: record the experts of every token, if the model is sparse, its decoder knows
            the places of prompt tokens, and all prompts are read in full.
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
        """See `Sampler.remembering`. Keeps at most half of `token_budget`, in addition to tokens
        being sampled. Keeps none on a GPU, where reading is cheap and memory is scarce."""
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
        # This turns off dropout, and gradient checkpointing, which would prevent a cache.
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
    """Yields all completions of prompts that are sampled together, each prompt's when complete."""
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
    # The logits processors in use do not read earlier tokens.
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
            if cut:  # the token was drawn from a part of the distribution
                probabilities = (logits / params.temperature).softmax(-1)
            log_probs[row_of, length - 1] = probabilities.gather(1, token[:, None])[:, 0].log()
        if bounds is not None:
            token = bounds.force(token, length - 1, row_of, ended)
        written[row_of, length - 1] = torch.where(ended, -1, token)
        ended = ended | torch.isin(token, stop)
        last = length == params.max_new_tokens
        if last or length % look_every == 0:
            # Not finite if any logit is not; `isfinite` of all logits takes ten times as long.
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
                            replace(
                                completion,
                                routes=recorder.of(own.start + g, place, len(completion.ids)),
                            )
                            for g, completion in enumerate(group)
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
    """Returns the completion without the fill values after its end."""
    written = [token for token in ids if token >= 0]
    sampled = log_probs[: len(written)] if params.temperature else []
    return Completion(written, written[-1] not in params.stop_ids, sampled)


def _draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Returns one token [rows] from probabilities [rows, V] and random numbers [rows].

    It computes in float64, because in float32 tokens less likely than 1e-7 would never be drawn.
    NaN probabilities give some token, so that no GPU assertion fails before the error message.
    """
    with _any_algorithm():
        cumulative = probabilities.to(numbers.device).double().cumsum(-1)
    reached = numbers[:, None] * cumulative[:, -1:]
    # The first place above the number, so a token of probability 0 is never drawn.
    tokens = torch.searchsorted(cumulative, reached, right=True)
    return tokens.squeeze(1).clamp(max=probabilities.shape[1] - 1).to(probabilities.device)


@contextmanager
def _any_algorithm() -> Iterator[None]:
    """Lets `full_determinism` accept CUDA's cumsum inside the context. Its float64 sums may differ
    in the last digit."""
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
    """Yields indices of prompts to sample together: similar lengths, within the budget, at least 1.

    A prompt counts once if its completions share it, else once for each completion.
    """
    chunk: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first prompt of a chunk is the longest; the others are padded to its length.
        longest = lengths[chunk[0] if chunk else index]
        tokens = num_samples * max_new_tokens + longest * (1 if way.shared else num_samples)
        other = way.one_length and lengths[index] != longest
        if chunk and (other or (len(chunk) + 1) * tokens > token_budget):
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk
