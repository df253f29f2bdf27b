"""The losses: each turns a micro-batch's tensors and the step's totals into a loss and figures.

For token t of rollout i with advantage A, `log_r = log_prob - old_log_prob`, `r = exp(log_r)` (or,
with `importance_sampling_level: sequence`, exp of the mean of log_r over the rollout's tokens):

    grpo, dapo, dr_grpo   l[i,t] = -min(min(r, delta) A, clip(r, 1 - epsilon, 1 + epsilon_high) A)
    cispo                 l[i,t] = -min(r, epsilon_high) A log_prob, no gradient through the ratio

Then `beta * k3` is added, with k3 = exp(ref - log_prob) - (ref - log_prob) - 1. k3 is multiplied by
r unless `use_bias_correction_kl` is off (DeepSeek-V3.2, arXiv 2512.02556). Then the tokens are
summed:

    grpo          sum_i (1 / |o_i|) sum_t l[i,t] / rollouts          DeepSeekMath, arXiv 2402.03300
    dapo, cispo   sum_i sum_t l[i,t] / tokens                        arXiv 2503.14476, 2506.13585
    dr_grpo       sum_i sum_t l[i,t] / (rollouts * longest allowed)  Dr. GRPO, arXiv 2503.20783

The divisors are totals of the whole optimiser step, not of the micro-batch. So the losses of the
micro-batches *add up* to the step's loss, however the step was cut.

A loss is a function `(inputs, scale)` or `(inputs, scale, settings)`. A user's own loss is named by
its place in the code, and it is called like a built-in one (docs/losses.md).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from rewards.by_path import CodeNameError, find
from srl.config.parts import LossSettings
from srl.errors import UsageError

# Two exponentials of this size may be multiplied, and float32 ends at exp(88.7). Beyond that, `min`
# gives a gradient of 0 * inf = NaN. With this limit, a token that is off by 17 orders of magnitude
# gets no gradient.
_LOG_RATIO_LIMIT = 40.0

# Settings that act inside a loss. A loss without the parameter `settings` cannot follow them.
_INSIDE = (
    "importance_sampling_level",
    "epsilon",
    "epsilon_high",
    "delta",
    "beta",
    "use_bias_correction_kl",
)


@dataclass(frozen=True)
class LossScale:
    """The totals of a whole optimiser step that the loss is divided by.

    Data parallelism averages gradients over processes. So each process needs the totals over all
    processes, divided by the number of processes. This is why the counts are floats.

    Attributes:
        num_sequences: rollouts in the step.
        num_tokens: completion tokens in the step that count (the sum of all masks).
        max_completion_length: the longest completion allowed, not the longest one seen.
    """

    num_sequences: float
    num_tokens: float
    max_completion_length: int

    @classmethod
    def of(cls, completion_lengths: Sequence[int], max_completion_length: int) -> LossScale:
        """Returns the totals of a step whose rollouts have these lengths."""
        return cls(len(completion_lengths), sum(completion_lengths), max_completion_length)


@dataclass(frozen=True)
class LossInputs:
    """The tensors of one micro-batch of B rollouts, padded to C tokens.

    Do not use values at positions where the mask is off: sum with `torch.where(mask, values, 0)`.

    Attributes:
        log_probs: [B, C] of the policy under training, with gradient.
        advantages: [B], one per rollout.
        mask: [B, C], True at the tokens that count.
        old_log_probs: [B, C] of the policy that sampled; None in the first update after sampling.
            There both are the same policy: the ratio is 1, but its gradient is not 0.
        ref_log_probs: [B, C] of the reference policy; None where `beta` is 0.
        entropy: [B, C] of the predictions, in nats; it has a gradient if `entropy_coef` is not 0.
    """

    log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    old_log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None
    entropy: Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.log_probs.shape
        if len(shape) != 2:
            raise UsageError(f"log_probs has shape {tuple(shape)}; it must be [B, C]")
        for name in ("mask", "old_log_probs", "ref_log_probs", "entropy"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise UsageError(
                    f"{name} has shape {tuple(tensor.shape)}; "
                    f"it must be that of log_probs, {tuple(shape)}"
                )
        if self.advantages.shape != shape[:1]:
            raise UsageError(
                f"advantages has shape {tuple(self.advantages.shape)}; "
                f"it must be one per row, ({shape[0]},)"
            )

    def row(self, number: int) -> LossInputs:
        """Returns one rollout as a micro-batch of its own."""
        rows = slice(number, number + 1)
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x[rows] for name, x in given.items() if x is not None})

    @property
    def log_ratio(self) -> Tensor:
        """Returns log_probs minus old_log_probs, [B, C], at least float32, 0 where masked."""
        old = self.log_probs.detach() if self.old_log_probs is None else self.old_log_probs
        return _difference(self.log_probs, old, self.mask)

    def total(self, values: Tensor) -> Tensor:
        """Returns the detached sum of [B, C] or [B, 1] values over the tokens that count."""
        return torch.where(self.mask.bool(), values.detach(), 0).sum()


# Name -> sum over the counted tokens of a micro-batch, or maximum if the name begins with `max_`.
Figures = Mapping[str, Tensor]
LossResult = tuple[Tensor, Figures]
Loss = Callable[[LossInputs, LossScale], LossResult]


def is_maximum(name: str) -> bool:
    """Returns whether a figure of that name is a maximum, not a sum."""
    return name.rpartition("/")[2].startswith("max_")


class FigureSums:
    """Collects the figures of a step's micro-batches without waiting for the device."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, figures: Figures) -> None:
        """Adds the figures of one micro-batch."""
        for name, value in figures.items():
            value, before = value.detach(), self._totals.get(name)
            if before is not None:
                largest = is_maximum(name)
                value = torch.maximum(before, value) if largest else before + value
            self._totals[name] = value

    def metrics(self, num_tokens: float) -> dict[str, float]:
        """Returns means per counted token of the step, and maxima, as numbers for the log."""
        return {
            name: value.item() / (1.0 if is_maximum(name) else max(num_tokens, 1.0))
            for name, value in self._totals.items()
        }


