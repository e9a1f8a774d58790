"""Signals that ask the process to stop: obeyed at once, but in training at the end of an update."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGUSR1 is how schedulers are told to announce that the time is nearly up; Windows has none.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(BaseException):
    """A signal asked the process to stop.

    Args:
        number: The signal's number.
        code: The exit code; by default that by which a shell or a scheduler knows the signal, 128 more.
    """

    def __init__(self, number: int, code: int | None = None) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number if code is None else code


class _Inbox:
    """What the handler shares with those who ask: Python calls it between any two instructions."""

    owner = 0  # the process that listens
    received = 0
    is_deferred = False


def _note(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _Inbox.owner:  # forked off since: it has nothing to save
        if number == signal.SIGINT:
            return  # Ctrl-C is for the process it works for as well, which ends it
        os._exit(128 + number)
    is_impatient = _Inbox.received and number == signal.SIGINT
    _Inbox.received = _Inbox.received or number
    if not _Inbox.is_deferred or is_impatient:
        _Inbox.is_deferred = True  # another one shall not disturb the winding up
        raise Interrupted(number)


@contextmanager
def heard() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into ``Interrupted``; only the main thread may, so another leaves them alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Inbox.owner, _Inbox.received, _Inbox.is_deferred = os.getpid(), 0, False
    before = {number: signal.signal(number, _note) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """Leave signals to the process this one works for; where a worker dies of one, that has an error besides."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def defer(is_deferred: bool = True) -> None:
    """Only note signals from now on, for ``received`` to tell; a SIGINT after another still interrupts at once."""
    _Inbox.owner, _Inbox.is_deferred = (
        os.getpid(),
        is_deferred,
    )  # where it trains, a process that was forked has to save


def received() -> int:
    """Return the number of the signal that was noted first, 0 without one."""
    return _Inbox.received
