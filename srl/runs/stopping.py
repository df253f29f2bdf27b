"""Handles the signals that stop a command: Ctrl-C, and those of schedulers, terminals and `kill`.

During training a signal stops the run at the end of the step, with a checkpoint. At all other times
it stops the command at once, by an exception that passes every `except Exception`. A signal that
was already ignored when the process started (nohup, a shell's background jobs) stays ignored.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Calls `handler`, inside this context, for each stop signal that is not ignored."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [number for number, known in before.items() if known not in (signal.SIG_IGN, None)]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


class Stopped(KeyboardInterrupt):
    """Raised when a signal stops the command. Its message is the text for the user.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class StopSignals:
    """A context in which signals stop the command, at once or after a training step.

    Attributes:
        asked: the first signal that asked for a later stop; None if there was none.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._tell: Callable[[str], object] | None = None  # set during training
        self._again: int | None = None  # a second Ctrl-C while files are being written
        self._held = False
        self._handling = handling(self._on_signal)

    def __enter__(self) -> StopSignals:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)

    def after_this_step(self, tell: Callable[[str], object]) -> None:
        """Makes signals from now on set `asked` only, which the trainer reads after each step.

        A second Ctrl-C stops at once. Other signals may be repeated without effect, because
        schedulers and closing terminals repeat theirs.

        Args:
            tell: called with a message that the training will stop.
        """
        self._tell = tell

    def at_once(self) -> None:
        """Makes signals from now on stop the command at once.

        Raises:
            Stopped: a signal has asked for a stop in the meantime.
        """
        self._tell = None
        self.release()
        if self.asked is not None:
            raise Stopped(self.asked)

    def hold(self) -> None:
        """Delays every stop until `release`, because files are being written."""
        self._held = True

    def release(self) -> None:
        """Ends `hold`, because the files are complete.

        Raises:
            Stopped: Ctrl-C was pressed a second time in the meantime.
        """
        self._held = False
        if self._again is not None:
            again, self._again = self._again, None
            raise Stopped(again)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._tell is None and not self._held:
            self._held = True  # another signal must not interrupt the clean-up
            raise Stopped(number)
        if self.asked is None:
            self.asked = number
            if self._tell is None:
                return
            more = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            with suppress(RuntimeError):  # the signal came while another line was being printed
                self._tell(f"stopping after this step, with a checkpoint{more}")
        elif number == signal.SIGINT:
            if not self._held:
                self._held = True
                raise Stopped(number)
            self._again = number
