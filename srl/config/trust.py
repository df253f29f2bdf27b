"""Decides whether code that a run's folder names may run, as the folder may be somebody else's.

Code that the user names, on the command line or in a given config, may run. Its name and a digest
of its files are noted. Code that only a run's own config.yaml names may run if it was noted. So
users can resume their own runs without a question.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from srl.config.code_files import code_file, with_imports
from srl.errors import UsageError


def note(values: Mapping[str, object]) -> None:
    """Notes the code that settings name, so that it may run from a run's folder too."""
    lines = [f"{digest} {name}" for name, digest in _code_of(values).items()]
    with suppress(OSError):  # without the note, a resume asks for --trust-code
        new = [line for line in lines if line not in _noted()]
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in new))


def refuse_foreign(
    values: Mapping[str, object],
    where: str,
    *,
    named: Mapping[str, object] | None = None,
    edited: bool = False,
) -> None:
    """Raises UsageError if settings of a run's folder name code that was never run here.

    Args:
        values: the settings.
        where: the file that contains the settings.
        named: additional settings from the user, whose code is the user's own.
        edited: whether code may run that was run here and has changed since; a resume reports such
            changes itself.

    Raises:
        UsageError: the message names the code, and says what to type.
    """
    noted = _noted()
    names = {line.partition(" ")[2] for line in noted} if edited else set()
    own = _code_of(named or {})
    foreign = [
        name
        for name, digest in _code_of(values).items()
        if name not in own and name not in names and f"{digest} {name}" not in noted
    ]
    if foreign:
        raise UsageError(
            f"{where} names code that has not been run here, or has changed since: "
            f"{', '.join(foreign)}. A run's folder may be somebody else's, and its code can do all "
            "that you can: read it, then add --trust-code"
        )


def _code_of(values: Mapping[str, object]) -> dict[str, str]:
    """Returns a digest of the files for each code that settings name, with its absolute path."""
    digests = {}
    for target in _targets(values):
        place, _, name = target.rpartition(":")
        file = code_file(place)
        if place.endswith(".py") and file is None:
            continue  # the file does not exist; the code that loads it reports the error
        digest = hashlib.sha256()
        for path in sorted(with_imports(file)) if file is not None else ():
            digest.update(path.read_bytes())
        digests[f"{file if place.endswith('.py') else place}:{name}"] = digest.hexdigest()[:32]
    if values.get("trust_remote_code") is True:
        digests[f"trust_remote_code of {values.get('model')}"] = ""
    return digests


def _targets(values: Mapping[str, object]) -> Iterator[str]:
    data, rewards = values.get("data"), values.get("rewards")
    named = [values.get("loss_type"), *sources_in(data)]
    for key, reward in rewards.items() if isinstance(rewards, Mapping) else ():
        named += [key, reward.get("name") if isinstance(reward, Mapping) else None]
    yield from (target for target in named if isinstance(target, str) and ":" in target)


def sources_in(data: object) -> Iterator[object]:
    """Yields the `source` of each source of a `data` block."""
    if isinstance(data, Mapping):
        yield data.get("source")
        blocks = data.get("sources")
        for block in blocks.values() if isinstance(blocks, Mapping) else ():
            yield from sources_in(block)


def _noted() -> set[str]:
    try:
        return set(_path().read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return set()


def _path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "stepwise-srl" / "code-run-here"
