"""Measure what a start costs beyond importing Lightning: `--help`, `fit --help`, and an argument error.

    python benchmarks/startup.py [--runs 5]

Each run is a process of its own, and the commands take turns, so that a machine that slows down does so for all. The
seconds are medians: of the whole process by the clock, and of the processor, which other processes disturb less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

LIGHTNING = "import Lightning"
PROGRAM = [sys.executable, "-m", "mnist_lightning"]
COMMANDS = {
    LIGHTNING: [sys.executable, "-c", "import lightning.pytorch; from lightning.pytorch.cli import LightningCLI"],
    "--help": [*PROGRAM, "--help"],
    "fit --help": [*PROGRAM, "fit", "--help"],
    "fit --nonsense 1": [*PROGRAM, "fit", "--nonsense", "1"],
}
EXIT_CODES = {"fit --nonsense 1": 2}


def measure(name: str) -> tuple[float, float]:
    """Run a command and return the seconds by the clock and of the processor."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(COMMANDS[name], capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, os.times()
    assert done.returncode == EXIT_CODES.get(name, 0), done.stderr
    children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return seconds, children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each command; one more before them does not count")
    args = parser.parse_args()

    for name in COMMANDS:
        measure(name)  # reads the files from the disk
    measured = {name: [] for name in COMMANDS}
    for _ in range(args.runs):
        for name, runs in measured.items():
            runs.append(measure(name))
    medians = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in measured.items()
    }
    print(f"| command, median of {args.runs} | seconds | beyond Lightning | processor seconds | beyond Lightning |")
    print("|---|---|---|---|---|")
    base, base_processor = medians[LIGHTNING]
    for name, (seconds, processor) in medians.items():
        more, more_processor = f"{seconds - base:+.2f}", f"{processor - base_processor:+.2f}"
        print(f"| {name} | {seconds:.2f} | {more} | {processor:.2f} | {more_processor} |")


if __name__ == "__main__":
    main()
