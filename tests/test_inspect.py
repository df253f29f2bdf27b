"""`srl inspect` in the terminal: records, one in full, every width and encoding, hostile
texts, and what is said when nothing can be shown."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from conftest import read_jsonl
from inspecting import FILTERS, shown, write_run
from rich.cells import cell_len
from step_logs import RECORD, write_log

from rewards.similarity import matching_blocks
from srl.commands.cli import main
from srl.console import visible
from srl.errors import UsageError
from srl.logs import index, reading
from srl.logs.terminal.pen import Pen
from srl.logs.terminal.rollout_view import marked

FAILED = replace(
    RECORD,
    rollout=1,
    thought="no end",
    action="",
    format_failure="missing_close",
    rewards={"similarity": None},
    reward=-1.0,
    metrics={"lift": None},
)
DROPPED = replace(
    RECORD,
    train_step=4,
    kept=False,
    dropped_because="flat_group",
    advantage=None,
    reward=0.25,
    rollout=2,
)
EVALUATED = replace(
    RECORD,
    train_step=5,
    phase="eval",
    problem_id="ee11223344556677",
    kept=False,
    advantage=None,
    rewards={"similarity": 0.25},
    reward=0.0,
    group_mean=None,
    group_std=None,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


# ---- records ------------------------------------------------------------------------------------


def test_records_are_shown_three_lines_each(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD, FAILED, DROPPED, EVALUATED])
    text = shown(tmp_path)
    for said in (
        "3 of 4 (--phase train): 1 problems, 2 groups, training steps 1 to 4",
        "not complete: training step 5; a record was last written",
        "1 kept of 2 tried; dropped: flat_group 1",
        "missing_close 1",
        "00ff00ff",
        "2/4 0/2",
        "similarity 0.750  equation -",
        "+0.250",
        "+1.000",
        "dropped",
        "[missing_close] no end",
        RECORD.action,
        RECORD.expert_step,
        "#3",
    ):
        assert said in text, said
    assert "#4" not in text
    assert "#4" in shown(tmp_path, "--phase", "all", "--limit", "1")


def test_old_options_go_on_working(tmp_path: Path) -> None:
    write_log(tmp_path, [RECORD, FAILED, DROPPED, EVALUATED])
    assert "dropped │" not in shown(tmp_path, "--step", "1")
    assert "missing_close] no end" in shown(tmp_path, "--failures-only")
    assert "0/0" not in shown(tmp_path, "--failures-only")
    assert "ee112233" in shown(tmp_path, "--problem", "ee11", "--phase", "eval")
    assert "00ff00ff" not in shown(tmp_path, "--problem", "ee11", "--phase", "all")


def test_which_records_are_shown(tmp_path: Path) -> None:
    records = [replace(RECORD, train_step=n + 100, reward=n % 7 / 7, group_id=n) for n in range(30)]
    write_log(tmp_path, records)

    def numbers(*words: str) -> list[int]:
        return [int(n) for n in re.findall(r"^│ +#(\d+) │", shown(tmp_path, *words), re.MULTILINE)]

    assert numbers() == [28, 29, 30]
    assert numbers("--step", "100:") == list(range(11, 31))
    assert numbers("--limit", "30") == list(range(1, 31))
    ordered = sorted(range(30), key=lambda n: (n % 7, n))
    assert numbers("--sort", "reward", "--limit", "4") == [n + 1 for n in ordered[:4]]
    ordered = sorted(range(30), key=lambda n: (-(n % 7), n))
    assert numbers("--sort=-reward", "--limit", "4") == [n + 1 for n in ordered[:4]]
    assert "The newest 3 of 30 records; --limit shows more" in shown(tmp_path)
    assert "--limit" not in shown(tmp_path, "--limit", "30")
    assert "│" not in shown(tmp_path, "--figures")


def test_records_as_json_lines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_jsonl(run / "steps.jsonl")
    for words, passes in FILTERS:
        assert main(["inspect", str(run), "--json", *words]) == 0
        found = capsys.readouterr()
        assert found.err == ""
        wanted = [{"line": line, **row} for line, row in enumerate(rows, start=1) if passes(row)]
        assert [json.loads(line) for line in found.out.splitlines()] == wanted
        assert list(json.loads(found.out.splitlines()[0])) == ["line", *rows[0]]
    assert main(["inspect", str(run), "--json", "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    train = [k for k, row in enumerate(rows, start=1) if row["phase"] == "train"]
    assert [json.loads(line)["line"] for line in lines] == train[-2:]
    assert main(["inspect", str(run), "--json", "--sort", "-reward", "--limit", "1"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert best["reward"] == max(
        float(str(row["reward"])) for row in rows if row["phase"] == "train"
    )


# ---- one in full --------------------------------------------------------------------------------


def test_records_as_a_data_set(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [json.loads(line) for line in (run / "steps.jsonl").read_bytes().splitlines()]
    assert shown(run, "--export", "parquet", "--kept", "true", "--sort=-reward") == ""
    assert f"records: {run / 'export' / 'steps.parquet'}" in capsys.readouterr().out
    table = parquet.read_table(run / "export" / "steps.parquet").to_pylist()
    kept = [record for record in records if record["phase"] == "train" and record["kept"]]
    for row in (*records, *kept):
        row["tags"] = "{}"
    assert table == sorted(kept, key=lambda record: -record["reward"])
    with pytest.raises(UsageError, match="export is in use and is never overwritten"):
        shown(run, "--export", "parquet")
    shown(run, "--export", "parquet", "--phase", "all", "--to", str(run / "other"))
    assert parquet.read_table(run / "other" / "steps.parquet").to_pylist() == records
    few = run / "few"
    shown(run, "--export", "parquet", "--limit", "5", "--sort=-reward", "--to", str(few))
    assert parquet.read_metadata(few / "steps.parquet").num_rows == 5
    with pytest.raises(UsageError, match="--to says where --export writes: add --export parquet"):
        shown(run, "--to", "there")
    with pytest.raises(UsageError, match="--by and --export exclude each other"):
        shown(run, "--by", "source", "--export", "parquet")


def test_one_record_in_full(tmp_path: Path) -> None:
    group = [
        replace(RECORD, rollout=k, reward=k / 8, action=f"She has {k} eggs.") for k in range(3)
    ]
    write_log(tmp_path, [*group, replace(RECORD, train_step=2, action="elsewhere")])
    text = shown(tmp_path, "--record", "2")
    for said in (
        "record #2: step 2 of 4 of problem 00ff00ff00ff00ff (made up), training step 1, group 0, "
        "attempt 2 of 3",
        "problems.jsonl does not tell it",
        "1 She has 3 eggs.",
        "So I add.",
        "0.125  (similarity 0.750, equation -)",
        "+1.000  (group mean 0.500, std 0.250)",
        "lift       +0.250",
        "30 read, 12 written",
    ):
        assert said in text, said
    lines = text.splitlines()
    for at, written_ in enumerate(lines):
        if written_.strip() == "She has 1 eggs.":
            assert lines[at + 1].rstrip() == "  ^^^^^^^^ ^^^^^^"
            break
    assert [line.split()[:2] for line in lines if re.match(r">? +#\d", line)] == [
        ["#1", "0.000"],
        [">", "#2"],
        ["#3", "0.250"],
    ]
    assert "elsewhere" not in text

    problem = {
        "problem_id": RECORD.problem_id,
        "source": "made up",
        "problem": "How many eggs\nhas she?",
        "steps": ["She has 3 eggs.", RECORD.expert_step, "c", "d"],
        "answer": "7",
    }
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    text = shown(tmp_path, "--record", "4")
    assert re.search(r"problem\n  How many eggs⏎ *\n  has she\? *\n  answer: 7", text)
    assert re.search(r"so far\n +1 She has 3 eggs\.", text)


def test_a_failed_format_in_full(tmp_path: Path) -> None:
    write_log(tmp_path, [FAILED, replace(FAILED, action="x = 1", truncated=True, step_index=0)])
    text = shown(tmp_path, "--record", "1")
    assert "none was found: missing_close" in text
    assert "no end" in text
    text = shown(tmp_path, "--record", "2")
    assert "not scored: missing_close" in text
    assert "none: this is the first step" in text
    assert "cut at the allowed length" in text


def test_common_parts_are_coloured_or_underlined() -> None:
    one, two = "so 3+4=7 漢 eggs", "so 3+5=8 漢 eggs"
    found = [(i, i + n) for i, _, n in matching_blocks(one, two)]
    in_colour = marked(one, found, Pen(80, colour=True))
    assert in_colour.plain == one
    green = "".join(one[s.start : s.end] for s in in_colour.spans if s.style == "green")
    assert green == "".join(one[i:j] for i, j in found)
    text, marks = marked(one, found, Pen(80)).plain.split("\n")
    assert text == one
    hits = "".join(one[i:j] for i, j in found)
    assert marks.count("^") == cell_len(hits)
    # Wrapped: each line of text has its own line of marks, none is wider than the terminal.
    for width in (5, 9, 40):
        lines = marked("ab cd ef gh\tij\nkl" * 3, [(0, 3), (4, 20)], Pen(width)).plain.split("\n")
        assert max(map(cell_len, lines)) <= width
        kept = "".join(line for line in lines if set(line) - {"^", " "})
        assert kept == visible("ab cd ef gh\tij\nkl" * 3)


# ---- whatever is written ------------------------------------------------------------------------

HOSTILE = "[red]x[/red] [/] :smile: \x1b[2J\x07\r\u202e\u200b\x9b31m\u2028 two\nlines\ttab"
VIEWS = [
    [],
    ["--figures"],
    ["--by", "source"],
    ["--by", "problem"],
    ["--by", "format_failure"],
    ["--record", "1"],
    ["--record", "2"],
    ["--follow"],
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("h\x1b[31m")
    record = replace(
        RECORD,
        action=HOSTILE,
        expert_step=HOSTILE + "漢",
        thought=HOSTILE,
        source="s\x1b[1m[b]",
        problem_id="\x1b[1m" + RECORD.problem_id,
        rewards={"similarity": 0.5, "\x1b[5m[b]" + "long " * 40: 1.0},
    )
    failed = replace(record, format_failure="\x1b[7m", action="", rollout=1, reward=-1.0)
    dropped = replace(
        record, kept=False, dropped_because="\x1b[8m[i]", train_step=2, source="\udc00"
    )
    write_log(folder, [record, failed, dropped, replace(dropped, step_index=2)])
    (folder / "problems.jsonl").write_text(
        json.dumps(
            {
                "problem_id": record.problem_id,
                "problem": HOSTILE,
                "steps": ["a", record.expert_step],
            }
        )
    )
    (folder / "summary.json").write_text("{}")
    return folder


@pytest.mark.parametrize("words", VIEWS)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_texts_are_shown_and_never_obeyed(
    hostile: Path, words: list[str], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(hostile, *words, width=width) + capsys.readouterr().out
    for sign in "\x07\r\x1b\u202e\u200b\x9b\u2028\t":
        assert sign not in text
    if words in ([], ["--record", "1"]) and width == 200:
        assert "[red]x[/red] [/] :smile: \\u{1b}[2J\\u{7}" in text
    if "--follow" not in words:
        assert max(map(cell_len, text.splitlines())) <= width
    if words == ["--figures"]:  # a long name wraps, and no part of it is lost
        assert text.count("long") >= 40


@pytest.mark.parametrize("words", VIEWS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_without_utf8(
    hostile: Path, run: Path, words: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (hostile, run):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        text = shown(folder, *words, width=100, encoding=encoding)
        out.flush()
        text += out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert "\x1b" not in text
        assert text
        if folder == run and words == ["--figures"]:
            assert "->" in text
            assert re.search(r"^reward +\S+ +\[.*\]  [.:=+*#@-]+ ", text, re.MULTILINE)


def test_json_in_a_terminal_of_another_encoding(hostile: Path) -> None:
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "srl", "inspect", str(hostile), "--json"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.getcwd()},
        )
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.decode(encoding).split("\n")[:-1]]
        assert [row["line"] for row in rows] == [1, 2, 3, 4]
        assert rows[0]["action"] == HOSTILE


def test_every_control_character_is_spelt_out() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF, 0xD800]:
        assert visible(chr(code)).isprintable(), hex(code)
        assert visible(chr(code), "ascii").isascii(), hex(code)
    assert visible("π ≤ é 漢 \\ {x}") == "π ≤ é 漢 \\ {x}"
    assert visible("π é 漢", "latin-1") == "\\u{3c0} é \\u{6f22}"
    assert visible("é\n\t", "ascii") == "\\u{e9}\\u{a}\\u{9}"
    assert visible("é", "no such encoding") == "\\u{e9}"


def test_long_texts_hang_nothing(tmp_path: Path) -> None:
    long = "word\x1b " * 200_000
    record = replace(RECORD, action=long, expert_step=long[:-9], thought=long, previous_step=long)
    write_log(tmp_path, [record, replace(record, rollout=1)])
    began = time.process_time()
    for words in VIEWS[:-1]:
        text = shown(tmp_path, *words, width=80)
        if words[:1] == ["--record"]:
            assert "1,100,000 more characters; --json has them all" in text
    assert time.process_time() - began < 20


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_fits_the_terminal(run: Path, tmp_path: Path, width: int) -> None:
    write_log(tmp_path, [replace(RECORD, action="word " * 200, expert_step="other " * 200)])
    text = shown(tmp_path, width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" in text
    for number in ("00ff00ff", "2/4 0/0", "0.750", "+0.250", "+1.000"):
        assert number in text, number
    for words in ([], ["--by", "step_index"], ["--by", "problem"], ["--record", "7"]):
        text = shown(run, *words, width=width)
        assert max(map(cell_len, text.splitlines())) <= width
    text = shown(run, "--figures", width=width)
    assert "…" not in text.split("most improved")[0]
    opening, _, tables = text.partition("\n\n")
    assert len(opening.splitlines()) <= 8
    assert len(tables.splitlines()) <= 64


# ---- what cannot be shown -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--limit 0", "--limit 0: at least 1"),
        ("--by phase --record 3", "--by and --record exclude each other"),
        ("--follow --figures", "--figures and --follow exclude each other"),
        ("--figures --limit 3", "--figures has no use for --limit"),
        ("--record 1 --sort reward", "--record has no use for --sort"),
        ("--record 1 --kept true", r"a filter \(--kept true --phase train\) has no use"),
        ("--record 0", "--record 0: .* holds records 1 to 390"),
        ("--record 391", "--record 391: .* holds records 1 to 390"),
        ("--sort nix", "--sort nix: allowed are train_step"),
        ("--reward nix:lt:1", "no record has a reward 'nix'; the log has: similarity, equation"),
        (
            "--step 99 --kept true",
            "no record in .* matches --train-step 99 --kept true --phase train; it holds training "
            "steps 1 to 15: 360 of phase train, 30 of phase eval",
        ),
    ],
)
def test_options_that_cannot_be_meant(
    run: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run), *words.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("srl: ")
    assert re.search(message, said.err)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: this run has recorded no rollouts yet"),
        (b'{"schema": 1', "holds no whole record yet"),
        (b"a,b,c\n1,2,3\n", "line 1: not JSON"),
        (gzip.compress(b"x" * 99, mtime=0) + b"\n", "line 1: not JSON"),
        (b'{"schema": 7}\n', "line 1: schema 7; this version of srl reads schemas 1 and 2"),
        (b"\0" * 50 + b"\n", "line 1: not JSON"),
        (b'{"\x1b[31m": 1}\n', "line 1"),
    ],
)
def test_files_that_are_no_step_logs(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steps.jsonl").write_bytes(content)
    for words in ([], ["--json"], ["--by", "phase"], ["--record", "1"]):
        assert main(["inspect", str(tmp_path), *words]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert message in said.err.replace("\n", " ")
        assert "\x1b" not in said.err


def test_paths_that_hold_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.csv").write_text("a,b\n")
    (tmp_path / "dir" / "steps.jsonl").mkdir(parents=True)
    for path, message in (
        (tmp_path / "x.csv", "is no run folder: name a folder with a steps.jsonl in it"),
        (tmp_path / "dir", "is not a run folder"),
        (tmp_path / "gone", "no such folder"),
    ):
        assert main(["inspect", str(path)]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_log_that_is_cut_in_the_middle_and_one_that_is_being_written(
    run: Path, tmp_path: Path
) -> None:
    lines = (run / "steps.jsonl").read_bytes().splitlines(keepends=True)
    log = tmp_path / "steps.jsonl"
    log.write_bytes(b"".join(lines[:9]) + lines[9][:70])
    text = shown(log)  # a log by itself
    assert "the last 70 bytes of the log are no whole record" in " ".join(text.split())
    log.write_bytes(b"".join(lines[:9]) + lines[9][:70] + b"\n" + lines[10])
    with pytest.raises(UsageError, match=r"steps.jsonl, line 10: not JSON"):
        shown(tmp_path)


def test_a_reader_that_has_enough(run: Path) -> None:
    for words in (["--json"], [], ["--by", "problem"], ["--record", "1"], ["--follow", "--json"]):
        with subprocess.Popen(
            [sys.executable, "-m", "srl", "inspect", str(run), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()  # before the first line
            assert process.stderr.read() == b""
            assert process.wait(20) == 0, words


def test_it_starts_without_torch() -> None:
    code = (
        "import sys; from srl.commands.cli import main; main(['inspect', '/no/run']);"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_reading_a_long_log_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that reads one, once, and only where it takes a while."""
    monkeypatch.setattr(index, "PART_RECORDS", 32)
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(reading.time, "monotonic", lambda: float(next(clock)))
    for words in (["inspect", "--figures"], ["report"]):
        folder = tmp_path / words[0]
        folder.mkdir()
        (folder / "steps.jsonl").write_bytes((run / "steps.jsonl").read_bytes())
        for said in ("srl: reading 0 MB of records; an index of them is kept\n", ""):
            assert main([words[0], str(folder), *words[1:]]) == 0
            assert capsys.readouterr().err == said
