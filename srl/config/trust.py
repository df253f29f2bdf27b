"""Whether code that a run's folder names may run: a folder may be somebody else's.

What the user names, on the command line or in a config that is given, runs, and is noted: its name
and a digest of its files. Code that only a run's own config.yaml names runs where it was noted, so
that resuming one's own runs asks nothing.
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
    """Note the code that settings name: from now on it may run for a run's folder as well."""
    lines = [f"{digest} {name}" for name, digest in _code_of(values).items()]
    with suppress(OSError):  # then a resume asks
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
    """Refuse settings of a run's folder that name code which was never run here.

    Args:
        values: the settings.
        where: the file that they stand in.
        named: settings that the user gives beside them, whose code is the user's own.
        edited: code that was run here, and has changed since, may run: a resume says so itself.

    Raises:
        UsageError: it names the code, and says what to type.
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
    """Code that settings name, with its file's whole path -> a digest of its files."""
    found = {}
    for target in _targets(values):
        place, _, name = target.rpartition(":")
        file = code_file(place)
        if place.endswith(".py") and file is None:
            continue  # not there: told by whoever looks for it
        digest = hashlib.sha256()
        for path in sorted(with_imports(file)) if file is not None else ():
            digest.update(path.read_bytes())
        found[f"{file if place.endswith('.py') else place}:{name}"] = digest.hexdigest()[:32]
    if values.get("trust_remote_code") is True:
        found[f"trust_remote_code of {values.get('model')}"] = ""
    return found


def _targets(values: Mapping[str, object]) -> Iterator[str]:
    data, rewards = values.get("data"), values.get("rewards")
    named = [values.get("loss_type"), *sources_in(data)]
    for key, reward in rewards.items() if isinstance(rewards, Mapping) else ():
        named += [key, reward.get("name") if isinstance(reward, Mapping) else None]
    yield from (one for one in named if isinstance(one, str) and ":" in one)


def sources_in(data: object) -> Iterator[object]:
    """What the sources of a `data` block are loaded by."""
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
