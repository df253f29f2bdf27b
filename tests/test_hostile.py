r"""Hostile text through every built-in reward: no exception, no hang, no code, no growing memory.

The texts stand in `tests/hostile.py`. What they are scored by is the real thing: a `RewardSum` with
worker processes. To run the test of endurance over more texts than usual, give their number:
``HOSTILE_TEXTS=100000 pytest tests/test_hostile.py -k endurance`` (a quarter of an hour).
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest
from hostile import HOSTILE, mutations
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import BUILT_INS, RewardSum, StepContext, StepScore
from rewards.loading import RewardSpec, load_reward
from rewards.pool import RewardPool

# What each built-in documents. A new one must be added here, and is then tested like the others.
RANGES = {
    "similarity": (0.0, 1.0),
    "indel": (0.0, 1.0),
    "progress": (-1.0, 1.0),
    "novelty": (0.0, 1.0),
    "equation": (0.0, 1.0),
    "answer": (0.0, 1.0),
    "format": (0.0, 1.0),
    "length": (0.0, 1.0),
}
ALWAYS_A_NUMBER = {"similarity", "indel", "format", "length"}

GOLD = "48151623"
"""No hostile text states it, so `answer` owes 0.0 to every one of them."""
DEADLINE = 5.0
TEXTS = int(os.environ.get("HOSTILE_TEXTS", 600))
GROWTH = 32 * 2**20
"""Bytes that a worker may grow by between the first fifth of the texts and the last."""
ROOT = Path(__file__).parents[1]


def step(action: str = "So 3 + 4 = 7.", **changes: object) -> StepContext:
    fields: dict[str, object] = {
        "problem": "3 + 4?", "previous_steps": ("First 1 + 1 = 2.",), "action": action,
        "thought": "hm", "expert_step": "3 + 4 = 7, so the answer is 7.", "step_index": 1,
        "num_steps": 2, "answer": GOLD,
    }  # fmt: skip
    return StepContext(**{**fields, **changes})  # type: ignore[arg-type]


def wrong(name: str, value: float | None) -> bool:
    """Whether a reward may not say this."""
    if value is None:
        return name in ALWAYS_A_NUMBER
    low, high = RANGES[name]
    return not (isinstance(value, float) and math.isfinite(value) and low <= value <= high)


def complaints(scores: Sequence[StepScore], texts: Sequence[str]) -> list[tuple[object, ...]]:
    """Every failure and every value that may not be, with the beginning of its text."""
    found: list[tuple[object, ...]] = []
    for score, text in zip(scores, texts, strict=True):
        place = ascii(text[:60])
        found += [(name, failure[:200], place) for name, failure in score.failures.items()]
        found += [(n, value, place) for n, value in score.rewards.items() if wrong(n, value)]
        found += [("sum", score.reward, place)] * (not math.isfinite(score.reward))
        found += [("lift", score.lift, place)] * wrong("progress", score.lift)
        if score.rewards.get("answer"):
            found.append(("answer", score.rewards["answer"], place))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty current folder, for the workers too."""
    empty = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(empty)
        yield empty


@pytest.fixture(scope="module")
def everything(folder: Path) -> Iterator[RewardSum]:
    total = RewardSum(dict.fromkeys(BUILT_INS, 1.0), deadline=DEADLINE, workers=1)
    yield total
    total.close()


@pytest.fixture(scope="module")
def answer_alone(folder: Path) -> Iterator[RewardSum]:
    total = RewardSum({"answer": 1.0}, deadline=DEADLINE, workers=1)
    yield total
    total.close()


# ---- the list ------------------------------------------------------------------------


def test_the_list_is_long_and_without_repetitions() -> None:
    texts = [text for kind in HOSTILE.values() for text in kind]
    assert len(set(texts)) == len(texts) >= 600
    assert max(map(len, texts)) >= 1_000_000
    assert set(RANGES) == set(BUILT_INS)


