"""Kill runs at random moments, go on with each to its end, and compare it with one that nothing disturbed.

    python benchmarks/kills.py --kills 25
    python benchmarks/kills.py --kills 25 --data MNIST --last_checkpoint.every_n_train_steps 500

All but its own flags are those of ``fit``. Where nothing had been saved yet, a run starts anew. It prints a line for
each run and exits with 1 unless each ended with the same weights and optimizer state, to the bit, and the same history.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from mnist_lightning.runs import read_record

RUN = "lightning_logs/version_0"
FIT = [sys.executable, "-m", "mnist_lightning", "fit", "--trainer.accelerator", "cpu"]


def train(flags: Sequence[str], seconds: float | None = None) -> bool:
    """Run ``fit``, kill it that long after training began, and return whether it was killed before its end."""
    process = subprocess.Popen([*FIT, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Run folder: " in line:
            break
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    lines.append(process.communicate()[0])
    if process.returncode not in ((0,) if seconds is None else (0, -9)):
        sys.exit(f"fit {' '.join(flags)} failed with exit code {process.returncode}:\n{''.join(lines)}")
    return process.returncode == -9


def end(run: Path) -> tuple[dict[str, Any], str]:
    """Return the weights and optimizer state a run ended with, and its history."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states")}, (run / "metrics.csv").read_text()


def equal(one: Any, other: Any) -> bool:
    """Return whether two states are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    own, flags = parser.parse_known_args()
    if not flags:
        flags = ["--data", "UCIDigits", "--trainer.max_epochs", "60", "--last_checkpoint.every_n_train_steps", "50"]
    moments = random.Random(own.seed)
    same = killed = 0
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "undisturbed"
        train([*flags, "--trainer.default_root_dir", str(reference)])
        whole = read_record(reference / RUN)["fit_seconds"]
        weights, history = end(reference / RUN)
        print(f"undisturbed: {whole:.1f} s", flush=True)
        for number in count():
            root = Path(folder) / str(number)
            moment = moments.uniform(0, whole)
            if not train([*flags, "--trainer.default_root_dir", str(root)], moment):
                continue  # it was faster than the first
            killed += 1
            run = root / RUN
            last = run / "checkpoints/last.ckpt"
            step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
            if step:
                train(["--ckpt_path", str(run)])
            else:
                train([*flags, "--trainer.default_root_dir", str(root)])
                run = run.with_name("version_1")
            weights_here, history_here = end(run)
            is_same = equal(weights, weights_here) and history == history_here
            same += is_same
            print(
                f"killed after {moment:5.2f} s, {step:6,} updates saved: {'the same' if is_same else 'ANOTHER END'}",
                flush=True,
            )
            if killed == own.kills:
                break
    print(f"{same} of {killed} ended as the undisturbed run did")
    sys.exit(same != killed)


if __name__ == "__main__":
    main()
