"""Signals that ask a command to stop: Ctrl-C, and what schedulers, terminals and `kill` send.

While training they are answered at the end of the step, with a checkpoint; at all other times at
once, by an exception that passes every `except Exception`. A signal that whoever started the
process has set to be ignored (nohup, a shell's background jobs) stays ignored.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """While this is entered, every signal that asks to stop and is not ignored calls `handler`."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = [one for one, known in before.items() if known not in (signal.SIG_IGN, None)]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


class Stopped(KeyboardInterrupt):
    """A signal stopped the command; what there is to say about it is the message.

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class StopSignals:
    """While this is entered, signals stop the command as the phase demands.

    Attributes:
        asked: the signal that asked a training to stop; None as long as none has.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._tell: Callable[[str], object] | None = None  # in the phase of training
        self._again: int | None = None  # Ctrl-C once more, while a file must be finished
        self._held = False
        self._handling = handling(self._on_signal)

    def __enter__(self) -> StopSignals:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)

    def after_this_step(self, tell: Callable[[str], object]) -> None:
        """From here on a signal only asks: whoever trains looks at `asked` after each step.

        Ctrl-C a second time stops at once. Other signals may come again and again: schedulers and
        closing terminals repeat theirs.

        Args:
            tell: told, in words, that it will stop.
        """
        self._tell = tell

    def at_once(self) -> None:
        """From here on a signal stops at once.

        Raises:
            Stopped: one has asked meanwhile.
        """
        self._tell = None
        self.release()
        if self.asked is not None:
            raise Stopped(self.asked)

    def hold(self) -> None:
        """Until `release` nothing stops at once: files are being written."""
        self._held = True

    def release(self) -> None:
        """The files are whole.

        Raises:
            Stopped: Ctrl-C was pressed a second time meanwhile.
        """
        self._held = False
        if self._again is not None:
            again, self._again = self._again, None
            raise Stopped(again)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._tell is None and not self._held:
            self._held = True  # what is cleaned up now is cleaned up whole
            raise Stopped(number)
        if self.asked is None:
            self.asked = number
            if self._tell is None:
                return
            more = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            with suppress(RuntimeError):  # it came in the middle of another line
                self._tell(f"stopping after this step, with a checkpoint{more}")
        elif number == signal.SIGINT:
            if not self._held:
                self._held = True
                raise Stopped(number)
            self._again = number
