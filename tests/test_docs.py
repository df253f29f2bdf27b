"""The pages that lead a reader are whole: titles, links, make targets, commands."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from srl.commands import cli
from srl.config.experiment import load_experiment

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / name
    for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "experiments/README.md")
] + sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").glob("*/README.md")])
# What a reader may run or read; cells.py is what the scripts share.
OF_THE_COMPARISON = sorted(
    {*(ROOT / "experiments/compare").glob("*.*")} - {ROOT / "experiments/compare/cells.py"}
)


def without_code(text: str) -> str:
    """The prose: fenced blocks left out, for what they hold is no Markdown."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings: lower case, punctuation dropped, blanks as hyphens."""
    titles = re.findall(r"^#+ +(.+?) *$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue  # out of the house, which tests do not leave
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there.read_text("utf-8"))):
            found.append(target)
    return found


def unknown_targets(text: str, makefile: str) -> set[str]:
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    return named - set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_a_page_begins_with_its_title(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith("# ")


def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_the_make_targets_named_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert unknown_targets(page.read_text(encoding="utf-8"), makefile) == set()


@pytest.mark.parametrize("path", OF_THE_COMPARISON, ids=lambda path: path.name)
def test_the_page_of_experiments_names_every_file_of_the_comparison(path: Path) -> None:
    assert path.name in (ROOT / "experiments/README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 750


def commands(text: str) -> list[str]:
    """What a reader may type, one line each."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [one for one in lines if re.match(r"make [a-z]|(\.venv/bin/)?python -m srl ", one)]


COMMANDS = sorted({one for page in PAGES for one in commands(page.read_text(encoding="utf-8"))})
# What stands for a reader's own files.
THEIR_OWN = re.compile(r"\b(mine|world|my_sft|mixture)\.(py|yaml)\b")


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_is_shown_has_its_options(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is run: `make` says what it would run, and that must be understood."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        own = {**os.environ, "MAKEFLAGS": ""}  # not what `make test` was told
        shown = subprocess.run(
            ["make", "-n", *words[1:]], capture_output=True, text=True, check=True, env=own
        )
        said = shown.stdout.replace("\\\n", " ").splitlines()
        lines = [shlex.split(one) for one in said if "-m srl " in one]
    else:
        lines = [words]
    asked: list[tuple[object, list[str]]] = []

    def ask(args: object, rest: list[str], *_: object) -> int:
        asked.append((args, rest))
        return 0

    for one in lines:
        command = one[one.index("srl") + 1 :]
        monkeypatch.setitem(cli._COMMANDS, command[0], ask)
        assert cli.main(command) == 0, capsys.readouterr().err
        args, rest = asked.pop()
        config = getattr(args, "config", None)
        if command[0] in ("train", "demo", "play") and not THEIR_OWN.search(line):
            load_experiment(str(config), rest)


def test_the_checks_find_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A title: of `two` parts\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#a-title-of-two-parts) [c](gone.md) [d](there.md#gone)\n"
        "[e](https://example.org)\n```\n[f](code.md)\nmake code\n```\n`make train`, `make up`\n"
    )
    assert broken_links(page) == ["gone.md", "there.md#gone"]
    assert unknown_targets(page.read_text(), "train: x\n") == {"code", "up"}


def test_docstrings_begin_with_what_the_function_does() -> None:
    """A function's docstring begins with a verb, as in "Returns the rows", a property's may not."""
    wrong = []
    for folder in ("srl", "rewards", "environments", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.FunctionDef) or any(
                    "property" in ast.unparse(decorator) for decorator in node.decorator_list
                ):
                    continue
                first = (ast.get_docstring(node) or "Returns it.").split()[0]
                if not re.fullmatch(r"[A-Z][a-z]+s,?|See", first):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {first}")
    assert wrong == []