@pytest.mark.parametrize("kind", HOSTILE)
def test_every_reward_answers(kind: str, everything: RewardSum, folder: Path) -> None:
    """As the action; as thought and step before; and as the expert's step: never a deadline."""
    texts = HOSTILE[kind]
    for placed in (
        [step(text) for text in texts],
        [step(thought=text, previous_steps=("a", text)) for text in texts],
        [step(expert_step=text) for text in texts],
    ):
        assert complaints(everything.score(placed), texts) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_stated_answer_is_right(kind: str, answer_alone: RewardSum, folder: Path) -> None:
    for form in ("So \\boxed{{{}}}", "The answer is {}"):
        # No step before it: then nothing but `answer` has anything to compute.
        placed = [step(form.format(text), previous_steps=()) for text in HOSTILE[kind]]
        assert complaints(answer_alone.score(placed), HOSTILE[kind]) == []
    assert list(folder.iterdir()) == []


def test_looping_text_on_both_sides(everything: RewardSum) -> None:
    texts = HOSTILE["loops"][:8:2]
    placed = [
        step(text, expert_step=other, previous_steps=(text[::-1],))
        for text, other in zip(texts, HOSTILE["loops"][1:9:2], strict=True)
    ]
    assert complaints(everything.score(placed), texts) == []


def test_a_megabyte_on_both_sides(everything: RewardSum) -> None:
    text = "the answer is " * 70_000
    placed = step(text, expert_step=text[::-1], previous_steps=(text[7:],), thought=text)
    assert complaints(everything.score([placed]), [text]) == []


@pytest.mark.parametrize("count", [1_000, 3_000, 10_000])
def test_letters_that_occur_once(count: int, everything: RewardSum) -> None:
    """Every other letter is common to both sides: as many matches as can be, of one letter each."""
    sides = ["".join(chr(0x4E00 + n) + chr(at + n) for n in range(count)) for at in (2**17, 2**18)]
    placed = step(sides[0], expert_step=sides[1], previous_steps=(sides[1],))
    assert complaints(everything.score([placed]), sides[:1]) == []


# ---- nothing is run ------------------------------------------------------------------

# Runs in a process of its own, since an audit hook stays for good. Only what is compiled tells
# what is run: code from a text is compiled first, and what is unmarshalled is an event too.
AUDIT = r"""
import json, re, sys
from hostile import HOSTILE
from rewards import BUILT_INS, StepContext
from rewards.loading import RewardSpec, load_reward

functions = [load_reward(RewardSpec(name, name)).function for name in BUILT_INS]
golds = ("48151623", "x^2+x")


def ask(text, gold):
    step = StepContext("", (text[::-1],), text, text, "3 + 4 = 7", 0, 1, answer=gold)
    for function in functions:
        function(step)


events, compiled, watching = set(), set(), False


def hook(event, details):
    if not watching or event == "array.__new__":
        return
    if event == "compile" and isinstance(details[0], bytes) and details[1] == "<string>":
        compiled.add(details[0].decode())
    elif not (event == "exec" and details[0].co_filename == "<string>"):
        events.add(f"{event} {details}"[:300])


ask(r"\boxed{\frac{1}{2}x+\sqrt{3}\sin(x)}", "x+2")  # imports what is imported when needed
sys.addaudithook(hook)
watching = True
for kind in HOSTILE.values():
    for text in kind:
        if len(text) <= 1_000:
            ask(text, golds[0])
            ask(f"\\boxed{{{text}}}", golds[0])
            ask(f"The answer is {text}", golds[1])
found = sorted(events), sorted(compiled)
events.clear()
import sympy
sympy.sympify("open('pwned', 'w')")
watching = False
print(json.dumps([*found, sorted(events)]))
"""
# sympy makes a number by evaluating its digits, and writes itself functions of exponents, in which
# nothing but the number of variables differs.
NUMBER = re.compile(r"Integer \([0-9]+ \)")
EXPONENTS = re.compile(r"\s*def monomial_[a-z]+\((?:A, B|A, B, k|A, k)\):\n")
NAMES = re.compile(r"(?:def|return|if|elif|else|None|monomial_[a-z]+|[ABk]|[abr][0-9]+)")


def known(source: str) -> bool:
    if EXPONENTS.match(source):
        return all(NAMES.fullmatch(name) for name in re.findall(r"[^\W\d]\w*", source))
    return source == "from sympy import *" or NUMBER.fullmatch(source) is not None


