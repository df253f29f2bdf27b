"""An example of your own environment: copy this file and change it. See docs/environments.md.

    python -m srl check-data experiments/custom_environment.py:Counter
    make train ARGS="--data '{source: experiments/custom_environment.py:Counter}'"

A counter shows a number. The policy presses one button in each step to bring it to another number.
After every step, the environment replies with the number that the counter shows. The policy reads
this reply before its next step.
"""

from __future__ import annotations

from collections.abc import Sequence

from environments import DataError, Environment, LoadReport, Prompts, Step, Trajectory, Verdict

BUTTONS = {"Add 1.": lambda n: n + 1, "Double.": lambda n: 2 * n, "Take 3.": lambda n: n - 3}


class Counter(Environment):
    """Problems that bring a counter from one number to another with as few presses as possible."""

    prompts = Prompts(
        step="Press one button: Add 1. Double. Take 3.",
        whole="Press buttons, one a line: Add 1. Double. Take 3.",
    )

    def load(
        self,
        path: str | None = None,
        *,
        report: LoadReport,
        limit: int | None = None,
        largest: int = 40,
    ) -> list[Trajectory]:
        """Returns a trajectory for each pair of numbers that are two or more presses apart.

        Numbers go from 0 to `largest`.
        """
        if path is not None:
            raise DataError(f"Counter reads no file, but the path {path!r} was given; remove it")
        trajectories = []
        for start in range(largest + 1):
            for goal, presses in _shortest(start, largest).items():
                if len(presses) > 1:
                    problem = f"The counter shows {start}. Bring it to {goal}."
                    shown, steps = start, []
                    for press in presses:
                        shown = BUTTONS[press](shown)
                        steps.append(Step(press, observation=_show(shown)))
                    trajectories.append(Trajectory(problem, tuple(steps), str(goal), "counter",
                                            metadata={"start": start}))  # fmt: skip
        return trajectories[:limit]

    def judge(self, trajectory: Trajectory, steps: Sequence[Step]) -> Verdict:
        """Returns the verdict: the attempt is right if the counter ends at the goal."""
        shown = str(_after(trajectory, steps))
        return Verdict(shown == trajectory.answer, shown, _show(shown))

    def finished(self, trajectory: Trajectory, steps: Sequence[Step]) -> bool:
        """Returns whether the counter shows the goal, which ends the attempt."""
        return str(_after(trajectory, steps)) == trajectory.answer

    def observe(self, trajectory: Trajectory, steps: Sequence[Step]) -> str:
        """Returns what the counter shows. A line that names no button changes nothing."""
        return _show(_after(trajectory, steps))


def _after(trajectory: Trajectory, steps: Sequence[Step]) -> int:
    shown = int(str(trajectory.metadata["start"]))
    for step in steps:
        for line in step.text.splitlines():  # a whole solution is one step of several lines
            shown = BUTTONS.get(line.strip(), lambda n: n)(shown)
    return shown


def _show(shown: int | str) -> str:
    return f"The counter shows {shown}."


def _shortest(start: int, largest: int) -> dict[int, list[str]]:
    """Returns number -> the shortest list of presses that leads to it, by breadth-first search."""
    presses: dict[int, list[str]] = {start: []}
    queue = [start]
    for shown in queue:  # the loop appends to the queue
        for name, press in BUTTONS.items():
            if 0 <= press(shown) <= largest and press(shown) not in presses:
                presses[press(shown)] = [*presses[shown], name]
                queue.append(press(shown))
    return presses
