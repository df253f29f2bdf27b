"""Keeps the file of results, which is saved after every new figure."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Figures that the table leaves out, because other figures summarise them.
RAW = ("contests",)

RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "out of time"


@dataclass
class ResultFile:
    """A file of results: `{about..., "parts": {name: {title, state, seconds, figures}}}`.

    Attributes:
        path: the path of the file; saving makes its folder.
        about: machine, versions, date, commit, settings.
        parts: name -> part.
    """

    path: Path
    about: dict[str, object] = field(default_factory=dict)
    parts: dict[str, dict[str, object]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ResultFile:
        """Loads a file; returns empty results if it is absent."""
        if not path.is_file():
            return cls(path)
        values = json.loads(path.read_text(encoding="utf-8"))
        parts = values.pop("parts")
        return cls(path, values, parts)

    def save(self) -> None:
        """Writes the file so that a power cut leaves either the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f".{self.path.name}.new")
        with aside.open("w", encoding="utf-8") as file:
            json.dump({**self.about, "parts": self.parts}, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path)

    def note(self, name: str, figures: Mapping[str, object]) -> None:
        """Adds figures to a part and saves the file."""
        stored = self.parts[name].setdefault("figures", {})
        assert isinstance(stored, dict)
        stored.update(figures)
        self.save()

    def state(self, name: str) -> object:
        """Returns the state of a part, or None if it has not begun."""
        return self.parts.get(name, {}).get("state")

    def table(self) -> str:
        """Returns the results as Markdown, with one table per part."""
        lines = [f"**{self.about.get('device', 'nothing measured')}**", ""]
        lines += [f"- {name}: {_words(value)}" for name, value in self.about.items()]
        for name, part in self.parts.items():
            seconds = part.get("seconds")
            took = f", {seconds:.0f} s" if isinstance(seconds, float) else ""
            lines += ["", f"### {name}. {part.get('title')} ({part.get('state')}{took})", ""]
            if "error" in part:
                lines += ["```", str(part["error"]).strip(), "```", ""]
            figures = part.get("figures") or {}
            if figures:
                lines += ["| figure | value |", "|---|---|"]
                shown = {key: x for key, x in figures.items() if key not in RAW}
                lines += [f"| {key} | {value} |" for key, value in _rows("", shown)]
        return "\n".join(lines)


def _rows(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    """Yields every figure as two cells: the names that lead to it, and its value."""
    if isinstance(value, Mapping) and set(value) == {"value", "low", "high", "n"}:
        value = "{value:.4g} [{low:.4g}, {high:.4g}] of {n}".format(**value)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _rows(f"{prefix}: {name}" if prefix else str(name), inner)
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        for number, inner in enumerate(value):
            yield from _rows(f"{prefix} [{number}]", inner)
    else:
        yield _cell(prefix), _cell(_words(value))


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
