"""What the benchmarks share: a command that is measured, the machine it ran on, and a table."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

try:
    from pty import openpty  # a terminal, so that a progress bar is drawn as for a person
except ImportError:  # Windows
    from os import pipe as openpty


class Done(NamedTuple):
    """A finished command."""

    output: str
    seconds: float
    peak_mb: float  # NaN on Windows


def run(
    command: Sequence[str], environment: Mapping[str, str] | None = None, folder: str | None = None
) -> Done:
    """Run a command in a terminal of its own; exit if it fails.

    Its peak memory is never below this process's own, since it begins as a copy: import nothing
    large before.

    Args:
        command: Program and arguments.
        environment: Variables to add to this process's.
        folder: The folder to run it in; the current one by default.
    """
    screen, terminal = openpty()
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    chunks = []
    with suppress(OSError):  # Linux raises it at the end of a terminal's output
        while chunk := os.read(screen, 65536):
            chunks.append(chunk)
    os.close(screen)
    peak_mb = float("nan")
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak_mb = (
            usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        )  # macOS counts bytes, Linux kB
    seconds = time.perf_counter() - start
    output = b"".join(chunks).decode(errors="replace").replace("\r\n", "\n")
    if process.wait():
        sys.exit(
            f"{' '.join(command)} failed with exit code {process.returncode}:\n{output[-4000:]}"
        )
    return Done(output, seconds, peak_mb)


def machine() -> dict[str, Any]:
    """Return what a measurement depends on.

    The date, the processor, and the versions of this interpreter.
    """
    info = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*: (.*)", info.read_text(), re.MULTILINE)
        if info.exists()
        else None
    )
    packages = ("mnist-lightning", "torch", "lightning", "torchmetrics", "numpy")
    return {
        "date": date.today().isoformat(),
        "cpu": found[1] if found else platform.processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
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