# -- the built-in losses -------------------------------------------------------------------------


def grpo(inputs: LossInputs, scale: LossScale, settings: LossSettings) -> LossResult:
    """Returns the GRPO loss: every rollout counts the same, whatever its length."""
    losses, figures = _clipped(inputs, settings)
    lengths = inputs.mask.bool().to(losses.dtype).sum(1).clamp(min=1)
    return (losses.sum(1) / lengths).sum() / scale.num_sequences, figures


def dapo(inputs: LossInputs, scale: LossScale, settings: LossSettings) -> LossResult:
    """Returns the DAPO loss: every token of the step counts the same."""
    losses, figures = _clipped(inputs, settings)
    return losses.sum() / scale.num_tokens, figures


def dr_grpo(inputs: LossInputs, scale: LossScale, settings: LossSettings) -> LossResult:
    """Returns the Dr. GRPO loss: every token counts the same, in every step."""
    losses, figures = _clipped(inputs, settings)
    return losses.sum() / (scale.num_sequences * scale.max_completion_length), figures


def cispo(inputs: LossInputs, scale: LossScale, settings: LossSettings) -> LossResult:
    """Returns the CISPO loss: REINFORCE weighted by the bounded ratio.

    The bound takes no token's gradient away.
    """
    ratio, advantage = _ratio(inputs, settings), _column(inputs)
    weight = ratio.clamp(max=settings.clip_high).detach()
    log_probs = torch.where(inputs.mask.bool(), _wide(inputs.log_probs), 0)
    too_high = (ratio > settings.clip_high) & (advantage > 0)
    losses, figures = _with_kl(inputs, settings, -weight * advantage * log_probs, ratio)
    return losses.sum() / scale.num_tokens, {"clip_ratio_high": inputs.total(too_high), **figures}


BUILT_INS: dict[str, Callable[[LossInputs, LossScale, LossSettings], LossResult]] = {
    "grpo": grpo,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "cispo": cispo,
}


