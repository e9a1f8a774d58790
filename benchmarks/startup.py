"""Measure what a start costs beside importing Lightning.

Quick answers, the long help, argument errors, `describe`.

    python benchmarks/startup.py [--runs 5] [--old PATH]

Each run is a process of its own, and the commands take turns. The seconds are medians: those of the
whole process, and those of the processor, which other processes disturb less. With --old, the
commands of another checkout of this project take turns with these.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import measure

LIGHTNING = "import Lightning"
ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "mnist_lightning"]
COMMANDS = {
    LIGHTNING: [
        sys.executable,
        "-c",
        "import lightning.pytorch; from lightning.pytorch.cli import LightningCLI",
    ],
    "import mnist_lightning": [sys.executable, "-c", "import mnist_lightning"],
    **{
        line or "no argument": [*PROGRAM, *line.split()]
        for line in (
            "",
            "--version",
            "fit --help",
            "fit --epoch 3",
            "trian",
            "runs",
            "fit --help-all",
            "fit --trainer.epochs 3",
            "describe --data UCIDigits",
        )
    },
}
ERRORS = {"fit --epoch 3", "trian", "fit --trainer.epochs 3"}


def seconds(name: str, checkout: Path) -> tuple[float, float]:
    """Run a command and return the seconds that passed and those of the processor."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    before, start = os.times(), time.perf_counter()
    with TemporaryDirectory() as folder:  # describe writes there
        done = subprocess.run(
            COMMANDS[name], capture_output=True, text=True, cwd=folder, env=environment
        )
    passed, after = time.perf_counter() - start, os.times()
    assert done.returncode == (2 if name in ERRORS else 0), done.stderr
    user = after.children_user - before.children_user
    return passed, user + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="of each command; one more before them does not count"
    )
    parser.add_argument("--old", type=Path, metavar="PATH", help="another checkout to compare with")
    args = parser.parse_args()

    commands = {name: (name, ROOT) for name in COMMANDS}
    if args.old:
        commands |= {f"{name}, {args.old.name}": (name, args.old.resolve()) for name in COMMANDS}
    rounds = []
    for _ in range(args.runs + 1):
        rounds.append({label: seconds(*command) for label, command in commands.items()})
    rows = []
    for label in commands:
        cells = [label]
        for kind in (0, 1):  # that passed, and of the processor
            median, base = (
                statistics.median(figures[each][kind] for figures in rounds[1:])
                for each in (label, LIGHTNING)
            )
            cells.append(f"{median:.2f} ({median - base:+.2f})")
        rows.append(cells)
    header = ["", "seconds (beyond Lightning)", "processor seconds (beyond Lightning)"]
    print(measure.table(header, rows))


if __name__ == "__main__":
    main()
