"""Measure what a start costs beside importing Lightning: quick answers, the long help, argument errors, `describe`.

    python benchmarks/startup.py [--runs 5]

Each run is a process of its own, and the commands take turns. The seconds are medians: those of the whole process, and
those of the processor, which other processes disturb less.
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
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
PROGRAM = [sys.executable, "-m", "mnist_lightning"]
COMMANDS = {
    LIGHTNING: [sys.executable, "-c", "import lightning.pytorch; from lightning.pytorch.cli import LightningCLI"],
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


def seconds(name: str) -> tuple[float, float]:
    """Run a command and return the seconds that passed and those of the processor."""
    before, start = os.times(), time.perf_counter()
    with TemporaryDirectory() as folder:  # describe writes there
        done = subprocess.run(COMMANDS[name], capture_output=True, text=True, cwd=folder, env=ENVIRONMENT)
    passed, after = time.perf_counter() - start, os.times()
    assert done.returncode == (2 if name in ERRORS else 0), done.stderr
    children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return passed, children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each command; one more before them does not count")
    args = parser.parse_args()

    rounds = [{name: seconds(name) for name in COMMANDS} for _ in range(args.runs + 1)][1:]
    passed, processor = (
        {name: statistics.median(figures[name][kind] for figures in rounds) for name in COMMANDS} for kind in (0, 1)
    )
    rows = [
        [name, *(f"{of[name]:.2f} ({of[name] - of[LIGHTNING]:+.2f})" for of in (passed, processor))]
        for name in COMMANDS
    ]
    print(measure.table(["", "seconds (beyond Lightning)", "processor seconds (beyond Lightning)"], rows))


if __name__ == "__main__":
    main()
