"""Loaders: real counts, what is dropped and why, and a clear message for each kind of bad data."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from environments import ENVIRONMENTS, DataError, LoadReport, load_trajectories
from environments.types import Trajectory

DATA = Path(__file__).parents[2] / "shared" / "data"


def real(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data {name} is not at hand")
    return str(path)


def jsonl(folder: Path, rows: Sequence[object], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


GOOD = {"problem": "What is 1 + 2 + 3?", "steps": ["1 + 2 = 3", "3 + 3 = 6"], "answer": "6"}


# ---------------------------------------------------------------- real data


def test_gsm8k_counts() -> None:
    report = LoadReport()
    found = load_trajectories("gsm8k", real("gsm8k_train.jsonl"), report=report)
    assert (report.rows, report.kept, report.dropped.total()) == (7473, 7473, 0)
    assert len(found) == 7473
    assert sum(len(one.steps) for one in found) == 26720
    assert found[0].texts == (
        "Natalia sold 48/2 = 24 clips in May.",
        "Natalia sold 48+24 = 72 clips altogether in April and May.",
    )
    assert found[0].answer == "72"
    assert not any(re.search("<<|>>|####", step) for one in found for step in one.texts)
    assert all(one.answer and "," not in one.answer for one in found)
    assert len({one.problem_id for one in found}) == 7473


def test_competition_math_counts() -> None:
    report = LoadReport()
    found = load_trajectories("competition_math", real("math_train.jsonl"), report=report)
    assert report.rows == 4500
    assert report.dropped == Counter({"only one step": 521})
    assert len(found) == report.kept == 3979
    assert sum(len(one.steps) for one in found) == 19453
    assert all(one.answer for one in found)
    assert not any("[asy]" in step for one in found for step in one.texts)
    assert min(len(step) for one in found for step in one.texts) >= 12
    assert all(set(one.metadata) >= {"level", "type"} for one in found)


def test_competition_math_drawings() -> None:
    path = real("math_train.jsonl")
    report = LoadReport()
    load_trajectories("competition_math", path, report=report, drawings="drop")
    assert report.dropped["has a drawing"] == 702
    kept = load_trajectories("competition_math", path, drawings="keep", limit=600)
    assert any("[asy]" in step for one in kept for step in one.texts)
    assert all(step.count("[asy]") == step.count("[/asy]") for one in kept for step in one.texts)


def test_s1k_counts() -> None:
    report = LoadReport()
    found = load_trajectories("s1k", real("s1k_trajectories.jsonl"), report=report)
    assert (report.rows, report.kept) == (30, 30)
    assert sum(len(one.steps) for one in found) == 256


def test_several_solutions_of_a_problem_are_kept_and_equal_ones_dropped() -> None:
    report = LoadReport()
    found = load_trajectories(
        "files", real("svamp_teachers.jsonl"), report=report, splitter="sentences"
    )
    assert report.rows == 4200
    assert report.kept + report.dropped.total() == 4200
    assert set(report.dropped) == {"only one step", "duplicate row"}
    assert {one.metadata["teacher"] for one in found} == {"chatgpt", "gemini", "llama"}
    assert found[0].source == "svamp_teachers"
    assert len({(one.problem, one.steps) for one in found}) == len(found)
    assert len({one.problem_id for one in found}) <= 700


# ---------------------------------------------------------------- each loader in small


def test_gsm8k_answer_line(tmp_path: Path) -> None:
    rows = [
        {"question": "q1", "answer": "a = <<1+1=2>>2\nb = 3\n#### 1,234"},
        {"question": "q2", "answer": "a\nb"},
        {"question": "q3", "answer": "a\nb\n####  "},
        {"question": "q4", "answer": "a\n#### 1"},
        {"question": "q5", "answer": "a\nb\n#### -5"},
    ]
    report = LoadReport()
    found = load_trajectories("gsm8k", jsonl(tmp_path, rows), report=report, max_dropped_share=1.0)
    assert [(one.texts, one.answer) for one in found] == [
        (("a = 2", "b = 3"), "1234"),
        (("a", "b"), "-5"),
    ]
    assert report.dropped == {"no #### answer": 2, "only one step": 1}


def test_gsm8k_answer_as_a_last_step(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a = <<1+1=2>>2\nb = 3\n#### 1,234"}]
    found = load_trajectories("gsm8k", jsonl(tmp_path, rows), answer_step=True)
    assert found[0].texts == ("a = 2", "b = 3", "The answer is 1234.")


def test_competition_math_takes_drawings_out_and_says_so(tmp_path: Path) -> None:
    drawing = "[asy]\ndraw((0,0)--(1,1)); // A. B\n[/asy]"
    rows = [
        {
            "problem": f"Look. {drawing}",
            "solution": f"First we see this.\n{drawing}\nThus $x = \\boxed{{3}}.$",
            "level": "Level 1",
            "type": "Geometry",
        }
    ]
    (one,) = load_trajectories("competition_math", jsonl(tmp_path, rows))
    assert one.texts == ("First we see this.", "Thus $x = \\boxed{3}.$")
    assert one.answer == "3"
    assert drawing in one.problem
    assert one.metadata == {
        "level": "Level 1",
        "type": "Geometry",
        "notes": ("drawing kept in the problem", "drawing taken out of the solution"),
    }


def test_s1k_reads_the_hub_shape_and_counts_other_formats(tmp_path: Path) -> None:
    numbered = "Intro.\n\n1. **A** so\n2. **B** thus $\\boxed{4}$"
    rows = [
        {"question": "q1", "deepseek_attempt": numbered, "solution": "4"},
        {"question": "q2", "deepseek_attempt": "Prose only."},
        {"question": "q3", "deepseek_attempt": "1. plain\n2. numbers"},
        {"question": "q4", "deepseek_attempt": "### Step 1\nx\n### Step 2\ny"},
        {"question": "q5", "deepseek_attempt": None},
    ]
    path = jsonl(tmp_path, rows)
    report = LoadReport()
    found = load_trajectories("s1k", path, report=report)
    assert [one.texts for one in found] == [("Intro.\n\n1. **A** so", "2. **B** thus $\\boxed{4}$")]
    assert (found[0].problem, found[0].answer, found[0].source) == ("q1", "4", "s1k")
    assert report.dropped == {"not in the numbered format": 3, "no solution": 1}
    assert len(load_trajectories("s1k", path, titles=False)) == 2


def test_files_takes_steps_before_the_solution_and_keeps_metadata(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "solution": "x\ny\nz", "teacher": "t", "level": 3, "tags": ["a"]},
        {"problem": "p", "solution": "a.\nb.", "steps": None, "answer": 7},
        {"problem": "q", "solution": "a.\nb.", "answer": None},
    ]
    found = load_trajectories("files", jsonl(tmp_path, rows, "my data.jsonl"))
    assert found[0].texts == ("1 + 2 = 3", "3 + 3 = 6")
    assert found[0].metadata == {"teacher": "t", "level": 3}
    assert [one.answer for one in found] == ["6", "7", None]
    assert {one.source for one in found} == {"my data"}


def test_files_columns_and_splitter(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"q": "p", "s": "One. Two.\nThree.", "a": "3"}])
    columns = {"problem_column": "q", "solution_column": "s", "answer_column": "a"}
    (lines,) = load_trajectories("files", path, splitter="lines", label="mine", **columns)
    assert (lines.texts, lines.answer, lines.source) == (("One. Two.", "Three."), "3", "mine")
    (sentences,) = load_trajectories("files", path, splitter="sentences", **columns)
    assert sentences.texts == ("One.", "Two.", "Three.")
    (merged,) = load_trajectories("files", path, splitter="sentences", min_chars=5, **columns)
    assert merged.texts == ("One. Two.", "Three.")


def test_files_take_a_thought_for_each_step(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "thoughts": [" So, 3.\n", ""]},
        {"problem": "p", "solution": "a.\nb.", "thoughts": ["x", "y"]},
        {"problem": "q", "solution": "a.\nb.", "thoughts": None},
        {"problem": "r", "solution": "a.\nb.", "thoughts": ["x"]},
        {"problem": "s", "solution": "a.\nb.", "thoughts": "x y"},
        {"problem": "t", "solution": "a.\nb.", "thoughts": ["x", 3]},
        {"problem": "u", "solution": "a.\nb.", "thoughts": []},
        {"problem": "p", "solution": "a.\nb.", "thoughts": ["x", "other"]},  # is no duplicate
    ]
    path = jsonl(tmp_path, rows, "mine.jsonl")
    report = LoadReport()
    found = load_trajectories(
        "files", path, report=report, max_dropped_share=1.0, thoughts_column="thoughts"
    )
    assert [tuple(step.thought for step in one.steps) for one in found] == [
        *((" So, 3.\n", ""), ("x", "y"), ("", ""), ("", ""), ("x", "other")),
    ]
    # Unless asked for they are a column like any other, and take no row away.
    bare = load_trajectories("files", path)
    assert [one.problem for one in bare] == [GOOD["problem"], *"pqrstu"]
    assert not any(step.thought for one in bare for step in one.steps)
    assert bare[4].metadata == {"thoughts": "x y"}
    assert report.dropped == {
        "not as many thoughts as steps": 1,
        "thoughts is not a list of texts": 2,
    }
    with pytest.raises(DataError, match="column 'why' is missing from every row"):
        load_trajectories("files", path, thoughts_column="why")


def test_files_take_observations_and_tags(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "saw": ["a", ""], "kind": {"length": "long"}},
        {"problem": "q", "steps": ["a", "b"]},
        {"problem": "r", "steps": ["a", "b"], "kind": ["long"]},
    ]
    path = jsonl(tmp_path, rows, "mine.jsonl")
    report = LoadReport()
    first, second = load_trajectories(
        "files", path, observations_column="saw", tags_column="kind", report=report
    )
    assert report.dropped == {"kind is not an object of texts": 1}
    assert [step.observation for step in first.steps] == ["a", ""]
    assert (first.tags, first.metadata) == ({"length": "long"}, {})
    assert (second, second.texts) == (Trajectory("q", ("a", "b"), source="mine"), ("a", "b"))


def test_json_and_parquet_give_what_jsonl_gives(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [GOOD, {"problem": "p", "steps": ["a", "b", "c"], "answer": None}]
    expected = load_trajectories("files", jsonl(tmp_path, rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert load_trajectories("files", str(tmp_path / "rows.json")) == expected
    assert load_trajectories("files", str(tmp_path / "rows.parquet")) == expected


def test_an_answer_step_is_added_where_the_end_states_none(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "solution": "2 + 2 = 4\n4 + 1 = 5", "answer": 5},
        {"problem": "b", "solution": "2 + 2 = 4\nThe answer is 4.", "answer": "4"},
        {"problem": "c", "solution": "2 + 2 = 4\nSo $\\boxed{4}$", "answer": "4"},
        {"problem": "d", "solution": "One line.\nAnother."},
    ]
    path = jsonl(tmp_path, rows)
    ends = [one.texts[-1] for one in load_trajectories("files", path, answer_step=True)]
    assert ends == ["The answer is 5.", "The answer is 4.", "So $\\boxed{4}$", "Another."]
    assert [len(one.steps) for one in load_trajectories("files", path)] == [2] * 4


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + json.dumps(GOOD) + "\n\n", encoding="utf-8")
    assert len(load_trajectories("files", str(path))) == 1


def test_limit_counts_trajectories(tmp_path: Path) -> None:
    rows = [{"problem": "p0", "steps": ["a"]}] + [{**GOOD, "problem": f"p{i}"} for i in range(9)]
    report = LoadReport()
    found = load_trajectories("files", jsonl(tmp_path, rows), report=report, limit=3)
    assert [one.problem for one in found] == ["p0", "p1", "p2"]
    assert (report.rows, report.kept) == (4, 3)


def test_word_problems_need_no_file() -> None:
    assert len(load_trajectories("word_problems", limit=5)) == 5


# ---------------------------------------------------------------- rows that cannot be used


def test_every_unusable_row_is_dropped_and_counted_by_reason(tmp_path: Path) -> None:
    bad = [
        {"steps": ["a", "b"]},
        {"problem": None, "steps": ["a", "b"]},
        {"problem": "  ", "steps": ["a", "b"]},
        {"problem": 5, "steps": ["a", "b"]},
        {"problem": "p"},
        {"problem": "p", "solution": None},
        {"problem": "p", "solution": " \n"},
        {"problem": "p", "solution": ["a"]},
        {"problem": "p", "steps": []},
        {"problem": "p", "steps": {"a": "b"}},
        {"problem": "p", "steps": ["a", None]},
        {"problem": "p", "steps": ["a", " "]},
        {"problem": "p", "steps": ["a"]},
        {**GOOD, "answer": ["6"]},
        {**GOOD, "steps": ["a", "half a \ud800 sign"]},
        {**GOOD, "problem": "half a \udc00 sign"},
        *({**GOOD, "steps": ["a", unseen]} for unseen in ("\u200b", "---", "***\n***")),
        {**GOOD, "steps": ["a"] * 1001},
        GOOD,
    ]
    report = LoadReport(rows=100, kept=90, dropped=Counter({"no problem": 10}))
    found = load_trajectories(
        "files", jsonl(tmp_path, [GOOD, *bad]), report=report, max_dropped_share=1.0
    )
    assert len(found) == 1
    assert report.rows == 122  # an earlier source's counts are added to
    assert report.kept == 91
    assert report.dropped == {
        "no problem": 13,
        "problem is not text": 1,
        "no steps": 2,
        "no solution": 2,
        "solution is not text": 1,
        "steps is not a list": 1,
        "a step is not text": 1,
        "empty step": 1,
        "text that is not Unicode (a lone surrogate)": 2,
        "a step that shows nothing": 3,
        "more than 1,000 steps": 1,
        "only one step": 1,
        "answer is not text": 1,
        "duplicate row": 1,
    }


def test_too_many_drops_are_an_error_that_lists_the_reasons(tmp_path: Path) -> None:
    rows = [GOOD, {"problem": "p", "steps": ["a"]}, {"problem": "q"}]
    path = jsonl(tmp_path, rows)
    report = LoadReport()
    with pytest.raises(
        DataError,
        match=r"2 of 3 rows were dropped \(only one step: 1, no steps: 1\).*max_dropped_share",
    ):
        load_trajectories("files", path, report=report)
    assert report.rows == 3  # the report is filled all the same
    assert len(load_trajectories("files", path, max_dropped_share=0.7)) == 1


def test_a_source_without_one_usable_row_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [{"problem": "p", "steps": ["a"]}])
    with pytest.raises(DataError, match=r"none of 1 rows can be used \(only one step: 1\)"):
        load_trajectories("files", path, max_dropped_share=1.0)
    other = jsonl(tmp_path, [{"question": "q", "deepseek_attempt": "Prose."}])
    with pytest.raises(DataError, match="not in the numbered format: 1"):
        load_trajectories("s1k", other)


# ---------------------------------------------------------------- files that cannot be read


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "x.jsonl", "holds no rows"),
        ("\n \n", "x.jsonl", "holds no rows"),
        ("[]", "x.json", "holds no rows"),
        ('{"problem": "p"}\n\n{"problem": \n', "x.jsonl", r"x\.jsonl, line 3: malformed JSON"),
        ('{"problem": "p"} trailing', "x.jsonl", "line 1: malformed JSON"),
        ("[" * 100_000, "x.jsonl", "line 1: malformed JSON"),
        ('{"a": 1}\n[1]\n', "x.jsonl", "line 2: expected a JSON object, found list"),
        ('{"a": 1}\n{"a": 1}', "x.json", r"malformed JSON .* name it \.jsonl"),
        ('{"a": 1}', "x.json", "expected a list of objects, found dict"),
        ("[1]", "x.json", "row 1: expected an object, found int"),
        ("not parquet", "x.parquet", "cannot be read as Parquet"),
        ("problem,solution", "x.txt", r"files of kind \.txt are not read"),
        ("problem,solution", "x.csv", r"x\.csv holds no rows"),
        ("problem,solution\na,b\nc,d,e", "x.csv", r"line 3: more values .*\(problem, solution\)"),
        ('problem,solution\na,"b', "x.csv", r"x\.csv, after line 2: malformed table"),
        ("x", "x", r"files of kind \(none\) are not read"),
        ('{"q": "q", "steps": ["a", "b"]}', "x.jsonl", "column 'problem' is missing"),
        ('{"problem": "q", "text": "a"}', "x.jsonl", "'solution' or 'steps' is missing"),
    ],
)
def test_a_bad_file(tmp_path: Path, content: str, name: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_trajectories("files", str(path))


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("gsm8k", "'question'.*the columns are 'x', 'y'"),
        ("competition_math", "'problem'"),
        ("s1k", "'problem' or 'question'"),
    ],
)
def test_a_file_of_another_data_set(tmp_path: Path, source: str, columns: str) -> None:
    with pytest.raises(DataError, match=f"column {columns}"):
        load_trajectories(source, jsonl(tmp_path, [{"x": "a", "y": "b"}]))


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.json"):
        (tmp_path / name).write_bytes(b'{"problem": "caf\xe9"}\n')
        with pytest.raises(DataError, match="not UTF-8"):
            load_trajectories("files", str(tmp_path / name))


def test_a_folder_a_missing_file_and_a_name_that_is_neither(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, not a file"):
        load_trajectories("files", str(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        load_trajectories("files", str(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        load_trajectories("files", "data/absent.parquet")
    (tmp_path / "exercises.jsonl").touch()
    with pytest.raises(DataError, match=r"no such file .*Did you mean .*/exercises\.jsonl\?"):
        load_trajectories("files", str(tmp_path / "exercise.jsonl"))
    for name in ("gsm", "a/b/c", "owner/", "/nowhere/at/all", "what is this?"):
        with pytest.raises(DataError, match="neither an existing file nor a hub name"):
            load_trajectories("files", name)
    with pytest.raises(DataError, match="needs a path"):
        load_trajectories("files")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
def test_a_file_without_read_permission(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_text("", encoding="utf-8")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not by chmod: the tests may run as a user whom no permission stops.
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "ParquetFile", refuse)
    with pytest.raises(DataError, match=r"cannot be read.*Permission denied"):
        load_trajectories("files", str(path))


# ---------------------------------------------------------------- the hub


def test_a_hub_name_is_loaded_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, str]]:
        calls.append((name, config, split))
        return [{"question": "q", "answer": "a\nb\n#### 2"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_trajectories("gsm8k")[0].answer == "2"
    assert load_trajectories("gsm8k", "someone/copy", split="test", config="x")[0].answer == "2"
    assert calls == [("openai/gsm8k", "main", "train"), ("someone/copy", "x", "test")]


@pytest.mark.parametrize("source", ["gsm8k", "competition_math", "s1k"])
def test_an_unreachable_hub_says_to_give_a_local_path(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"no route to host.*give a local file.*--data.path FILE"):
        load_trajectories(source)


# ---------------------------------------------------------------- wrong use of load_trajectories


def test_wrong_use(tmp_path: Path) -> None:
    path = jsonl(tmp_path, [GOOD])
    with pytest.raises(DataError, match=r"unknown source 'gsm8'.*Did you mean 'gsm8k'\?"):
        load_trajectories("gsm8", path)
    with pytest.raises(DataError, match=f"there are {', '.join(ENVIRONMENTS)}"):
        load_trajectories("zzz", path)
    with pytest.raises(
        DataError, match=r"source 'files' has no option 'spliter'; it has .*splitter"
    ):
        load_trajectories("files", path, spliter="lines")
    with pytest.raises(DataError, match=r"splitter is 'words'; it can be numbered, lines"):
        load_trajectories("files", path, splitter="words")
    with pytest.raises(DataError, match=r"'min_chars' is 'ten'; allowed: int"):
        load_trajectories("files", path, min_chars="ten")
    with pytest.raises(DataError, match=r"'drawings' is 'burn'; allowed: 'strip', 'keep', 'drop'"):
        load_trajectories("competition_math", path, drawings="burn")
    with pytest.raises(DataError, match="limit is 0; it must be 1 or more"):
        load_trajectories("files", path, limit=0)
    with pytest.raises(DataError, match="max_dropped_share is 5; it must lie between 0 and 1"):
        load_trajectories("files", path, max_dropped_share=5)
