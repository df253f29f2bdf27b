"""Where problems and expert steps come from: one loader per data set, one shape for all.

`load_trajectories("gsm8k", "gsm8k_train.jsonl")` is the way in. The loaders stand in one literal
dict; each counts what it drops, and too many drops are an error rather than a silently smaller
data set. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Literal, Protocol, get_args, get_origin, get_type_hints

from environments import competition_math, files, gsm8k, s1k, word_problems
from environments.splitting import SPLITTERS
from environments.types import DataError, LoadReport, Trajectory

__all__ = [
    "ENVIRONMENTS",
    "SPLITTERS",
    "DataError",
    "LoadReport",
    "Loader",
    "Trajectory",
    "load_trajectories",
]


class Loader(Protocol):
    """A source: a path or hub name (None: the loader's default) -> trajectories, with a report."""

    def __call__(
        self, path_or_hub: str | None = None, *, report: LoadReport, limit: int | None = None
    ) -> list[Trajectory]: ...


# A loader's further keyword parameters are the options of its source.
ENVIRONMENTS: dict[str, Loader] = {
    "word_problems": word_problems.load,
    "gsm8k": gsm8k.load,
    "competition_math": competition_math.load,
    "s1k": s1k.load,
    "files": files.load,
}

# Reasons that are the published choice of rows and not a fault of the data: they are counted and
# shown, but however many there are, they do not stop a run that has trajectories left.
_SELECTION = frozenset({s1k.NOT_NUMBERED})

# Sources that are drawn and not read: what a draw rejects says nothing about anybody's data.
_DRAWN = frozenset({"word_problems"})


def load_trajectories(
    source: str,
    path: str | None = None,
    *,
    report: LoadReport | None = None,
    limit: int | None = None,
    max_dropped_share: float = 0.5,
    **options: object,
) -> list[Trajectory]:
    """The trajectories of a source.

    Args:
        source: a name in `ENVIRONMENTS`.
        path: a local file, or a hub name; None takes the source's own hub name.
        report: gets this source's rows, kept and dropped added, also when an error is raised.
        limit: stop after so many trajectories.
        max_dropped_share: more dropped rows than this share of all rows are an error. Rows that the
            published recipe leaves out (s1K's other formats) or a draw rejects do not count here.
        options: the source's own options.

    Raises:
        DataError: unknown source or option, nothing to read, nothing usable, too many drops.
    """
    if source not in ENVIRONMENTS:
        near = difflib.get_close_matches(source, ENVIRONMENTS, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown source {source!r}; there are {', '.join(ENVIRONMENTS)}.{meant}")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit is {limit!r}; it must be 1 or more, or absent for all rows.")
    if not 0 <= max_dropped_share <= 1:
        raise DataError(f"max_dropped_share is {max_dropped_share}; it must lie between 0 and 1.")
    loader = ENVIRONMENTS[source]
    _check_options(source, loader, options)
    own = LoadReport()
    try:
        trajectories = loader(path, report=own, limit=limit, **options)
    finally:
        if report is not None:
            report.rows += own.rows
            report.kept += own.kept
            report.dropped.update(own.dropped)
    _check_drops(path or source, own, 1.0 if source in _DRAWN else max_dropped_share)
    return trajectories


def _check_options(source: str, loader: Loader, options: dict[str, object]) -> None:
    parameters = inspect.signature(loader).parameters
    known = [name for name in parameters if name not in ("path_or_hub", "report", "limit")]
    types = get_type_hints(loader)
    for option, value in options.items():
        if option not in known:
            raise DataError(
                f"source {source!r} has no option {option!r}; "
                f"it has {', '.join(known) or 'none at all'}."
            )
        kind = types[option]
        allowed = get_args(kind) if get_origin(kind) is Literal else ()
        if value not in allowed if allowed else not isinstance(value, kind):
            name = ", ".join(map(repr, allowed)) or getattr(kind, "__name__", str(kind))
            raise DataError(f"source {source!r}: option {option!r} is {value!r}; allowed: {name}.")


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
