"""Computes log-probabilities of completions. Only this module uses TRL's semi-public parts.

It uses `trl.kernels.ChunkedLogProbFunction`, which computes log-probabilities (and entropy) of
given tokens directly from hidden states and the LM head's weight. It works tile by tile, so the
[tokens, V] logits never exist. A test checks its signature and its values, so an upgrade that
changes either fails the test. pyproject.toml allows only one minor version of TRL.

The rows of a micro-batch become one prefix tree, or are padded on the right to the longest row. The
backbone runs once. Only the hidden states that predict a completion token go through the head.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl.kernels import ChunkedLogProbFunction

from srl.errors import UsageError
from srl.models.prefix_tree import PrefixTree, Row
from srl.models.tree_models import attends_over_trees, tree_inputs

# On a CPU the fused head takes about twice as long as log_softmax, because it computes the logits
# again in the backward pass (173 against 93 ms at 4,000 tokens, hidden size 160, a vocabulary of
# 1,024, one thread). So a CPU uses it only if the float32 logits would take more than 128 MiB.
_CPU_LOGITS_LIMIT = 2**25
# Number of tokens whose entropies are computed together.
_LINES = 64
# Width of the fused head's vocabulary tiles. A tile is 4,096 tokens high, and buffers of that size
# are allocated. A GPU uses TRL's own width. A CPU uses a smaller one, because the float32 copies of
# a tile add up.
_TILE_WIDTH = {"cpu": 8192}
_TILE_WIDTH_ELSEWHERE = 32768

# Config names of the factor between `lm_head(hidden)` and the logits (Cohere, Muse, Falcon-H1,
# Granite and HyperCLOVA X; Granite divides by its factor, HyperCLOVA X multiplies by it).
_SCALE_NAMES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class CompletionScores(NamedTuple):
    """The policy's scores of B given completions, the longest of C tokens.

    Attributes:
        log_probs: [B, C] float32, with gradient; 0 after a completion's end.
        mask: [B, C] bool, True at completion tokens, made from lengths.
        entropy: [B, C] float32, in nats; None unless requested. It has a gradient only if
            `entropy_gradient` was set.
        is_top: [B, C] bool, True where the token is the argmax (the first one in a tie); None
            unless requested.
    """

    log_probs: Tensor
    mask: Tensor
    entropy: Tensor | None
    is_top: Tensor | None = None

    def padded(self, values: Sequence[Sequence[float]]) -> Tensor:
        """Pads the values of each row's tokens with 0 to [B, C], on the device of the mask."""
        B, C = self.mask.shape
        dtype = torch.bool if any(row and isinstance(row[0], bool) for row in values) else None
        padded = torch.zeros(B, C, dtype=dtype or torch.float32)
        for row, own in zip(padded, values, strict=True):
            row[: len(own)] = torch.tensor(own, dtype=padded.dtype)
        return padded.to(self.mask.device)