def test_no_text_is_compiled_or_run_and_no_file_opened(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    ran = subprocess.run(
        [sys.executable, "-c", AUDIT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    events, compiled, seen = json.loads(ran.stdout)
    assert events == []
    assert [source for source in compiled if not known(source)] == []
    assert any(map(NUMBER.fullmatch, compiled)), "numbers are no longer made this way"
    # What is guarded against is seen, and does what it says.
    assert any(event.startswith("open ('pwned', 'w'") for event in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["pwned"]


# ---- any text whatever ---------------------------------------------------------------

PIECES = [
    *"0123456789+-*/^_(){}[]|=<>.,;:!?%$&#~'\"`\\ \n\t\rxyzabeifIS", "\\frac", "\\sqrt", "\\text{",
    "\\boxed{", "\\left", "\\right", "\\begin{pmatrix}", "\\end{pmatrix}", "\\begin{align}", "\\pm",
    "\\cup", "\\infty", "\\cdot", "\\\\", "\\(", "\\]", "$$", "**", " = ", " of ", " times ",
    "1,000", "12.50", " apples ", "The answer is ", "#### ", "<think>", "</think>", "<|im_end|>",
    "__", "²", "½", "√", "π", "≤", "−", "９", "٣", "х", "\x00", "\x1b[", "\u200b", "\u202e",
    "\u0301", "\ud800", "\uffff", "👍",
]  # fmt: skip
texts = (
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
    | st.text(max_size=60)
    | st.text(
        st.characters(categories=["Cs", "Co", "Cc", "Cf", "Mn", "Nd", "No", "Zs"]), max_size=20
    )
    | st.sampled_from([text for kind in HOSTILE.values() for text in kind if len(text) < 500])
)
steps = st.builds(
    StepContext,
    problem=texts,
    previous_steps=st.lists(texts, max_size=2).map(tuple),
    action=texts,
    thought=texts,
    expert_step=texts,
    step_index=st.integers(0, 2),
    num_steps=st.integers(1, 3),
    # The problem's answer is data, not the policy's.
    answer=st.sampled_from([None, "", "7", "x^2+x", "(1,2)", r"\frac{1}{2}", r"\text{yes}", "1,2"]),
)
OPTIONS: dict[str, st.SearchStrategy[dict[str, object]]] = {
    "similarity": st.fixed_dictionaries(
        {},
        optional={
            "unit": st.sampled_from(["character", "word", "token"]),
            "autojunk": st.booleans(),
        },
    ),
    "length": st.fixed_dictionaries(
        {}, optional={"low": st.floats(1e-300, 1.0), "high": st.floats(1.0, 1e300)}
    ),
}
OPTIONS["progress"] = OPTIONS["similarity"]


@pytest.mark.parametrize("name", BUILT_INS)
def test_any_text_has_a_value(name: str) -> None:
    function = load_reward(RewardSpec(name, name)).function

    @settings(max_examples=200)
    @given(steps, OPTIONS.get(name, st.just({})))
    def has_a_value(context: StepContext, options: dict[str, object]) -> None:
        value = function(context, **options)  # type: ignore[arg-type, call-arg]
        assert not wrong(name, value)  # type: ignore[arg-type]

    has_a_value()


# ---- what takes too long, or too much ------------------------------------------------

MINE = """
import re
import signal


def loops(step):
    while True:
        pass


def backtracks(step):
    return float(bool(re.match("(a+)+$", "a" * 60 + "!")))


def deaf(step):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    while True:
        pass


def at_once(step):
    return float(len(b"x" * (10 * 10**9)))


def bit_by_bit(step):
    kept = []
    while True:
        kept.append(b"x" * 10**7)


def harmless(step):
    return 1.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return "mine.py:"


@pytest.mark.parametrize("name", ["loops", "backtracks", "deaf"])
def test_what_hangs_is_ended_and_leaves_the_others_alone(mine: str, name: str) -> None:
    rewards = {mine + name: 1.0, mine + "harmless": 1.0, "length": 1.0, "answer": 1.0}
    total = RewardSum(rewards, deadline=3, workers=1)
    score = total.score([step(f"3 + 4 = 7, the answer is {GOLD}.")])[0]
    total.close()
    assert score.rewards == {name: None, "harmless": 1.0, "length": 1.0, "answer": 1.0}
    assert score.failures == {name: "deadline"}
    assert score.reward == 3.0


def test_an_answer_that_could_not_be_checked_in_time_is_wrong() -> None:
    # Over a second, for a twentieth of one. It is right, which nobody will know.
    slow = step(
        r"So \boxed{(\sin(x)+\cos(x))^{12}}", answer=r"(1+2\sin(x)\cos(x))^6", previous_steps=()
    )
    total = RewardSum({"answer": 1.0}, deadline=0.05, workers=1)
    score = total.score([slow])[0]
    total.close()
    assert score.rewards == {"answer": 0.0}
    assert score.failures == {"answer": "deadline"}
    assert score.reward == 0.0


def test_arithmetic_that_could_not_be_checked_in_time_counts_nothing() -> None:
    slow = "\n".join(f"(x+y+z+w+{n})^60 = (x+y+z+{n})^60" for n in range(60))  # over a second
    total = RewardSum({"equation": 1.0}, deadline=0.05, workers=1)
    score = total.score([step(slow, previous_steps=())])[0]
    total.close()
    assert score.rewards == {"equation": None}
    assert score.failures == {"equation": "deadline"}


@pytest.mark.skipif(sys.platform != "linux", reason="address space is bounded on Linux only")
@pytest.mark.parametrize("name", ["at_once", "bit_by_bit"])
def test_a_bomb_fails_within_its_memory(mine: str, name: str) -> None:
    specs = [RewardSpec(name, mine + name), RewardSpec("harmless", mine + "harmless")]
    pool = RewardPool(specs, workers=1, deadline=10.0, memory_bytes=512 * 2**20)
    bombs, others = pool.submit([step(), step()]).result()
    pool.close()
    assert [outcome.value for outcome in bombs] == [None, None]
    assert all((outcome.failure or "").startswith("raised MemoryError") for outcome in bombs)
    assert [outcome.value for outcome in others] == [1.0, 1.0]


# ---- endurance -----------------------------------------------------------------------


@dataclass
class Watch:
    """What was seen of worker processes while they worked.

    Attributes:
        resident: bytes in memory of all of them together, after every batch.
        failures: (reward, failure, beginning of the text) of every call that failed.
    """

    resident: list[int] = field(default_factory=list)
    failures: list[tuple[object, ...]] = field(default_factory=list)


def resident(process: str) -> int:
    status = Path("/proc", process, "status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def workers() -> set[str]:
    """The worker processes that this process has."""
    children = Path("/proc/self/task").glob("*/children")
    return {child for found in children for child in found.read_text().split()}


def endure(count: int, *, seed: int = 0, batch: int = 50) -> Watch:
    """Score so many texts, no two equal, with every built-in, in one worker at a time."""
    before = workers()
    watch = Watch()
    total = RewardSum(dict.fromkeys(BUILT_INS, 1.0), deadline=DEADLINE, workers=1)
    source = mutations(seed)
    forms = ("{}", "So \\boxed{{{}}}.", "The answer is {}")
    last = "First we add."
    for _ in range(0, count, batch):
        some = list(islice(source, batch))
        placed = []
        for text in some:
            action = forms[len(placed) % 3].format(text)
            placed.append(step(action, thought=text, previous_steps=(last,)))
            last = text[:200]
        watch.failures += complaints(total.score(placed), some)
        watch.resident.append(sum(map(resident, workers() - before)))
    total.close()
    return watch


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="memory is read from /proc"
)


@needs_proc
def test_long_texts_are_not_kept(folder: Path) -> None:
    """Remembered comparisons of a megabyte each would be four times the growth that is allowed."""
    before = workers()
    total = RewardSum({"similarity": 1.0, "novelty": 1.0}, deadline=DEADLINE, workers=1)
    seen = []
    for start in range(0, 60, 10):
        total.score([step(f"{n} apples. " * 100_000) for n in range(start, start + 10)])
        seen.append(sum(map(resident, workers() - before)))
    total.close()
    assert max(seen) - seen[0] < GROWTH


@needs_proc
def test_endurance(folder: Path) -> None:
    watch = endure(TEXTS)
    assert watch.failures == []
    assert min(watch.resident) > 20 * 2**20, "that is no worker"
    early = max(watch.resident[: max(1, len(watch.resident) // 5)])
    assert max(watch.resident) - early < GROWTH
    assert list(folder.iterdir()) == []
