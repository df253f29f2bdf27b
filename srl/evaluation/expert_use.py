"""Measures which experts a sparse policy uses for expert solutions, and selects some (ESFT).

The rows go through the policy unchanged: the prompt and the expert's text. A token of a prefix that
several rows share counts once. "Let the Expert Stick to His Last" (arXiv 2407.01906) scores an
expert of a layer by the mean of its gate over all tokens, or by its share of all choices.
Scores sum to 1 in a layer. The best experts are taken until their scores reach a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srl.config.router import SelectBy
from srl.data.explaining import cut_around
from srl.data.prompts import PromptFormat
from srl.data.rows import Rows
from srl.data.steps import StepExample
from srl.models.experts import SparseLayer
from srl.models.prefix_tree import Row, pack_rows, pack_trees
from srl.models.routing import Part, seeing, token_places
from srl.models.scoring import completion_log_probs
from srl.models.tree_models import attending_over_trees, refusal

# The parts of a row. The code of each of its tokens is an index into this tuple.
PARTS = ("prompt", "thought", "step")


@dataclass(frozen=True)
class ExpertUse:
    """The choices of the routers for some expert solutions.

    Attributes:
        tokens: how many tokens counted.
        layers: for each sparse layer, how many of them went to each expert.
        gates: for each sparse layer, the sum of each expert's weights.
        by: a split ("part", "source", "step_index") -> its values -> as `layers`. Prompts count
            only in "part", because steps share them.
    """

    tokens: int
    layers: list[list[int]]
    gates: list[list[float]]
    by: Mapping[str, Mapping[str, list[list[int]]]]

    def scores(self, by: SelectBy) -> list[list[float]]:
        """Returns the score of each expert, layer by layer; they sum to 1 in each layer."""
        layers: Sequence[Sequence[float]] = self.gates if by == "gate_score" else self.layers
        return [[value / sum(layer) for value in layer] for layer in layers]

    def to_json(self) -> dict[str, object]:
        """Returns the figures as `experts report` writes them."""
        return {
            "tokens": self.tokens,
            "layers": self.layers,
            "gate_scores": self.scores("gate_score"),
            "by": self.by,
        }


def select(scores: Sequence[Sequence[float]], threshold: float) -> list[list[int]]:
    """Returns for each layer the fewest experts, ascending, whose scores sum to `threshold`."""
    chosen = []
    for layer in scores:
        order = sorted(range(len(layer)), key=lambda expert: (-layer[expert], expert))
        total, taken = 0.0, []
        for expert in order:
            taken.append(expert)
            total += layer[expert]
            if total >= threshold - 1e-9:
                break
        chosen.append(sorted(taken))
    return chosen


@torch.no_grad()
def expert_use(
    model: PreTrainedModel,
    layers: Sequence[SparseLayer],
    form: PromptFormat,
    rows: Rows,
    *,
    budget: int,
    share: bool,
) -> ExpertUse:
    """Returns how a policy's routers spread the tokens of some rows over experts.

    Args:
        model: the policy.
        layers: its sparse layers.
        form: encodes the expert's text.
        rows: expert steps with their prompts.
        budget: the most tokens in one batch.
        share: compute shared prefixes once, if the model is known to support it.
    """
    tree = share and refusal(model) is None
    written = [form.encode_expert(example) for example in rows.examples]
    texts: list[Row] = list(zip(rows.prompts, written, strict=True))
    kinds = [_kinds(form, row, example) for row, example in zip(texts, rows.examples, strict=True)]
    sources = sorted({example.source for example in rows.examples})
    indices = sorted({example.step_index for example in rows.examples})
    values = {"part": list(PARTS), "source": sources, "step_index": [str(i) for i in indices]}
    batches = (pack_trees if tree else pack_rows)(texts, budget)
    parts: list[Part] = [([texts[i] for i in batch], tree) for batch in batches]

    def put_through(some: Sequence[Row], *, tree: bool) -> None:
        pad_id = int(form.tokenizer.pad_token_id)
        completion_log_probs(
            model, some, pad_id=pad_id, temperature=1.0, device=model.device, tree=tree
        )

    sums = _Sums(layers, values)
    was_training = model.training
    model.eval()
    try:
        put_through(texts[:1], tree=False)  # finds the head now, so that this is not watched
        with attending_over_trees(model) if tree else nullcontext():
            for batch, (some, _), (length, places) in zip(
                batches, parts, token_places(parts), strict=True
            ):
                codes = {split: torch.full((length,), -1) for split in values}
                for row, at in zip(batch, places, strict=True):
                    example = rows.examples[row]
                    fresh_places = [place for place in at if place is not None]
                    kind = [k for k, place in zip(kinds[row], at, strict=True) if place is not None]
                    own = [place for place, k in zip(fresh_places, kind, strict=True) if k]
                    codes["part"][fresh_places] = torch.tensor(kind, dtype=torch.long)
                    codes["source"][own] = sources.index(example.source)
                    codes["step_index"][own] = indices.index(example.step_index)
                with seeing(layers, sums.adder(codes)):
                    put_through(some, tree=tree)
    finally:
        model.train(was_training)
    return sums.use()


def _kinds(form: PromptFormat, row: Row, example: StepExample) -> list[int]:
    """Returns the part of each token of a row, as an index into `PARTS`."""
    prompt, written = row
    whole = list(written)
    thought, _ = cut_around(whole, example.expert_step, form.read) or ([], whole)
    return [0] * len(prompt) + [1] * len(thought) + [2] * (len(whole) - len(thought))


class _Sums:
    """Sums of tokens per expert, by layer and value of each split, and sums of gates."""

    def __init__(self, layers: Sequence[SparseLayer], values: Mapping[str, list[str]]) -> None:
        self._values = values
        self._counts = {
            split: [torch.zeros(len(of), layer.num_experts, dtype=torch.long) for layer in layers]
            for split, of in values.items()
        }
        self._gates = [torch.zeros(layer.num_experts, dtype=torch.float64) for layer in layers]
        self._tokens = 0

    def adder(self, codes: Mapping[str, Tensor]) -> Callable[[int, Tensor, Tensor, Tensor], None]:
        """Returns a function that adds the routers' results of one forward.

        Args:
            codes: for each split, the index of each token's value, [T]; -1 is not counted.
        """
        self._tokens += int((codes["part"] >= 0).sum())

        def add(number: int, _logits: Tensor, weights: Tensor, indices: Tensor) -> None:
            gates, chosen = weights.double().cpu(), indices.cpu()
            for split, code in codes.items():
                counts = self._counts[split][number]
                E, known = counts.shape[1], code >= 0
                places = (code[known, None] * E + chosen[known]).flatten()
                counts += torch.bincount(places, minlength=counts.numel()).view_as(counts)
            known = codes["part"] >= 0
            self._gates[number].index_add_(0, chosen[known].flatten(), gates[known].flatten())

        return add

    def use(self) -> ExpertUse:
        """Returns the sums as an `ExpertUse`."""
        of_parts = self._counts["part"]
        return ExpertUse(
            tokens=self._tokens,
            layers=[counts.sum(0).tolist() for counts in of_parts],
            gates=[gates.tolist() for gates in self._gates],
            by={
                split: {
                    value: [counts[place].tolist() for counts in self._counts[split]]
                    for place, value in enumerate(of)
                }
                for split, of in self._values.items()
            },
        )