def _clipped(inputs: LossInputs, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns PPO's clipped loss of each token, [B, C], 0 where masked, and its figures."""
    low, high = 1 - settings.epsilon, 1 + settings.clip_high
    ratio, advantage = _ratio(inputs, settings), _column(inputs)
    bounded = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    losses = -torch.minimum(bounded * advantage, ratio.clamp(low, high) * advantage)
    losses, figures = _with_kl(inputs, settings, losses, ratio)
    return losses, {
        "clip_ratio_low": inputs.total((ratio < low) & (advantage < 0)),
        "clip_ratio_high": inputs.total((ratio > high) & (advantage > 0)),
        **figures,
    }


def _with_kl(
    inputs: LossInputs, settings: LossSettings, losses: Tensor, ratio: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the [B, C] losses with the KL term, 0 where masked, and the KL figure."""
    weight = inputs.mask.bool().to(ratio.dtype)
    if settings.beta == 0.0 or inputs.ref_log_probs is None:
        return losses * weight, {"kl": torch.zeros_like(weight.sum())}
    ref_log_ratio = _difference(inputs.ref_log_probs, inputs.log_probs, inputs.mask)
    kl = torch.exp(ref_log_ratio) - ref_log_ratio - 1
    if settings.use_bias_correction_kl:
        kl = kl * ratio
    return (losses + settings.beta * kl) * weight, {"kl": inputs.total(kl)}


def _ratio(inputs: LossInputs, settings: LossSettings) -> Tensor:
    """Returns the ratio to the sampling probability: [B, C] by token or [B, 1] by sequence.

    The ratio by sequence is that of GSPO (arXiv 2507.18071).
    """
    log_ratio = inputs.log_ratio
    if settings.importance_sampling_level == "sequence":
        lengths = inputs.mask.bool().to(log_ratio.dtype).sum(1, keepdim=True).clamp(min=1)
        log_ratio = log_ratio.sum(1, keepdim=True) / lengths
    return torch.exp(log_ratio)


def _column(inputs: LossInputs) -> Tensor:
    """Returns the advantages, [B, 1]."""
    return inputs.advantages.to(_wide(inputs.log_probs)).unsqueeze(1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _difference(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Returns `a - b`, [B, C], 0 where the mask is off, clamped to a safe range for exp()."""
    difference = torch.where(mask.bool(), _wide(a) - _wide(b), 0.0)
    return difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)


# -- a step's loss -------------------------------------------------------------------------------


def step_loss(
    loss: Loss, inputs: LossInputs, scale: LossScale, *, entropy_coef: float = 0.0
) -> LossResult:
    """Returns this micro-batch's share of the step's loss with the entropy bonus, and all figures.

    The bonus is `entropy_coef` times the mean entropy over the step's tokens, for every loss.

    Raises:
        UsageError: a total is not above 0, or there is a bonus but the inputs have no entropy.
    """
    if min(scale.num_sequences, scale.num_tokens, scale.max_completion_length) <= 0:
        raise UsageError(f"{scale}: every total must be above 0; an empty step has no loss")
    value, figures = loss(inputs, scale)
    log_ratio = inputs.log_ratio.detach().abs()
    common = {"max_log_ratio": log_ratio.max() if log_ratio.numel() else log_ratio.sum()}
    if inputs.entropy is not None:
        common["entropy"] = inputs.total(inputs.entropy)
    if entropy_coef != 0.0:
        if inputs.entropy is None:
            raise UsageError(f"entropy_coef is {entropy_coef}, but the inputs have no entropy")
        entropy = torch.where(inputs.mask.bool(), inputs.entropy, 0).sum()
        value = value - entropy_coef * entropy / scale.num_tokens
    return value, {**figures, **common}


def load_loss(settings: LossSettings) -> Loss:
    """Returns the loss that the settings name. A user's own loss is tested first.

    The figures of a user's loss are renamed `loss/NAME`, so they do not clash with others.

    Raises:
        UsageError: the loss cannot be found, does not accept its arguments, returns something
            wrong, or ignores a setting.
    """
    if settings.loss_type in BUILT_INS:
        built_in = BUILT_INS[settings.loss_type]
        return lambda inputs, scale: built_in(inputs, scale, settings)
    what = f"loss_type {settings.loss_type!r}"
    try:
        function = find(settings.loss_type, what="loss_type")
    except CodeNameError as error:
        raise UsageError(str(error)) from error
    loss = _with_settings(function, settings, what)
    _try(loss, what)

    def named(inputs: LossInputs, scale: LossScale) -> LossResult:
        value, figures = loss(inputs, scale)
        return value, {f"loss/{name}": figure for name, figure in figures.items()}

    return named


def _with_settings(function: object, settings: LossSettings, what: str) -> Loss:
    write = "write def my_loss(inputs, scale) or def my_loss(inputs, scale, settings)"
    if not callable(function) or inspect.isclass(function):
        raise UsageError(f"{what} is {function!r}, which is not a function; {write}")
    try:
        signature = inspect.signature(function)
        wants_settings = "settings" in signature.parameters
        more = {"settings": settings} if wants_settings else {}
        signature.bind(None, None, **more)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} cannot be called as a loss: {error}; {write}") from error
    if wants_settings:
        return partial(function, settings=settings)
    defaults = {field.name: field.default for field in fields(LossSettings)}
    if idle := [name for name in _INSIDE if getattr(settings, name) != defaults[name]]:
        raise UsageError(
            f"{what} takes no settings, so {', '.join(idle)} would do nothing; take that out, or "
            "give the function a third parameter, settings, and use it"
        )
    return function