def completion_log_probs(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    pad_id: int,
    temperature: float,
    device: torch.device | str,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
    with_top: bool = False,
    tree: bool = False,
) -> CompletionScores:
    """Computes the log-probability of each completion token at the sampling temperature.

    Logits are divided by `temperature` before the softmax, as in sampling. The caller chooses the
    precision: wrap the call in the accelerator's autocast for bf16.

    The scores are computed inside the model's forward. For this call, a function that runs the
    backbone and the head replaces the bare model's forward. So a wrapper (DDP, PEFT) does its usual
    work before and after the forward, and yet the full logits never exist. Some heads cannot be
    used this way (sharded weights, an unknown transformation of the logits). Such a model is scored
    through its own logits, which is always correct but needs memory for them.

    Args:
        model: a causal language model.
        rows: B pairs of prompt ids and completion ids; prompts may differ in length. A completion
            may be empty. A prompt may not, because its last token predicts the first token of the
            completion.
        pad_id: any valid token id; its meaning does not matter.
        temperature: above 0.
        device: where the model is.
        with_entropy: also return the entropy of every prediction.
        entropy_gradient: give the entropy a gradient; it costs memory for another [N, V].
        with_top: also return whether each token is the most likely one.
        tree: compute shared prefixes only once (`prefix_tree.py`). Make this call and run the
            backward pass inside `attending_over_trees(model)`. The model must have no `refusal`.

    Raises:
        UsageError: there are no rows, a prompt is empty, or the temperature is not above 0.
        RuntimeError: `tree` is set outside `attending_over_trees(model)`.
    """
    _check(rows, temperature)
    if tree and not attends_over_trees(model):
        raise RuntimeError("a tree outside of `with attending_over_trees(model):`")
    batch = (
        _as_tree(rows, torch.device(device))
        if tree
        else _pad_right(rows, pad_id, torch.device(device))
    )
    language_model = _language_model(model)
    head = _head_of(language_model, batch)
    own_forward = language_model.forward

    def scores(*_: object, **__: object) -> _TokenScores:
        """Replaces the language model's forward; ignores its arguments and reads `batch`."""
        if head is None:
            inputs = accepted_by(own_forward, batch.inputs)
            hidden, project = own_forward(**inputs, use_cache=False).logits, nn.Identity()
        else:
            backbone = cast(PreTrainedModel, language_model).base_model
            inputs = accepted_by(backbone.forward, batch.inputs)
            hidden = backbone(**inputs, use_cache=False).last_hidden_state
            project = cast(PreTrainedModel, language_model).get_output_embeddings()
        predictors = hidden.flatten(0, 1).index_select(0, batch.predictors)  # [N, H], or [N, V]
        return _token_log_probs(
            predictors,
            project,
            batch.targets,
            head or _NO_HEAD,
            temperature,
            with_entropy=with_entropy,
            entropy_gradient=entropy_gradient,
            with_top=with_top,
        )

    with _in_place_of_forward(language_model, scores):
        log_probs, entropy, is_top = model(input_ids=batch.inputs["input_ids"])
    return CompletionScores(
        log_probs=batch.unflatten(log_probs),
        mask=batch.mask,
        entropy=None if entropy is None else batch.unflatten(entropy),
        is_top=None if is_top is None else batch.unflatten(is_top),
    )


@contextmanager
def _in_place_of_forward(model: nn.Module, function: Callable[..., object]) -> Iterator[None]:
    """Replaces the forward of `model` by `function`; a call of `model` still runs its hooks."""
    before = vars(model).get("forward")  # Accelerate sets its own forward there
    model.forward = function
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


@dataclass(frozen=True)
class _Batch:
    """The model's input for one micro-batch: R lines of T tokens, with M completion tokens in all.

    All index arithmetic runs on the host, from lengths, so the code never waits for the device.
    """

    inputs: dict[str, object]  # input_ids, position_ids: [R, T]; attention_mask, or the tree
    predictors: Tensor  # [N] into R * T: places whose next token is a completion token
    targets: Tensor  # [N] those next tokens
    sources: Tensor | None  # [M] into N: the prediction of each completion token; None if M is N
    slots: Tensor  # [M] into B * C: the place of each completion token in the result
    mask: Tensor  # [B, C]

    def short_inputs(self) -> dict[str, object]:
        """Returns inputs of the same kind, with one line of at most 8 tokens."""
        ids = cast(Tensor, self.inputs["input_ids"])[:1, :8]
        if "tree" in self.inputs:
            return tree_inputs(PrefixTree.of([(ids[0].tolist(), [])]), ids.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.arange(ids.shape[1], device=ids.device)[None],
        }

    def unflatten(self, values: Tensor) -> Tensor:
        """Turns values [N] into [B, C], with zeros where there is no token."""
        if self.sources is not None:
            values = values.index_select(0, self.sources)
        empty = values.new_zeros(self.mask.numel())
        return empty.index_copy(0, self.slots, values).view(self.mask.shape)


def _long(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long).to(device)


