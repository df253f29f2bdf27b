"""Draws multi-step word problems: the embedded data, for which nothing is downloaded.

A problem names several quantities ("Leo has 5 more pens than the cups of Mia."), in shuffled order,
and asks for one of them. Quantities depend on each other; some are distractors that the question
does not need. The expert computes only what is needed, one operation per step, operands before
results. Then it states the answer. So the difficulty is *which step comes next*, not arithmetic.

Every problem is drawn from a seed. Its id is the hash of its text. The id alone decides to which
pool a problem belongs: the pool that the base policy was made from, or the pool for training and
evaluation. So the two pools never overlap, whatever the seeds are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from environments.paper_sums import work_out
from environments.types import DataError, LoadReport, Step, Trajectory

Pool = Literal["main", "base"]
Teacher = Literal["plain", "terse"]
Operation = Literal["+", "-", "*", "/"]

# One token each in the embedded policy's vocabulary; no name is a prefix of another.
# fmt: off
PEOPLE = (
    "Ada", "Ben", "Cleo", "Dan", "Ella", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kira", "Leo",
    "Mia", "Noah", "Olga", "Paul", "Quinn", "Rosa", "Sam", "Tara", "Uma", "Vera", "Will",
    "Xena", "Yara", "Zoe", "Amir", "Bella", "Carl", "Dina", "Emil", "Faye", "Greg", "Hana",
    "Ivan", "Jade", "Kurt", "Lena", "Max", "Nina", "Omar", "Pia", "Rita", "Saul", "Tess",
    "Viktor", "Wendy", "Yusuf",
)
OBJECTS = (
    "marbles", "pens", "cups", "coins", "stamps", "books", "shells", "apples", "cards",
    "ribbons", "buttons", "stickers", "pebbles", "balls", "hats", "keys", "lemons", "nuts",
    "pears", "plums", "rings", "ropes", "seeds", "socks", "spoons", "stones", "toys", "beads",
    "bells", "boxes", "bricks", "candles", "flags", "kites", "maps", "masks", "pins", "drums",
    "shirts", "tickets",
)
# fmt: on

FRACTION_WORDS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
MULTIPLE_WORDS = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}

# S, R and Q are people: the subject, the first and the second operand. s, r and q are their
# objects. k is a number in digits, m and f are the multiple and the fraction in words. Every fact
# starts with its subject, so that the text after a name can be looked up by the name.
OPENINGS = (
    "Some friends compare what they have.",
    "Here is what we know about some friends.",
    "A few children collect things.",
    "At school they count what they own.",
)
GIVEN_TEMPLATES = (
    "{S} has {k} {s}.",
    "{S} counted {k} {s}.",
    "{S} was given {k} {s}.",
    "{S} owns exactly {k} {s}.",
)
UNARY_TEMPLATES: dict[Operation, tuple[str, ...]] = {
    "+": (
        "{S} has {k} more {s} than the {r} of {R}.",
        "{S} owns {k} {s} beyond the {r} of {R}.",
        "{S} got as many {s} as the {r} of {R} and {k} more.",
        "{S} beats by {k} {s} the {r} of {R}.",
        "{S} must lose {k} {s} to match the {r} of {R}.",
    ),
    "-": (
        "{S} has {k} fewer {s} than the {r} of {R}.",
        "{S} would need {k} more {s} to match the {r} of {R}.",
        "{S} got as many {s} as the {r} of {R} but {k} fewer.",
        "{S} is short by {k} {s} of the {r} of {R}.",
        "{S} trails by {k} {s} behind the {r} of {R}.",
    ),
    "*": (
        "{S} has {m} as many {s} as the {r} of {R}.",
        "{S} keeps {k} {s} for every one of the {r} of {R}.",
        "{S} got {k} {s} for each of the {r} of {R}.",
        "{S} counts in {s} {m} the {r} of {R}.",
    ),
    "/": (
        "{S} has {f} as many {s} as the {r} of {R}.",
        "{S} got in {s} {f} of the {r} of {R}.",
        "{S} owns {s}, one for every {k} of the {r} of {R}.",
        "{S} needs {k} times the {s} to match the {r} of {R}.",
    ),
}
BINARY_TEMPLATES: dict[Operation, tuple[str, ...]] = {
    "+": (
        "{S} has as many {s} as the {r} of {R} and the {q} of {Q} together.",
        "{S} got the sum in {s} of the {r} of {R} and the {q} of {Q}.",
        "{S} equals in {s} the {r} of {R} plus the {q} of {Q}.",
    ),
    "-": (
        "{S} has as many {s} as the {r} of {R} without the {q} of {Q}.",
        "{S} got the difference in {s} of the {r} of {R} and the {q} of {Q}.",
        "{S} equals in {s} the {r} of {R} minus the {q} of {Q}.",
    ),
}
QUESTION_TEMPLATES = (
    "How many {s} belong to {S}?",
    "What is the number of the {s} of {S}?",
    "Find the number of the {s} of {S}.",
)


@dataclass
class Quantity:
    """The number of objects that a person has: given, or computed from other quantities.

    Attributes:
        person: the owner; unique within a problem, so a person names a quantity.
        thing: the object counted; unique within a problem too.
        value: the number, from 1 to the problem's largest value.
        operation: None where the number is given in the text.
        operands: the people whose quantities it is computed from, zero to two.
        constant: the second operand of an operation on one quantity.
    """

    person: str
    thing: str
    value: int
    operation: Operation | None = None
    operands: tuple[str, ...] = ()
    constant: int | None = None


# Value, operation, operands and constant of a quantity that is computed from others.
_Derived = tuple[int, Operation, tuple[str, ...], int | None]


@dataclass(frozen=True)
class Demonstration:
    """A monologue, the step it leads to, and the person whose quantity the step computes.

    The monologue starts at a goal. It repeats the fact about the goal and the facts about what the
    goal depends on, until all of that is known. Then it computes the result digit by digit:

        <think> Leo has three times ... of Mia. Mia has 23 cups. (for Leo) 3*3=9, 2*3=6.</think>
        So Leo has 23*3=69 pens.

    The use of a repeated number is named at once. Otherwise the policy would have to look back over
    any number of sentences to see whose quantity is computed.

    Attributes:
        thought: the monologue, without its tags.
        step: the step.
        computed: the person whose quantity the step computes, or None for a final answer.
    """

    thought: str
    step: str
    computed: str | None


@dataclass(frozen=True)
class WordProblem:
    """A problem in structured form, before it becomes a `Trajectory`.

    Attributes:
        text: the problem as the policy reads it.
        facts: person -> the sentence that describes the quantity, in the order of the text.
        quantities: person -> quantity, in the order of the facts in the text.
        target: the person whose quantity is asked for.
        operations: how many operations the expert needs.
    """

    text: str
    facts: dict[str, str]
    quantities: dict[str, Quantity]
    target: str
    operations: int

    def needed(self, person: str) -> list[str]:
        """Returns the people whose quantities must be computed for `person`, operands first."""
        order: list[str] = []
        for operand in self.quantities[person].operands:
            order += [name for name in self.needed(operand) if name not in order]
        return [*order, person] if self.quantities[person].operation else order

    def write_step(self, person: str, inside: str | None = None) -> str:
        """Returns the step that computes the quantity of `person`: ``So Leo has 12+5=17 pens.``

        Args:
            person: the owner of the quantity.
            inside: an operand that the same step computes: ``So Leo has (3*4)+5=17 pens.``
        """
        quantity = self.quantities[person]
        sum_ = self._sum(person, {} if inside is None else {inside: f"({self._sum(inside, {})})"})
        return f"So {person} has {sum_}={quantity.value} {quantity.thing}."

    def _sum(self, person: str, written: Mapping[str, str]) -> str:
        quantity = self.quantities[person]
        values = [written.get(n, str(self.quantities[n].value)) for n in quantity.operands]
        if quantity.constant is not None:
            values.append(str(quantity.constant))
        return str(quantity.operation).join(values)

    @property
    def inside(self) -> dict[str, str]:
        """Returns person -> the operand that the terse teacher computes inside the person's step.

        Only one other quantity is made from such an operand, so that no step writes its value. A
        step holds two operations at most.
        """
        people = self.needed(self.target)
        users = Counter(name for person in people for name in self.quantities[person].operands)
        inside: dict[str, str] = {}
        for person in people:
            for name in self.quantities[person].operands:
                computed = self.quantities[name].operation is not None
                if computed and users[name] == 1 and name not in inside:
                    inside[person] = name
                    break
        return inside

    @property
    def given(self) -> set[str]:
        """Returns the people whose quantities the text states as numbers."""
        return {name for name, quantity in self.quantities.items() if quantity.operation is None}

    def demonstrate(
        self, goal: str, known: set[str], inside: Mapping[str, str] | None = None
    ) -> Demonstration:
        """Returns the next step towards the quantity of `goal`.

        Args:
            goal: the person whose quantity is sought; once it is known, the step states the answer.
            known: the people whose quantities are known, with the given ones.
            inside: person -> the operand that is computed inside the person's step; default none.
        """
        inside = inside or {}
        thoughts: list[str] = []
        current = goal
        while current not in known:
            thoughts.append(self.facts[current])
            unknown = self._missing(current, known, inside)
            for operand in self.quantities[current].operands:
                if operand == unknown:
                    break
                if operand in known:
                    thoughts.append(f"{self._recall(operand, inside)} (for {current})")
                elif unknown is None:
                    thoughts.append(self.facts[operand])
                    thoughts += [
                        f"{self._recall(name, inside)} (for {operand})"
                        for name in self.quantities[operand].operands
                    ]
                    thoughts += [self._work_out(operand), f"(for {current})"]
            if unknown is None:
                thoughts.append(self._work_out(current))
                step = self.write_step(current, inside.get(current))
                return Demonstration(" ".join(thoughts), step, current)
            current = unknown
        answer = write_answer(self.quantities[goal].value)
        return Demonstration(self._recall(goal, inside), answer, None)

    def _missing(self, person: str, known: set[str], inside: Mapping[str, str]) -> str | None:
        """Returns the first operand that must be known before the step of `person`, or None."""
        for operand in self.quantities[person].operands:
            if operand in known:
                continue
            ready = all(name in known for name in self.quantities[operand].operands)
            if operand != inside.get(person) or not ready:
                return operand
        return None

    def _work_out(self, person: str) -> str:
        quantity = self.quantities[person]
        numbers = [self.quantities[name].value for name in quantity.operands]
        if quantity.constant is not None:
            numbers.append(quantity.constant)
        assert quantity.operation is not None
        return work_out(quantity.operation, *numbers)

    def _recall(self, person: str, inside: Mapping[str, str]) -> str:
        """Returns a known quantity in the words that made it known: the fact's or the step's."""
        if self.quantities[person].operation is None:
            return self.facts[person]
        return self.write_step(person, inside.get(person)).removeprefix("So ")

    def trajectory(self, *, thoughts: bool = False, teacher: Teacher = "plain") -> Trajectory:
        """Returns the expert's solution: one step per operation, then the answer.

        Args:
            thoughts: add the monologue that leads to each step.
            teacher: "terse" writes two operations in a step where it can.
        """
        answer = str(self.quantities[self.target].value)
        inside = self.inside if teacher == "terse" else {}
        hidden = set(inside.values())
        people = [person for person in self.needed(self.target) if person not in hidden]
        steps = [self.write_step(person, inside.get(person)) for person in people]
        texts = (*steps, write_answer(answer))
        monologues = [""] * len(texts)
        known = self.given
        for place, person in enumerate([*people, self.target] if thoughts else []):
            monologues[place] = f" {self.demonstrate(self.target, known, inside).thought}"
            known.add(person)
        return Trajectory(
            problem=self.text,
            steps=tuple(map(Step, texts, monologues)),
            answer=answer,
            source="word_problems",
            metadata={"operations": self.operations, "quantities": len(self.quantities)},
        )


def write_answer(answer: str | int) -> str:
    """Returns the step that states the final answer."""
    return f"The answer is {answer}."


def load(
    path_or_hub: str | None = None,
    *,
    report: LoadReport,
    limit: int | None = None,
    seed: int = 0,
    min_operations: int = 2,
    max_operations: int = 8,
    max_distractors: int = 3,
    max_value: int = 99,
    pool: Pool = "main",
    thoughts: bool = False,
    teacher: Teacher = "plain",
) -> list[Trajectory]:
    """Draws `limit` different problems (1,000 by default); the numbers of operations take turns.

    Args:
        path_or_hub: must be None: there is no file to read.
        report: counts the drawn and the dropped problems.
        limit: how many problems.
        seed: equal seeds and options give equal problems.
        min_operations: the fewest operations of a problem, at least 1.
        max_operations: the most operations of a problem, at most 12.
        max_distractors: the most quantities of a problem that the question does not need.
        max_value: the largest value of any quantity, at least 20.
        pool: ``base`` is the pool that the embedded base policy was made from, ``main`` the rest.
        thoughts: add the expert's monologue before each step. The problems and the steps stay the
            same. Fine-tuning on the expert's text (`method: sft`) learns the monologues too.
        teacher: ``plain`` writes one operation per step. ``terse`` writes two where the value of
            the first is needed nowhere else, and leaves that value out. Problems and answers are
            the same.

    Raises:
        DataError: a path is given, or an option is out of range.
    """
    if not isinstance(thoughts, bool):
        raise DataError(f"word_problems: thoughts is {thoughts!r}; allowed are true and false")
    if path_or_hub is not None:
        raise DataError(
            f"word_problems are drawn from a seed and read no file, but the path {path_or_hub!r} "
            "was given; remove the path, or use source: files for a file of your own"
        )
    problems = draw_problems(
        1000 if limit is None else limit,
        seed=seed,
        min_operations=min_operations,
        max_operations=max_operations,
        max_distractors=max_distractors,
        max_value=max_value,
        pool=pool,
        report=report,
    )
    return [problem.trajectory(thoughts=thoughts, teacher=teacher) for problem in problems]


def draw_problems(
    count: int,
    *,
    seed: int,
    min_operations: int = 2,
    max_operations: int = 8,
    max_distractors: int = 3,
    max_value: int = 99,
    pool: Pool = "main",
    report: LoadReport | None = None,
) -> list[WordProblem]:
    """Draws the problems behind `load`, as structures. Same arguments and errors."""
    for name, value, low, high in (
        ("limit", count, 1, 10_000_000),
        ("min_operations", min_operations, 1, max_operations),
        ("max_operations", max_operations, min_operations, 12),
        ("max_distractors", max_distractors, 0, 12),
        ("max_value", max_value, 20, 999),
    ):
        if not isinstance(value, int) or not low <= value <= high:
            raise DataError(f"word_problems: {name} is {value!r}; allowed is {low} to {high}")
    if pool not in ("main", "base"):
        raise DataError(f"word_problems: pool is {pool!r}; allowed are main and base")
    rng = random.Random(f"word_problems-{seed}-{pool}")
    report = LoadReport() if report is None else report
    seen: set[str] = set()
    problems: list[WordProblem] = []
    while len(problems) < count:
        operations = min_operations + len(problems) % (max_operations - min_operations + 1)
        problem = _draw_problem(rng, operations, max_distractors, max_value)
        report.rows += 1
        if any(quantity.value > max_value for quantity in problem.quantities.values()):
            report.dropped["a value out of range"] += 1
            continue
        problem_id = problem.trajectory().problem_id
        if problem_id in seen:
            report.dropped["drawn twice"] += 1
        elif pool_of(problem_id) != pool:
            report.dropped["belongs to the other pool"] += 1
        else:
            seen.add(problem_id)
            problems.append(problem)
    report.kept += len(problems)
    return problems


def pool_of(problem_id: str) -> Pool:
    """Returns the pool of a problem, decided by its id; `base` gets half of all problems."""
    return "base" if int(problem_id, 16) % 2 else "main"


def _draw_problem(
    rng: random.Random, operations: int, max_distractors: int, max_value: int
) -> WordProblem:
    most = 2 * operations + 1 + max_distractors
    people, things = rng.sample(PEOPLE, k=most), rng.sample(OBJECTS, k=most)
    quantities: dict[str, Quantity] = {}

    def new(
        value: int,
        operation: Operation | None = None,
        operands: tuple[str, ...] = (),
        constant: int | None = None,
    ) -> Quantity:
        quantity = Quantity(people.pop(), things.pop(), value, operation, operands, constant)
        quantities[quantity.person] = quantity
        return quantity

    def draw_tree(size: int) -> Quantity:
        """Draws a quantity that takes exactly `size` operations."""
        if size == 0:
            return new(rng.randint(2, max_value * 2 // 3))
        if size >= 2 and rng.random() < 0.3:
            left = draw_tree(size_left := rng.randint(0, size - 1))
            right = draw_tree(size - 1 - size_left)
            return new(*_combine(rng, left, right, max_value))
        return new(*_change(rng, draw_tree(size - 1), max_value))

    target = draw_tree(operations)
    for _ in range(rng.randint(0, max_distractors)):
        if rng.random() < 0.25:
            draw_tree(0)
        else:
            new(*_change(rng, rng.choice(list(quantities.values())), max_value))

    shuffled = list(quantities.values())
    rng.shuffle(shuffled)
    unused: dict[tuple[str, ...], list[str]] = {}
    facts = {fact.person: _write_fact(rng, fact, quantities, unused) for fact in shuffled}
    question = rng.choice(QUESTION_TEMPLATES).format(S=target.person, s=target.thing)
    return WordProblem(
        text=" ".join([rng.choice(OPENINGS), *facts.values(), question]),
        facts=facts,
        quantities={fact.person: fact for fact in shuffled},
        target=target.person,
        operations=operations,
    )


def _change(rng: random.Random, operand: Quantity, max_value: int) -> _Derived:
    """Draws an operation on one quantity and a constant, with a whole and positive result.

    The result is in range if the quantity is.
    """
    value = operand.value
    choices: list[tuple[Operation, int, int]] = []
    if value + 2 <= max_value:
        constant = rng.randint(2, min(max_value - value, max_value // 2))
        choices.append(("+", constant, value + constant))
    if value > 3:
        constant = rng.randint(2, value - 1)
        choices.append(("-", constant, value - constant))
    multiples = [k for k in MULTIPLE_WORDS if value * k <= max_value]
    if multiples:
        constant = rng.choice(multiples)
        choices.append(("*", constant, value * constant))
    divisors = [k for k in FRACTION_WORDS if value % k == 0]
    if divisors:
        constant = rng.choice(divisors)
        choices.append(("/", constant, value // constant))
    operation, constant, result = rng.choice(choices)
    return result, operation, (operand.person,), constant


def _combine(rng: random.Random, left: Quantity, right: Quantity, max_value: int) -> _Derived:
    """Returns the sum of two quantities, or the larger one minus the smaller one.

    The difference replaces a sum that is too large, and 40 % of the other sums. Equal quantities
    are always added; if their sum is out of range, the problem is drawn again.
    """
    operation: Operation = "+"
    if left.value != right.value and (left.value + right.value > max_value or rng.random() < 0.4):
        operation = "-"
        left, right = sorted((left, right), key=lambda quantity: -quantity.value)
    sign = 1 if operation == "+" else -1
    return left.value + sign * right.value, operation, (left.person, right.person), None


def _write_fact(
    rng: random.Random,
    fact: Quantity,
    quantities: dict[str, Quantity],
    unused: dict[tuple[str, ...], list[str]],
) -> str:
    """Writes the sentence about a quantity; `unused` has the templates not yet used here."""

    def pick(templates: tuple[str, ...]) -> str:
        # Templates take turns, so that the sentences of a problem differ.
        left = unused.setdefault(templates, [])
        if not left:
            left += rng.sample(templates, k=len(templates))
        return left.pop()

    words: dict[str, object] = {"S": fact.person, "s": fact.thing, "k": fact.constant}
    if fact.operation is None:
        return pick(GIVEN_TEMPLATES).format(**{**words, "k": fact.value})
    operands = [quantities[name] for name in fact.operands]
    words |= {"R": operands[0].person, "r": operands[0].thing}
    if len(operands) == 2:
        words |= {"Q": operands[1].person, "q": operands[1].thing}
        return pick(BINARY_TEMPLATES[fact.operation]).format(**words)
    words |= {
        "m": MULTIPLE_WORDS.get(fact.constant or 0),
        "f": FRACTION_WORDS.get(fact.constant or 0),
    }
    return pick(UNARY_TEMPLATES[fact.operation]).format(**words)
