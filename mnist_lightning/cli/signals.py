"""Signals that stop the process: each raises KeyboardInterrupt, once."""

import signal
import threading
from types import FrameType
from typing import Any

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]
received: list[int] = []  # the signal that stopped the process, if one did


def listen(*_: Any) -> None:
    """Raise KeyboardInterrupt on SIGINT, SIGTERM and SIGUSR1, and ignore those that follow."""
    if threading.current_thread() is threading.main_thread():
        received.clear()
        for number in STOPPING:
            signal.signal(number, stop)


def stop(number: int, frame: FrameType | None) -> None:
    """Handle a signal."""
    received.append(number)
    for other in STOPPING:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt
