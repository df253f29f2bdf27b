"""Loads a reward from its name: a built-in, `file.py:name` or `package.module:name`.

`BUILT_INS` names the module and function of each built-in, so that sympy is loaded only if a reward
needs it. This module checks names, functions and their options. Its error messages say what is
wrong and, where possible, list what is allowed.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Literal, get_args, get_origin

from rewards.by_path import CodeNameError, find, resolve
from rewards.secrets import concealed, revealed
from rewards.types import StepReward

BUILT_INS: dict[str, str] = {
    "similarity": "rewards.similarity:similarity_reward",
    "indel": "rewards.similarity:indel",
    "progress": "rewards.similarity:similarity_lift",
    "novelty": "rewards.similarity:novelty",
    "equation": "rewards.equation:equation",
    "answer": "rewards.answer:answer",
    "format": "rewards.form:format_reward",
    "length": "rewards.form:length_reward",
}

READS: dict[str, tuple[str, ...]] = {
    "similarity": ("action", "expert_step"),
    "indel": ("action", "expert_step"),
    "progress": ("action", "expert_step", "previous_steps"),
    "novelty": ("action", "previous_steps"),
    "equation": ("action",),
    "answer": ("problem", "action", "step_index", "num_steps", "answer"),
    "format": ("action", "thought"),
    "length": ("action", "expert_step"),
}
"""The fields of a step that a built-in reads. Steps that are equal in these fields share a score. A
built-in that is not listed may read every field."""


# Errors that evaluating a user's annotations may raise. Such annotations are not checked.
_UNREADABLE = (NameError, TypeError, AttributeError, SyntaxError, ValueError)


@dataclass(frozen=True)
class RewardSpec:
    """A description of where to find a reward, in plain values that another process can use.

    Attributes:
        name: its name in the log.
        target: a name in `BUILT_INS`, `file.py:name` or `package.module:name`.
        options: keyword arguments of the function or of the class.
    """

    name: str
    target: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def built_in(self) -> bool:
        return self.target in BUILT_INS

    @property
    def file(self) -> Path | None:
        """Returns the file of the reward, or None if the target names no file."""
        place = self.target.rpartition(":")[0]
        return Path(place) if place.endswith(".py") else None


@dataclass(frozen=True)
class LoadedReward:
    """A reward that can be called with one step or, if it is batched, with a list of steps.

    Attributes:
        function: the function to call.
        batched: the function takes a list.
        options: the options as in the settings, with references to secrets. The function has the
            secrets themselves.
    """

    function: StepReward
    batched: bool
    options: Mapping[str, object] = field(default_factory=dict)


def found_target(target: str) -> str:
    """Returns the target, with the absolute path of its file; refuses an invalid target.

    Nothing is imported.

    Raises:
        CodeNameError: the built-in is unknown, the file is missing, or no function is named.
    """
    if target in BUILT_INS:
        return target
    if ":" not in target:
        near = get_close_matches(target, BUILT_INS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if target.endswith(".py"):
            hint = f"; for a function of your own write {target}:NAME"
        raise CodeNameError(
            f"no step reward is called {target!r}; built in: {', '.join(BUILT_INS)}; "
            f"your own: file.py:name or package.module:name{hint}"
        )
    return resolve(target, what="step reward")


def load_reward(spec: RewardSpec) -> LoadedReward:
    """Imports a reward and binds its options, with the secrets that they name.

    Raises:
        CodeNameError: the reward is missing, cannot be imported or is not a step reward; or a
            secret is missing.
    """
    reward = find(BUILT_INS.get(spec.target, spec.target), what="step reward")
    options = {name: revealed(value) for name, value in spec.options.items()}
    try:
        return replace(bind(reward, options, f"step reward {spec.target!r}"), options=spec.options)
    except CodeNameError as error:
        raise CodeNameError(concealed(str(error), spec.options)) from None


def bind(reward: object, options: Mapping[str, object], what: str) -> LoadedReward:
    """Returns a reward made from a function, a class or any callable, with its options.

    The options of a function are its keyword-only parameters. The options of a class are the
    arguments of its constructor, and its instance is called with the step.

    Raises:
        CodeNameError: it is not callable, or its parameters or an option are wrong.
    """
    if inspect.isclass(reward):
        _check_options(reward, options, f"{what} (a class)", list(_parameters(reward, what)))
        try:
            function = reward(**options)
        except Exception as error:  # a user's class may raise anything
            raise CodeNameError(
                f"{what}: making it with {dict(options)} raised {type(error).__name__}: {error}"
            ) from error
        if not callable(function):
            raise CodeNameError(
                f"{what} is a class whose instances cannot be called: give it "
                "def __call__(self, step)"
            )
        return LoadedReward(function, _takes_batch(function, what))
    if not callable(reward):
        raise CodeNameError(f"{what} is {reward!r}, which is neither a function nor a class")
    if options:
        named = [
            parameter.name
            for parameter in _parameters(reward, what).values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        _check_options(reward, options, what, named)
        reward = partial(reward, **options)
    return LoadedReward(reward, _takes_batch(reward, what))


def _parameters(reward: Callable[..., object], what: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(reward).parameters
    except (TypeError, ValueError) as error:
        raise CodeNameError(f"{what}: its parameters cannot be read: {error}") from error


def _check_options(
    reward: Callable[..., object], options: Mapping[str, object], what: str, known: list[str]
) -> None:
    try:
        hints = typing.get_type_hints(reward.__init__ if inspect.isclass(reward) else reward)
    except _UNREADABLE:
        hints = {}
    for option, value in options.items():
        if option not in known:
            near = get_close_matches(str(option), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise CodeNameError(
                f"{what} has no option {option!r}; it has {', '.join(known) or 'none'}{hint}"
            )
        wanted = hints.get(option)
        if get_origin(wanted) is Literal:
            if value not in get_args(wanted):
                raise CodeNameError(
                    f"{what}: option {option!r} is {value!r}; allowed: "
                    f"{', '.join(map(str, get_args(wanted)))}"
                )
        elif wanted in (bool, int, float, str):
            allowed = (int, float) if wanted is float else (wanted,)
            if type(value) not in allowed:
                raise CodeNameError(
                    f"{what}: option {option!r} is {value!r}; it must be of type {wanted.__name__}"
                )


def _takes_batch(function: Callable[..., object], what: str) -> bool:
    """Returns whether the function takes a list of steps rather than one step.

    Raises:
        CodeNameError: the function cannot be called with exactly one argument, or is async.
    """
    call = function.func if isinstance(function, partial) else function
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004
    ):
        raise CodeNameError(f"{what} is async; a step reward is called and answers at once")
    parameters = _parameters(function, what)
    needed = [
        p
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    positional = [
        p
        for p in parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    unmet = [p.name for p in needed if p not in positional[:1]]
    if not positional or unmet:
        shown = f"({', '.join(map(str, parameters.values()))})"
        raise CodeNameError(
            f"{what} takes {shown}; it is called with one StepContext, as in "
            "def my_reward(step), or with a list of them, as in def my_reward(steps)"
            + (f"; give these as options: {', '.join(unmet)}" if positional and unmet else "")
        )
    first = positional[0]
    if first.name == "steps":
        return True
    if first.name == "step" or first.annotation is first.empty:
        return False
    try:
        annotation = typing.get_type_hints(_annotated(call)).get(first.name, first.annotation)
    except _UNREADABLE:
        annotation = first.annotation
    origin = get_origin(annotation)
    if origin is None:
        return str(annotation).startswith(("list[", "List[", "Sequence["))
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def _annotated(function: Callable[..., object]) -> Callable[..., object]:
    """Returns the function that holds the annotations: of an instance, its class's `__call__`."""
    if inspect.isfunction(function) or inspect.ismethod(function):
        return function
    call: Callable[..., object] = getattr(type(function), "__call__", function)  # noqa: B004
    return call
