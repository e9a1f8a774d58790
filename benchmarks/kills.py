"""Kill runs at random moments, resume them until they are done, and compare them with undisturbed runs.

    python benchmarks/kills.py --kills 25
    python benchmarks/kills.py --kills 25 --data MNIST --trainer.limit_train_batches 100

Flags other than --kills and --seed go to ``fit``. The runs have one process, one process with ``max_steps``, and two
processes, in turn. The exit code is 1 unless every run ends with the weights, the optimizer's state and the history of
the undisturbed run, to the bit.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch

from mnist_lightning import load_run

FIT = ["-m", "mnist_lightning", "fit", "--data", "UCIDigits", "--trainer.accelerator", "cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CASES: dict[str, tuple[list[str], list[str]]] = {  # what starts the processes, and the flags
    "one process": ([], ["--trainer.max_epochs", "40"]),
    "max_steps": ([], ["--trainer.max_epochs", "-1", "--trainer.max_steps", "1000"]),
    "two processes": (TORCHRUN, ["--trainer.max_epochs", "20", "--trainer.devices", "2"]),
}


def train(command: Sequence[str], seconds: float | None = None) -> bool:
    """Run ``fit``, kill it so many seconds after training began, and return whether that was before its end."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Run folder: " in line:
            break
    if seconds is not None and process.poll() is None:
        time.sleep(seconds)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        process.kill()
        for worker in workers:  # torchrun's, which would train on without it
            with suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGKILL)
    lines.append(process.communicate()[0])
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}:\n{''.join(lines)}")
    return process.returncode != 0


def outcome(run: Path) -> tuple[Any, str]:
    """Return the weights and the optimizer's state of a run, and its history."""
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return [saved[name] for name in ("state_dict", "optimizer_states")], (run / "metrics.csv").read_text()


def is_same(one: Path, other: Path) -> bool:
    (states, history), (other_states, other_history) = outcome(one), outcome(other)
    try:
        torch.testing.assert_close(states, other_states, rtol=0, atol=0)
    except AssertionError as error:
        print(error)
        return False
    return history == other_history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    own, flags = parser.parse_known_args()
    moments = random.Random(own.seed)
    same = runs = kills = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        references: dict[str, tuple[Path, float]] = {}
        for number in count():
            if kills >= own.kills:
                break
            case = list(CASES)[number % len(CASES)]
            launcher, case_flags = CASES[case]
            command = [*launcher, *FIT, *case_flags, *flags]
            if case not in references:
                name = f"undisturbed{number}"
                train([*command, "--name", name])
                run = load_run(Path("lightning_logs") / name)
                references[case] = run.folder, run.record["fit_seconds"]
                print(f"{case}, undisturbed: {run.record['fit_seconds']:.1f} s", flush=True)
            reference, whole = references[case]
            run_folder, stops = Path("lightning_logs") / str(number), []
            start = resume = ["--name", str(number)]
            for _ in range(moments.randint(1, 3)):
                moment = moments.uniform(0, 0.5 * whole)
                if not train([*command, *resume], moment):
                    break
                kills += 1
                last, step = run_folder / "checkpoints/last.ckpt", 0
                if last.exists():
                    step = torch.load(last, weights_only=True)["global_step"]
                    resume = ["--ckpt_path", str(run_folder)]
                else:  # killed before training began
                    shutil.rmtree(run_folder)
                    resume = start
                stops.append(f"after {moment:.1f} s with {step:,} updates saved")
            else:
                train([*command, *resume])
            if not stops:
                continue
            runs += 1
            equal = is_same(reference, run_folder)
            same += equal
            print(f"{case}, killed {', '.join(stops)}: {'same' if equal else 'DIFFERENT'}", flush=True)
    print(f"{kills} kills: {same} of {runs} runs ended as the undisturbed run did")
    sys.exit(same != runs)


if __name__ == "__main__":
    main()
