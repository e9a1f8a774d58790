"""Runs that are killed at random moments and resumed end as the undisturbed run does, to the bit.

MNIST_LIGHTNING_KILLS=25 pytest -m long tests/test_kills.py   # so many kills of each case
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from conftest import ROOT
from test_resume import assert_same

KILLS = int(os.environ.get("MNIST_LIGHTNING_KILLS", "2"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has none"),
    pytest.mark.timeout(600 * KILLS),
]
FIT = ["-m", "mnist_lightning", "fit", "--data", "UCIDigits", "--device", "cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
CASES = {
    "one process": [*FIT, "--epochs", "40"],
    "max_steps": [*FIT, "--epochs", "-1", "--trainer.max_steps", "1000"],
    "two processes": [*TORCHRUN, *FIT, "--epochs", "20", "--trainer.devices", "2"],
}


def train(folder: Path, command: Sequence[str], seconds: float | None = None) -> bool:
    """Train, kill it so many seconds after it began, and return whether that was before its end."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Run folder: " in line:
            break
    if seconds is not None and process.poll() is None:
        time.sleep(seconds)
        find = ["pgrep", "-P", str(process.pid)]
        workers = subprocess.run(find, capture_output=True, text=True).stdout.split()
        process.kill()
        for worker in workers:  # torchrun's, which would train on without it
            with suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGKILL)
    lines.append(process.communicate()[0])
    assert process.returncode in (0, -signal.SIGKILL), "".join(lines)
    return process.returncode != 0


def start_of(run: Path) -> list[str]:
    """Return the flags that resume a run, or begin it if it was killed before training began."""
    if (run / "checkpoints/last.ckpt").exists():
        return ["--ckpt_path", str(run)]
    shutil.rmtree(run, ignore_errors=True)
    return ["--name", run.name]


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments(case: str, tmp_path: Path) -> None:
    command, logs = CASES[case], tmp_path / "lightning_logs"
    train(tmp_path, [*command, "--name", "whole"])
    seconds = json.loads((logs / "whole/run.json").read_text())["fit_seconds"]
    moments, kills = random.Random(case), 0
    for number in count():
        if kills >= KILLS:
            break
        run = logs / str(number)
        for _ in range(moments.randint(1, 3)):
            moment = moments.uniform(0, 0.5 * seconds)
            was_killed = train(tmp_path, [*command, *start_of(run)], moment)
            if not was_killed:
                break
            kills += 1
        else:
            train(tmp_path, [*command, *start_of(run)])
        assert_same(run, logs / "whole")
