"""What the benchmarks share: a command run in a terminal, the machine it ran on, and a table."""

import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple


class Done(NamedTuple):
    """A command that has come to its end."""

    output: str
    seconds: float
    peak_rss_mb: float


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Done:
    """Run a command in a terminal of its own, so that it shows what it would show a person: a progress bar.

    Its peak memory is at least this process's own, whose copy it was at first: import nothing large before.

    Args:
        command: Program and arguments.
        environment: Variables to add to this process's.
    """
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    chunks = []
    with suppress(OSError):  # what Linux says once nobody can write there any more
        while chunk := os.read(screen, 65536):
            chunks.append(chunk)
    os.close(screen)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    output = b"".join(chunks).decode(errors="replace").replace("\r\n", "\n")
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}:\n{output[-4000:]}")
    return Done(output, seconds, usage.ru_maxrss * 1024 / 1e6)


def machine() -> dict[str, Any]:
    """Return what measurements depend on: the date, the processor, and the versions this interpreter runs."""
    processor = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "date": date.today().isoformat(),
        "cpu": processor[1] if processor else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("mnist-lightning", "torch", "lightning", "torchmetrics", "numpy")},
        },
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns but the first aligned to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    line = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in (header, line, *rows)
    )
