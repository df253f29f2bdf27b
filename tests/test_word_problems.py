"""The embedded problems, read back and solved by somebody who knows English and not the code.

`read` and `solve` below are written from what the sentences mean. They see a problem's text only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import permutations, product

import pytest

from environments import load_trajectories
from environments.paper_sums import work_out
from environments.types import DataError, LoadReport, Step, Trajectory
from environments.word_problems import (
    BINARY_TEMPLATES,
    GIVEN_TEMPLATES,
    OBJECTS,
    PEOPLE,
    UNARY_TEMPLATES,
    draw_problems,
    load,
    pool_of,
)

Value = Fraction

TIMES = {"twice": 2, "three times": 3, "four times": 4, "five times": 5}
PARTS = {"half": 2, "a third": 3, "a quarter": 4, "a fifth": 5}
_M, _F = "|".join(TIMES), "|".join(PARTS)


def number(word: str) -> Value:
    """How much a word or a numeral says."""
    return Value(TIMES.get(word) or PARTS.get(word) or int(word))


# A sentence -> what it says of S, in terms of R, Q (other people) and k (a number). Capitals are
# people; the small letter is what that person has.
S, R, Q = (f"(?P<{letter}>[A-Z][a-z]+)" for letter in "SRQ")
s, r, q = (f"(?P<{letter}>[a-z]+)" for letter in "srq")
K = r"(?P<k>\d+)"
SENTENCES: list[tuple[str, Callable[..., Value]]] = [
    (f"{S} has {K} {s}", lambda k: k),
    (f"{S} counted {K} {s}", lambda k: k),
    (f"{S} was given {K} {s}", lambda k: k),
    (f"{S} owns exactly {K} {s}", lambda k: k),
    (f"{S} has {K} more {s} than the {r} of {R}", lambda k, R: R + k),
    (f"{S} owns {K} {s} beyond the {r} of {R}", lambda k, R: R + k),
    (f"{S} got as many {s} as the {r} of {R} and {K} more", lambda k, R: R + k),
    (f"{S} beats by {K} {s} the {r} of {R}", lambda k, R: R + k),
    (f"{S} must lose {K} {s} to match the {r} of {R}", lambda k, R: R + k),
    (f"{S} has {K} fewer {s} than the {r} of {R}", lambda k, R: R - k),
    (f"{S} would need {K} more {s} to match the {r} of {R}", lambda k, R: R - k),
    (f"{S} got as many {s} as the {r} of {R} but {K} fewer", lambda k, R: R - k),
    (f"{S} is short by {K} {s} of the {r} of {R}", lambda k, R: R - k),
    (f"{S} trails by {K} {s} behind the {r} of {R}", lambda k, R: R - k),
    (f"{S} has (?P<k>{_M}) as many {s} as the {r} of {R}", lambda k, R: R * k),
    (f"{S} keeps {K} {s} for every one of the {r} of {R}", lambda k, R: R * k),
    (f"{S} got {K} {s} for each of the {r} of {R}", lambda k, R: R * k),
    (f"{S} counts in {s} (?P<k>{_M}) the {r} of {R}", lambda k, R: R * k),
    (f"{S} has (?P<k>{_F}) as many {s} as the {r} of {R}", lambda k, R: R / k),
    (f"{S} got in {s} (?P<k>{_F}) of the {r} of {R}", lambda k, R: R / k),
    (f"{S} owns {s}, one for every {K} of the {r} of {R}", lambda k, R: R / k),
    (f"{S} needs {K} times the {s} to match the {r} of {R}", lambda k, R: R / k),
    (f"{S} has as many {s} as the {r} of {R} and the {q} of {Q} together", lambda R, Q: R + Q),
    (f"{S} got the sum in {s} of the {r} of {R} and the {q} of {Q}", lambda R, Q: R + Q),
    (f"{S} equals in {s} the {r} of {R} plus the {q} of {Q}", lambda R, Q: R + Q),
    (f"{S} has as many {s} as the {r} of {R} without the {q} of {Q}", lambda R, Q: R - Q),
    (f"{S} got the difference in {s} of the {r} of {R} and the {q} of {Q}", lambda R, Q: R - Q),
    (f"{S} equals in {s} the {r} of {R} minus the {q} of {Q}", lambda R, Q: R - Q),
]
QUESTIONS = [
    f"How many {s} belong to {S}\\?",
    f"What is the number of the {s} of {S}\\?",
    f"Find the number of the {s} of {S}\\.",
]
STEP = re.compile(
    r"So (?P<who>[A-Z]\w+) has (?P<left>\d+)(?P<op>[-+*/])(?P<right>\d+)=(?P<result>\d+)"
    r" (?P<thing>[a-z]+)\."
)


class Problem:
    """A text, understood: who has what, how each number follows, and what is asked."""

    def __init__(self, text: str) -> None:
        self.things: dict[str, str] = {}
        self.rules: dict[str, tuple[Callable[..., Value], dict[str, Value], dict[str, str]]] = {}
        opening, *facts, question = re.split(r"(?<=[.?]) ", text)
        assert not re.search(r"\d", opening)
        asked = [m for form in QUESTIONS if (m := re.fullmatch(form, question))]
        assert len(asked) == 1, question
        self.target = self.note(asked[0], "S")
        for fact in facts:
            found = [
                (m, rule) for form, rule in SENTENCES if (m := re.fullmatch(form + r"\.", fact))
            ]
            assert len(found) == 1, f"understood {len(found)} times: {fact}"
            match, rule = found[0]
            person = self.note(match, "S")
            assert person not in self.rules, f"{person} is described twice"
            named = match.groupdict()
            people = {letter: self.note(match, letter) for letter in "RQ" if letter in named}
            numbers = {"k": number(named["k"])} if "k" in named else {}
            self.rules[person] = (rule, numbers, people)

    def note(self, match: re.Match[str], letter: str) -> str:
        """The person called `letter`, who must have the same kind of thing throughout."""
        person, thing = match[letter], match[letter.lower()]
        assert self.things.setdefault(person, thing) == thing
        return person

    def value(self, person: str) -> Value:
        rule, numbers, people = self.rules[person]
        return rule(**numbers, **{key: self.value(name) for key, name in people.items()})

    def is_given(self, person: str) -> bool:
        return not self.rules[person][2]

    def needed(self, person: str) -> set[str]:
        """Everyone whose number has to be worked out on the way."""
        if self.is_given(person):
            return set()
        return {person}.union(*map(self.needed, self.rules[person][2].values()))


def draw(count: int = 300, **options: object) -> list[Trajectory]:
    return load(limit=count, report=LoadReport(), **options)  # type: ignore[arg-type]


SETTINGS = [
    {"seed": 0},
    {"seed": 1, "min_operations": 1, "max_operations": 12, "max_distractors": 12, "max_value": 999},
    {"seed": 2, "min_operations": 1, "max_operations": 4, "max_distractors": 0, "max_value": 20},
    {"seed": 3, "pool": "base"},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_answers_follow_from_the_text(options: dict[str, object]) -> None:
    highest = options.get("max_value", 99)
    for trajectory in draw(**options):
        problem = Problem(trajectory.problem)
        assert str(problem.value(problem.target)) == trajectory.answer
        for person in problem.rules:
            value = problem.value(person)
            assert value.denominator == 1
            assert 1 <= value <= highest, f"{person} has {value}: {trajectory.problem}"


@pytest.mark.parametrize("options", SETTINGS)
def test_steps_are_true_and_all_that_is_needed(options: dict[str, object]) -> None:
    for trajectory in draw(**options):
        problem = Problem(trajectory.problem)
        known = {name: problem.value(name) for name in problem.rules if problem.is_given(name)}
        computed = []
        *steps, last = trajectory.texts
        assert last == f"The answer is {trajectory.answer}."
        for step in steps:
            match = STEP.fullmatch(step)
            assert match, step
            who = match["who"]
            assert problem.things[who] == match["thing"]
            operands = list(problem.rules[who][2].values())
            assert all(name in known for name in operands), f"not known yet: {step}"
            left, right, result = (int(match[key]) for key in ("left", "right", "result"))
            constants = [int(k) for k in problem.rules[who][1].values()]
            assert [left, right] == [known[name] for name in operands] + constants
            true = {"+": left + right, "-": left - right, "*": left * right}.get(match["op"])
            assert result == (Fraction(left, right) if true is None else true), step
            assert (result, match["thing"]) == (problem.value(who), problem.things[who])
            assert who not in known
            known[who] = Fraction(result)
            computed.append(who)
        assert computed[-1] == problem.target
        assert set(computed) == problem.needed(problem.target), "a distractor was computed"
        assert len(trajectory.texts) == len(computed) + 1
        assert trajectory.metadata == {
            "operations": len(computed),
            "quantities": len(problem.rules),
        }
        assert trajectory.source == "word_problems"


def test_every_kind_of_sentence_occurs() -> None:
    texts = [trajectory.problem for trajectory in draw(400)]
    facts = [fact for text in texts for fact in re.split(r"(?<=[.?]) ", text)]
    for form, _ in SENTENCES:
        assert any(re.fullmatch(form + r"\.", fact) for fact in facts), form
    for form in QUESTIONS:
        assert any(re.fullmatch(form, fact) for fact in facts), form
    templates = [*GIVEN_TEMPLATES]
    for group in (UNARY_TEMPLATES, BINARY_TEMPLATES):
        templates += [template for forms in group.values() for template in forms]
    assert len(templates) == len(SENTENCES), "a template that this test cannot read"


def test_in_a_problem_nobody_has_what_another_has() -> None:
    for trajectory in draw(100):
        things = list(Problem(trajectory.problem).things.values())
        assert len(set(things)) == len(things)


def test_sentences_take_turns() -> None:
    """A template comes again only when the others of its kind were used."""
    kinds = [GIVEN_TEMPLATES, *UNARY_TEMPLATES.values(), *BINARY_TEMPLATES.values()]
    start = 0
    for kind in kinds:
        forms = [re.compile(form + r"\.") for form, _ in SENTENCES[start : start + len(kind)]]
        start += len(kind)
        often = 0
        for trajectory in draw(100):
            facts = re.split(r"(?<=[.?]) ", trajectory.problem)[1:-1]
            uses = [sum(bool(form.fullmatch(fact)) for fact in facts) for form in forms]
            assert max(uses) - min(uses) <= 1, trajectory.problem
            often += sum(uses)
        assert often > 20


def test_numbers_of_operations_take_turns() -> None:
    found = [t.metadata["operations"] for t in draw(50, min_operations=3, max_operations=7)]
    assert found == [3, 4, 5, 6, 7] * 10


def test_distractors_keep_to_their_limit() -> None:
    problems = draw_problems(300, seed=0, max_distractors=3)
    extra = set()
    for problem in problems:
        read = Problem(problem.text)
        used = read.needed(read.target)
        used |= {name for person in used for name in read.rules[person][2].values()}
        extra.add(len(read.rules) - len(used))
    assert extra == {0, 1, 2, 3}
    assert any(p.target != list(p.quantities)[-1] for p in problems), "facts are not shuffled"


def test_problems_differ_and_pools_never_meet() -> None:
    ids = {
        (pool, seed): [t.problem_id for t in draw(400, seed=seed, pool=pool)]
        for pool, seed in product(("main", "base"), range(3))
    }
    for (pool, _), found in ids.items():
        assert len(set(found)) == 400
        assert {pool_of(name) for name in found} == {pool}
    main, base = (
        {name for (of, _), found in ids.items() if of == pool for name in found}
        for pool in ("main", "base")
    )
    assert not main & base


def test_small_worlds_still_give_different_problems() -> None:
    report = LoadReport()
    options = {"min_operations": 1, "max_operations": 1, "max_distractors": 0, "max_value": 20}
    found = load(limit=3000, report=report, **options)  # type: ignore[arg-type]
    assert len({t.problem_id for t in found}) == report.kept == 3000
    assert report.rows == 3000 + sum(report.dropped.values())


def test_the_seed_decides() -> None:
    assert draw(40, seed=5) == draw(40, seed=5)
    assert draw(40, seed=5)[:20] == draw(20, seed=5), "more problems change the first ones"
    assert draw(40, seed=5) != draw(40, seed=6)


def test_names_can_be_told_apart() -> None:
    for names in (PEOPLE, OBJECTS):
        assert len(set(names)) == len(names)
        assert not [pair for pair in permutations(names, 2) if pair[1].startswith(pair[0])]


def test_the_largest_sizes_have_people_enough() -> None:
    options = {"min_operations": 12, "max_operations": 12, "max_distractors": 12}
    assert len(draw(20, **options)) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0; allowed is 1 to"),
        ({"min_operations": 0}, "min_operations is 0; allowed is 1 to 8"),
        ({"max_operations": 13}, "max_operations is 13; allowed is 2 to 12"),
        ({"min_operations": 5, "max_operations": 4}, "min_operations is 5; allowed is 1 to 4"),
        ({"max_distractors": -1}, "max_distractors is -1; allowed is 0 to 12"),
        ({"max_distractors": 13}, "max_distractors is 13"),
        ({"max_value": 19}, "max_value is 19; allowed is 20 to 999"),
        ({"max_value": 1000}, "max_value is 1000"),
        ({"max_value": 30.5}, "max_value is 30.5"),
        ({"pool": "test"}, "pool is 'test'; allowed are main and base"),
        ({"thoughts": "yes"}, "thoughts is 'yes'; allowed are true and false"),
        ({"path_or_hub": "x.jsonl"}, "read no file, but the path 'x.jsonl' was given"),
    ],
)
def test_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(report=LoadReport(), **{"limit": 5, **options})  # type: ignore[arg-type]


def test_thoughts_change_neither_problems_nor_steps() -> None:
    bare, thinking = draw(40, seed=5), draw(40, seed=5, thoughts=True)
    assert [replace(one, steps=one.texts) for one in thinking] == bare
    for one, problem in zip(thinking, draw_problems(40, seed=5), strict=True):
        known = problem.given
        for step in one.steps:
            shown = problem.demonstrate(problem.target, known)
            assert step == Step(shown.step, f" {shown.thought}")
            known.add(shown.computed or problem.target)


def test_through_the_front_door() -> None:
    report = LoadReport()
    found = load_trajectories("word_problems", limit=30, report=report, seed=4, max_operations=3)
    assert found == draw(30, seed=4, max_operations=3)
    assert report.kept == 30
    assert set(report.dropped) <= {
        "a value out of range",
        "drawn twice",
        "belongs to the other pool",
    }


def test_the_terse_teacher_solves_the_same_problems_in_fewer_steps() -> None:
    """Every step is right, holds two operations at most, and uses only what is known by then."""
    plain = load_trajectories("word_problems", limit=300, seed=5)
    terse = load_trajectories("word_problems", limit=300, seed=5, teacher="terse")
    fewer = 0
    for one, other in zip(plain, terse, strict=True):
        assert (one.problem, one.answer, one.texts[-1]) == (
            other.problem, other.answer, other.texts[-1],
        )  # fmt: skip
        fewer += len(other.texts) < len(one.texts)
        known = {int(number) for number in re.findall(r"\d+", one.problem)}
        known |= {2, 3, 4, 5}  # twice, a third
        operations = 0
        for text in other.texts[:-1]:
            said = re.fullmatch(r"So \w+ has ([\d()*/+-]+)=(\d+) \w+\.", text)
            assert said is not None, text
            assert eval(said[1]) == int(said[2])
            assert {int(number) for number in re.findall(r"\d+", said[1])} <= known
            known.add(int(said[2]))
            operations += len(re.findall(r"[*/+-]", said[1]))
            assert len(re.findall(r"[*/+-]", said[1])) <= 2
        assert operations == len(one.texts) - 1
    assert fewer > 250


def test_the_terse_teacher_thinks_both_operations_out_before_it_writes_them() -> None:
    bare = load_trajectories("word_problems", limit=300, seed=5, teacher="terse")
    thinking = load_trajectories("word_problems", limit=300, seed=5, teacher="terse", thoughts=True)
    assert [replace(one, steps=one.texts) for one in thinking] == bare
    chained = 0
    for one, problem in zip(thinking, draw_problems(300, seed=5), strict=True):
        known, inside = problem.given, problem.inside
        for step in one.steps:
            # The walk from the question reaches the steps in the expert's order.
            shown = problem.demonstrate(problem.target, known, inside)
            assert step == Step(shown.step, f" {shown.thought}")
            if shown.computed is not None:
                for name in filter(None, (inside.get(shown.computed), shown.computed)):
                    quantity = problem.quantities[name]
                    numbers = [problem.quantities[other].value for other in quantity.operands]
                    numbers += [] if quantity.constant is None else [quantity.constant]
                    assert problem.facts[name] in shown.thought
                    assert work_out(str(quantity.operation), *numbers) in shown.thought
                assert shown.thought.endswith(work_out(str(quantity.operation), *numbers))
                chained += shown.computed in inside
                # Nothing is told of a value that no step has made known.
                for name, quantity in problem.quantities.items():
                    if quantity.operation is not None and name not in known:
                        assert f"={quantity.value} {quantity.thing}." not in shown.thought
            known.add(shown.computed or problem.target)
    assert chained > 250
