"""Expands the `gap` block of a comparison: which teacher, length or mixture suits which policy.

    gap:
      models: {small: experiments/gap/small, large: experiments/tiny/base}
      sources:
        long:  {source: files, path: long.jsonl}
        short: {source: files, path: short.jsonl}
      pairs: {length: [long, short]}
      mixtures: {mix_long: {long: 1, short: 4}, follows: {long: 1, short: 1, adaptive: true}}
      methods:
        sft: {learning_rate: 1.0e-3}
        srl: {learning_rate: 1.0e-4}

A model becomes a difficulty. A source or a mixture, together with a method, becomes a row. A pair
becomes the contrast of two rows. Every mixture is compared with each of its sources, and every row
with the base policy (Li et al., arXiv 2502.12143: delta-long and delta-large are such contrasts).
With `expert_tokens` every trained row exists twice: at an equal number of rows, and at an equal
number of the expert's tokens. It is a number, or one number for each method with such rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from srl.config.strict_yaml import fit, refuse_unknown
from srl.errors import UsageError

_WORDS = ("mix_by", "same_problem", "when_exhausted", "wrong_answers")
KEYS = ("models", "sources", "pairs", "mixtures", *_WORDS, "methods", "expert_tokens")
# Settings of a row that follow from gap.
_OWN = ("data", "model", "method", "title", "train", "like", "after", "max_expert_tokens")
_SHARES_OF_STEPS = ("eval_steps", "save_steps", "logging_steps", "warmup_steps")
BASE = "base"
_TOKENS = "_tokens"  # the end of the name of a row at equal tokens
_MOST_STEPS = 100_000
_ADAPTIVE = "adaptive"  # a key of a mixture, besides its sources


@dataclass(frozen=True)
class Arm:
    """The data that a row is trained on.

    Attributes:
        name: the name of the source or the mixture.
        weights: source -> weight.
        adaptive: the value of `data.adaptive`; None if shares are constant.
    """

    name: str
    weights: Mapping[str, float]
    adaptive: object = None

    def trains(self, method: str) -> bool:
        """Returns whether the method can use this data; SFT has no groups for adaptive shares."""
        return method == "srl" or self.adaptive is None


def expanded(values: Mapping[str, object], where: str) -> dict[str, object]:
    """Returns the values of a comparison's file with `gap` as difficulties, rows and contrasts.

    Raises:
        UsageError: a key or a value is not allowed, or the file also has what `gap` creates.
    """
    if "gap" not in values:
        return dict(values)
    gap, at = _mapping(values["gap"], f"{where}: gap"), f"{where}: gap"
    refuse_unknown(gap, KEYS, at)
    for key in ("difficulties", "rows", "contrasts", "model"):
        if values.get(key) is not None:
            raise UsageError(f"{where}: {key} follows from gap; leave one of them away")
    models = {k: fit(v, str, f"{at}.models.{k}") for k, v in _some(gap, "models", at).items()}
    sources = _some(gap, "sources", at)
    methods = _some(gap, "methods", at)
    refuse_unknown(methods, ("srl", "sft"), f"{at}.methods")
    arms = [Arm(name, {name: 1.0}) for name in sources]
    arms += [_mixture(name, of, sources, at) for name, of in _optional(gap, "mixtures", at).items()]
    if idle := [arm.name for arm in arms if not any(arm.trains(method) for method in methods)]:
        raise UsageError(
            f"{at}.mixtures.{idle[0]} is {_ADAPTIVE}: its shares follow the signal of SRL's "
            f"groups, and methods has no srl; add it, or leave {_ADAPTIVE} away"
        )
    pairs = {
        name: _pair(of, [arm.name for arm in arms], f"{at}.pairs.{name}")
        for name, of in _optional(gap, "pairs", at).items()
    }
    tokens = _expert_tokens(gap.get("expert_tokens"), methods, f"{at}.expert_tokens")
    for method, settings in methods.items():
        _check_settings(_mapping(settings, f"{at}.methods.{method}"), f"{at}.methods.{method}")
    if tokens:
        for block in (values.get("settings") or {}, *(methods[name] for name in tokens)):
            _refuse_shares(_mapping(block, at), at)
    blocks = {name: _mapping(block, f"{at}.sources.{name}") for name, block in sources.items()}
    for name, block in blocks.items():
        if "weight" in block:
            raise UsageError(f"{at}.sources.{name}: leave weight away; mixtures say weights")

    def data(weights: Mapping[str, float], adaptive: object = None) -> dict[str, object]:
        """Returns a row's `data`; a source that it does not train on has weight 0.

        All sources are in every row, so that all rows hold out the same problems and steps.
        """
        return {
            **{word: gap[word] for word in _WORDS if word in gap},
            **({} if adaptive is None else {"adaptive": adaptive}),
            "sources": {
                name: {**block, "weight": weights.get(name, 0)} for name, block in blocks.items()
            },
        }

    rows: dict[str, dict[str, object]] = {BASE: {"train": False, "title": "not trained"}}
    contrasts: list[list[str]] = []
    for method, settings in methods.items():
        for budget in ["", _TOKENS] if method in tokens else [""]:
            for arm in (arm for arm in arms if arm.trains(method)):
                row: dict[str, object] = {
                    "title": _title(method, arm, budget),
                    "method": method,
                    **_mapping(settings, f"{at}.methods.{method}"),
                    "data": data(arm.weights, arm.adaptive),
                }
                if budget:
                    row |= {"max_expert_tokens": tokens[method], "max_steps": _MOST_STEPS}
                    row["lr_scheduler_type"] = "constant"
                rows[_row(method, arm.name, budget)] = row
            contrasts += _contrasts(method, budget, arms, pairs)
    every = data(dict.fromkeys(sources, 1.0))
    difficulties = {name: {"model": model, "data": every} for name, model in models.items()}
    rest = {key: value for key, value in values.items() if key != "gap"}
    return {**rest, "difficulties": difficulties, "rows": rows, "contrasts": contrasts}


def _expert_tokens(given: object, methods: Mapping[str, object], place: str) -> dict[str, int]:
    """Returns method -> tokens of its rows at equal tokens; a missing method has no such rows."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        refuse_unknown(given, list(methods), place)
        return {name: cast(int, fit(of, int, f"{place}.{name}")) for name, of in given.items()}
    return dict.fromkeys(methods, cast(int, fit(given, int, place)))