def _slots(completions: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the places of completion tokens in [B, C], as indices [M] and as a mask [B, C]."""
    C = max(map(len, completions))
    slots = [b * C + i for b, completion in enumerate(completions) for i in range(len(completion))]
    mask = torch.zeros(len(completions) * C, dtype=torch.bool)
    mask[slots] = True
    return _long(slots, device), mask.view(len(completions), C).to(device)


def _pad_right(rows: Sequence[Row], pad_id: int, device: torch.device) -> _Batch:
    T = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, attention = [], []
    predictors: list[int] = []
    targets: list[int] = []
    for b, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion)
        ids.append([*prompt, *completion, *[pad_id] * (T - length)])
        attention.append([1] * length + [0] * (T - length))
        predictors += range(b * T + len(prompt) - 1, b * T + length - 1)
        targets += completion
    slots, mask = _slots([completion for _, completion in rows], device)
    return _Batch(
        inputs={
            "input_ids": _long(ids, device),
            "attention_mask": _long(attention, device),
            # Explicit, because some absolute-position models derive wrong positions from the mask.
            "position_ids": torch.arange(T, device=device).expand(len(rows), T),
        },
        predictors=_long(predictors, device),
        targets=_long(targets, device),
        sources=None,
        slots=slots,
        mask=mask,
    )


def _as_tree(rows: Sequence[Row], device: torch.device) -> _Batch:
    """Returns a batch with one line of all nodes; the parent of a node predicts it."""
    tree = PrefixTree.of(rows)
    nodes = tree.completion_nodes
    place = {node: i for i, node in enumerate(nodes)}
    slots, mask = _slots([completion for _, completion in rows], device)
    return _Batch(
        inputs=tree_inputs(tree, device),
        predictors=_long([tree.parents[node] for node in nodes], device),
        targets=_long([tree.tokens[node] for node in nodes], device),
        sources=_long(
            [
                place[node]
                for path, start in zip(tree.paths, tree.prompt_lengths, strict=True)
                for node in path[start:]
            ],
            device,
        ),
        slots=slots,
        mask=mask,
    )


@dataclass(frozen=True)
class _Head:
    """The function from the LM head's output to the logits.

    `logits = softcap * tanh(scale * lm_head(hidden) / softcap)`, or `scale * lm_head(hidden)` if
    softcap is None.
    """

    scale: float
    softcap: float | None

    def logits(self, projected: Tensor) -> Tensor:
        logits = projected if projected.dtype == torch.float64 else projected.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


# Log-probabilities, entropy, and whether each target is the most likely token: each [N].
_TokenScores = tuple[Tensor, Tensor | None, Tensor | None]


def _token_log_probs(
    hidden: Tensor,
    project: Callable[[Tensor], Tensor],
    targets: Tensor,
    head: _Head,
    temperature: float,
    *,
    with_entropy: bool,
    entropy_gradient: bool = False,
    with_top: bool = False,
) -> _TokenScores:
    """Computes the requested scores of `targets` [N] from `hidden` [N, H]."""
    # Exactly nn.Linear: an adapted or quantised layer computes more than a product with its weight.
    if type(project) is nn.Linear:
        small = hidden.shape[0] * project.out_features <= _CPU_LOGITS_LIMIT
        if hidden.device.type != "cpu" or not small:
            return _fused(
                hidden,
                project,
                targets,
                head,
                temperature,
                with_entropy=with_entropy,
                entropy_gradient=entropy_gradient,
                with_top=with_top,
            )
    logits = head.logits(project(hidden))
    if temperature != 1.0:  # the division needs one more [N, V], and another for its gradient
        logits = logits / temperature
    every = F.log_softmax(logits, -1)
    log_probs = -F.nll_loss(every, targets, reduction="none")
    is_top = every.detach().argmax(-1) == targets if with_top else None
    if not with_entropy:
        return log_probs, None, is_top
    with nullcontext() if entropy_gradient else torch.no_grad():
        # A few lines at a time stay in the cache; all at once would need two more [N, V].
        entropy = torch.cat([-(torch.exp(x) * x).sum(-1) for x in every.split(_LINES)])
    return log_probs, entropy, is_top


def _fused(
    hidden: Tensor,
    linear: nn.Linear,
    targets: Tensor,
    head: _Head,
    temperature: float,
    *,
    with_entropy: bool,
    entropy_gradient: bool = False,
    with_top: bool = False,
) -> _TokenScores:
    """Computes the scores with TRL's kernel, which never holds the [N, V] logits."""
    width = min(_TILE_WIDTH.get(hidden.device.type, _TILE_WIDTH_ELSEWHERE), linear.out_features)
    asked = {"entropy": with_entropy, "is_top1": with_top}
    log_probs, entropy, _, _, is_top = ChunkedLogProbFunction.apply(
        hidden,
        linear.weight,
        linear.bias,
        targets,
        temperature,
        width,
        head.softcap,
        head.scale,
        tuple(name for name, wanted in asked.items() if wanted),
    )
    if entropy is not None and not entropy_gradient:
        entropy = entropy.detach()
    return log_probs, entropy, is_top


# The head for a model that is scored through its own logits: it changes nothing.
_NO_HEAD = _Head(scale=1.0, softcap=None)

_heads: WeakKeyDictionary[nn.Module, _Head | None] = WeakKeyDictionary()


def _head_of(model: nn.Module, batch: _Batch) -> _Head | None:
    """Returns the model's head, computed once per model; None if only its own forward is safe."""
    if model not in _heads:
        _heads[model] = _find_head(model, batch)
    return _heads[model]


def _language_model(model: nn.Module) -> nn.Module:
    """Returns the bare model without the wrappers of DDP, DeepSpeed and PEFT."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = cast(nn.Module, model.module)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _find_head(model: nn.Module, batch: _Batch) -> _Head | None:
    """Derives the head from the config; returns None unless it gives the model's own logits.

    Only a transformers model qualifies, with or without adapters in its layers. A new architecture
    may change its logits in an unknown way. It then fails the comparison, so it is never trained on
    wrong probabilities.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    backbone, project = model.base_model, model.get_output_embeddings()
    if backbone is model or project is None:
        return None
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None

    seen: list[Tensor] = []

    def see(_module: nn.Module, _args: object, output: object) -> None:
        states = getattr(output, "last_hidden_state", None)
        if isinstance(states, Tensor):
            seen.append(states)

    short_inputs = batch.short_inputs()
    hook = backbone.register_forward_hook(see)
    # In training mode dropout draws random numbers; this test must not change the later ones.
    cuda = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[d.index for d in cuda]):
            logits = model(**accepted_by(model.forward, short_inputs), use_cache=False).logits
            projected = project(seen[0]) if len(seen) == 1 else None
    finally:
        hook.remove()
    if projected is None:
        return None

    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    for scale in _possible_scales(config):
        head = _Head(scale, softcap)
        # A cast anywhere in the model (weights, autocast) shows in one of these dtypes.
        exact = logits.dtype == projected.dtype == torch.float32
        tolerance = (1e-4 if exact else 2e-2) * logits.abs().max().item()
        if (head.logits(projected) - logits.float()).abs().max().item() <= tolerance:
            return head
    return None


def _possible_scales(config: object) -> list[float]:
    scales = [1.0]
    for name in _SCALE_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value != 0 and math.isfinite(value):
            scales += [float(value), 1 / value]
    return scales


def accepted_by(forward: Callable[..., object], inputs: Mapping[str, object]) -> dict[str, object]:
    """Returns `inputs`, without `position_ids` if the architecture's forward does not take them."""
    parameters = inspect.signature(forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "position_ids" in parameters or takes_any:
        return dict(inputs)
    return {name: value for name, value in inputs.items() if name != "position_ids"}


def _check(rows: Sequence[Row], temperature: float) -> None:
    if len(rows) == 0:
        raise UsageError("no rows to score; a micro-batch needs at least one prompt and completion")
    for i, (prompt, _) in enumerate(rows):
        if len(prompt) == 0:
            raise UsageError(
                f"row {i} has an empty prompt; it needs at least one token, "
                "which predicts the first token of the completion"
            )
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature}; log-probabilities need one above 0")
