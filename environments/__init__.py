"""Loads problems with expert steps, from built-in sources or from a user's own environment.

`load_trajectories("gsm8k", "gsm8k_train.jsonl")` is the entry point. The dict `ENVIRONMENTS` holds
the built-in environments; a user's own one is a class that extends `Environment`. Each loader
counts the rows that it drops. Too many drops raise an error instead of silently giving a smaller
data set. No module here imports torch.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args, get_origin, get_type_hints

from environments import competition_math, files, gsm8k, s1k, word_problems
from environments.asking import asking, try_environment
from environments.environment import Environment, Prompts, Verdict
from environments.reading import why_unusable
from environments.splitting import SPLITTERS
from environments.types import DataError, LoadReport, Step, Trajectory

__all__ = [
    "ENVIRONMENTS",
    "SPLITTERS",
    "DataError",
    "Environment",
    "LoadReport",
    "Prompts",
    "Step",
    "Trajectory",
    "Verdict",
    "as_environment",
    "built_in_environment",
    "check_options",
    "load_trajectories",
]


class MathsText(Environment):
    """A data set of mathematics in words: a loader, and the base class's defaults for the rest."""

    def __init__(self, load: Callable[..., list[Trajectory]]) -> None:
        self.load = load  # type: ignore[method-assign]


# The keyword-only parameters of a loader, except `report` and `limit`, are its source's options.
ENVIRONMENTS: dict[str, Environment] = {
    "word_problems": MathsText(word_problems.load),
    "gsm8k": MathsText(gsm8k.load),
    "competition_math": MathsText(competition_math.load),
    "s1k": MathsText(s1k.load),
    "files": MathsText(files.load),
}

# Drops that belong to the published selection of rows and are no fault of the data. They are
# counted and shown, but they never stop a run that has trajectories left.
_SELECTION = frozenset({s1k.NOT_NUMBERED})

# Sources that draw their rows instead of reading them. A rejected draw is no fault of the data.
_DRAWN = frozenset({"word_problems"})


def built_in_environment(name: str) -> Environment:
    """Returns the environment called `name` in `ENVIRONMENTS`.

    Raises:
        DataError: there is no such environment; the message lists the names.
    """
    if name not in ENVIRONMENTS:
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"unknown source {name!r}; there are {', '.join(ENVIRONMENTS)}, and file.py:Name or "
            f"module:Name for an environment of your own.{meant}"
        )
    return ENVIRONMENTS[name]


def as_environment(candidate: object, source: str) -> Environment:
    """Returns `candidate` as an environment; a class is called without arguments to make one.

    Args:
        candidate: the object that `source` names.
        source: for the message.

    Raises:
        DataError: it is no environment, its class cannot be made, or its prompts are wrong.
    """
    if inspect.isclass(candidate) and issubclass(candidate, Environment):
        try:
            candidate = candidate()
        except Exception as error:  # a user's class may raise anything
            raise DataError(
                f"source {source!r}: the class cannot be made without arguments: "
                f"{type(error).__name__}: {error}. Options of a source are keyword-only parameters "
                "of its method `load`."
            ) from error
    if not isinstance(candidate, Environment):
        raise DataError(
            f"source {source!r} is {candidate!r}, which is no environment; give a class that "
            "extends environments.Environment, or an instance of one."
        )
    if not isinstance(candidate.prompts, Prompts):
        raise DataError(
            f"source {source!r}: its prompts are {candidate.prompts!r:.80}; "
            "give Prompts(step=…, whole=…)."
        )
    return candidate