def _try(loss: Loss, what: str) -> None:
    """Calls a user's loss on tiny tensors, as in a first and in a later update.

    Raises:
        UsageError: the loss fails or returns something wrong; the message says what is needed.
    """
    scale = LossScale(num_sequences=2, num_tokens=5, max_completion_length=4)
    for later in (False, True):
        log_probs = torch.tensor([[-0.5, -1.0, -2.0], [-1.5, -0.7, 0.0]], requires_grad=True)
        other = log_probs.detach() + 0.1
        inputs = LossInputs(
            log_probs=log_probs,
            advantages=torch.tensor([1.0, -1.0]),
            mask=torch.tensor([[True, True, True], [True, True, False]]),
            old_log_probs=other if later else None,
            ref_log_probs=other,
            entropy=torch.ones(2, 3),
        )
        try:
            result = loss(inputs, scale)
        except Exception as error:  # a user's function may raise anything
            when = "a later update" if later else "the first update, without old_log_probs"
            raise UsageError(
                f"{what} raised {type(error).__name__}: {error} (tried on two rollouts, as in "
                f"{when})"
            ) from error
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise UsageError(
                f"{what} returned {_shown(result)}; it must return a pair: the loss, and a dict of "
                "figures, which may be empty"
            )
        value, figures = result
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise UsageError(
                f"{what} returned {_shown(value)} as the loss; it must be a scalar tensor: sum "
                "over the tokens and divide by a total of `scale`"
            )
        for name, figure in figures.items():
            if not isinstance(name, str) or not isinstance(figure, Tensor) or figure.dim() != 0:
                raise UsageError(
                    f"{what} returned the figure {name!r} as {_shown(figure)}; a figure is a "
                    "scalar tensor: the sum over the tokens that count, or a maximum named max_…"
                )
        if not value.isfinite():
            raise UsageError(f"{what} returned {value.item()} on finite inputs; it must be finite")
        if not value.requires_grad:
            raise UsageError(
                f"{what} returned a loss without gradient; compute it from inputs.log_probs, "
                "without detach() or no_grad()"
            )
        [gradient] = torch.autograd.grad(value, log_probs, allow_unused=True)
        if gradient is None or not gradient.isfinite().all() or not gradient.any():
            entries = "none" if gradient is None else gradient.tolist()
            raise UsageError(
                f"{what}: the gradient of its loss with respect to inputs.log_probs is {entries}; "
                "it must be finite, and not 0 everywhere"
            )
        parts = sum(loss(inputs.row(row), scale)[0].item() for row in (0, 1))
        if not math.isclose(parts, value.item(), rel_tol=1e-4, abs_tol=1e-6):
            raise UsageError(
                f"{what} returned {value.item():.4g} for two rollouts, but {parts:.4g} as the sum "
                "over each alone; the losses of micro-batches are added, so sum over the tokens "
                "and divide by a total of `scale`, not by what is at hand"
            )


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{value!r:.80} ({type(value).__name__})"