def _check_settings(settings: Mapping[str, object], place: str) -> None:
    if own := [key for key in _OWN if key in settings]:
        raise UsageError(f"{place}: {own[0]} follows from gap; leave it away")


def _refuse_shares(settings: Mapping[str, object], at: str) -> None:
    """Raises UsageError for shares of the steps, as the number of steps is unknown in advance."""
    for key in _SHARES_OF_STEPS:
        value = settings.get(key)
        if isinstance(value, float) and 0 < value < 1:
            raise UsageError(
                f"{at}: {key} is {value}, a share of the steps, but with expert_tokens nobody "
                "knows how many there will be; give a number of steps"
            )


def _contrasts(
    method: str, budget: str, arms: Sequence[Arm], pairs: Mapping[str, tuple[str, str]]
) -> list[list[str]]:
    def rows(first: str, second: str) -> list[str]:
        return [_row(method, first, budget), _row(method, second, budget)]

    arms = [arm for arm in arms if arm.trains(method)]
    there = {arm.name for arm in arms}
    contrasts = [rows(*pair) for pair in pairs.values() if there.issuperset(pair)]
    contrasts += [
        rows(arm.name, source) for arm in arms for source in arm.weights if source != arm.name
    ]
    return contrasts + [[_row(method, arm.name, budget), BASE] for arm in arms]


def _row(method: str, arm: str, budget: str) -> str:
    return f"{method}_{arm}{budget}"


def _title(method: str, arm: Arm, budget: str) -> str:
    words = f"{method.upper()} on {arm.name}"
    if len(arm.weights) > 1:
        shares = ", ".join(f"{name} {weight:g}" for name, weight in arm.weights.items())
        words += f" ({shares}{'' if arm.adaptive is None else ', adaptive'})"
    return f"{words}, equal tokens" if budget else words


def _mixture(name: str, of: object, sources: Mapping[str, object], at: str) -> Arm:
    place = f"{at}.mixtures.{name}"
    weights = _mapping(of, place)
    adaptive = weights.pop(_ADAPTIVE, False)
    if _ADAPTIVE in sources:
        raise UsageError(f"{at}.sources: {_ADAPTIVE} is a word of mixtures; give another name")
    if name in sources:
        raise UsageError(f"{place}: a source is called so too; give it another name")
    if len(weights) < 2:
        raise UsageError(f"{place} is {of!r}; give two sources or more, each with its weight")
    refuse_unknown(weights, list(sources), place)
    shares = {key: cast(float, fit(v, float, f"{place}.{key}")) for key, v in weights.items()}
    # The value of `adaptive` is checked where `data.adaptive` is read.
    return Arm(name, shares, None if adaptive is False else adaptive)


def _pair(of: object, names: Sequence[str], place: str) -> tuple[str, str]:
    if not isinstance(of, list) or len(of) != 2 or any(name not in names for name in of):
        raise UsageError(f"{place} is {of!r}; give two of {', '.join(names)}, as in [long, short]")
    return of[0], of[1]


def _some(gap: Mapping[str, object], key: str, at: str) -> dict[str, Any]:
    entries = _optional(gap, key, at)
    if not entries:
        raise UsageError(f"{at} has no {key}; name one or more")
    return entries


def _optional(gap: Mapping[str, object], key: str, at: str) -> dict[str, Any]:
    return _mapping(gap.get(key) or {}, f"{at}.{key}")


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{where} is {value!r}; it must hold `name: value` lines")
    return dict(value)