def load_trajectories(
    source: str | Environment,
    path: str | None = None,
    *,
    report: LoadReport | None = None,
    limit: int | None = None,
    max_dropped_share: float = 0.5,
    **options: object,
) -> list[Trajectory]:
    """Loads the trajectories of a source, and sets the environment of each.

    A trajectory without a source name gets the name of this source.

    Args:
        source: a name in `ENVIRONMENTS`, or an environment.
        path: a local file, or a hub name; None takes the source's own hub name.
        report: the counts of this source are added to it, also when an error is raised.
        limit: stop after this many trajectories.
        max_dropped_share: a larger share of dropped rows is an error. Rows that the published
            recipe leaves out (s1K's other formats) and rejected draws do not count here.
        options: the source's own options.

    Raises:
        DataError: unknown source or option, a value that is not allowed, nothing to read, nothing
            usable, too many drops.
    """
    if isinstance(source, Environment):
        environment = source
        names = (name for name, known in ENVIRONMENTS.items() if known is environment)
        source = next(names, type(source).__name__)
    else:
        environment = built_in_environment(source)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit is {limit!r}; it must be 1 or more, or absent for all rows.")
    if not 0 <= max_dropped_share <= 1:
        raise DataError(f"max_dropped_share is {max_dropped_share}; it must lie between 0 and 1.")
    check_options(source, environment, options)
    own = LoadReport()
    try:
        with asking(environment, "load"):
            trajectories = list(environment.load(path, report=own, limit=limit, **options))
        if source not in ENVIRONMENTS:
            trajectories = _usable(trajectories, source, own)
    finally:
        if report is not None:
            report.rows += own.rows
            report.kept += own.kept
            report.dropped.update(own.dropped)
            report.read_as += own.read_as
            report.drawn = source in _DRAWN
    _check_drops(path or source, own, 1.0 if source in _DRAWN else max_dropped_share)
    trajectories = [
        replace(trajectory, source=trajectory.source or source, environment=environment)
        for trajectory in trajectories
    ]
    try_environment(trajectories[0])
    return trajectories


def _usable(loaded: Sequence[object], source: str, report: LoadReport) -> list[Trajectory]:
    """Returns the usable trajectories of those that a user's environment loaded.

    The others are counted as dropped.

    Raises:
        DataError: an item is no trajectory, or one of its texts is not text.
    """
    if not report.rows:
        report.rows = report.kept = len(loaded)
    kept = []
    for trajectory in loaded:
        if not isinstance(trajectory, Trajectory) or not trajectory.is_of_texts:
            raise DataError(
                f"environment {source}: its method load returned {trajectory!r:.200}; it must "
                "return trajectories whose problem, steps, answer and tags are texts"
            )
        if reason := why_unusable(trajectory):
            report.kept -= 1
            report.dropped[reason] += 1
        else:
            kept.append(trajectory)
    return kept


def options_of(environment: Environment) -> dict[str, object]:
    """Returns the options of an environment's source with their default values."""
    parameters = inspect.signature(environment.load).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in ("report", "limit")
    }


def check_options(source: str, environment: Environment, options: Mapping[str, object]) -> None:
    """Raises DataError for an option that the source lacks, or a value of a wrong type."""
    known = options_of(environment)
    types = get_type_hints(environment.load)
    for option, value in options.items():
        if option not in known:
            raise DataError(
                f"source {source!r} has no option {option!r}; "
                f"it has {', '.join(known) or 'none at all'}."
            )
        kind = types.get(option, object)
        allowed = get_args(kind) if get_origin(kind) is Literal else ()
        fits = value in allowed if allowed else _is_of(value, kind)
        if not fits:
            name = ", ".join(map(repr, allowed)) or getattr(kind, "__name__", str(kind))
            raise DataError(f"source {source!r}: option {option!r} is {value!r}; allowed: {name}.")


def _is_of(value: object, kind: object) -> bool:
    if isinstance(value, bool) and kind in (int, float):
        return False
    if kind is float:
        return isinstance(value, float | int)
    try:
        return isinstance(value, kind)  # type: ignore[arg-type]
    except TypeError:
        return True  # a type such as list[str]: only the loader itself can check it


def _check_drops(name: str, report: LoadReport, max_dropped_share: float) -> None:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in report.dropped.most_common())
    if report.kept == 0:
        raise DataError(
            f"{name}: none of {report.rows} rows can be used ({reasons or 'no rows'}). A row needs "
            "a problem and at least two steps."
        )
    dropped = sum(count for reason, count in report.dropped.items() if reason not in _SELECTION)
    if dropped > max_dropped_share * report.rows:
        raise DataError(
            f"{name}: {dropped} of {report.rows} rows were dropped ({reasons}), more than the "
            f"share of {max_dropped_share:g} allowed. Mend the data or raise max_dropped_share."
        )
