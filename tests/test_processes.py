"""Several processes find the same as one: metrics to the last count, predictions in the data set's order."""

import contextlib
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray

from mnist_lightning import DigitDataModule, UCIDigits
from mnist_lightning.cli import main

RUN = Path("lightning_logs/version_0")


class ManyDigits(DigitDataModule):
    """UCI digits to train on, and some thousands of them, shifted and noisy, to test on."""

    def __init__(self, number: int = 10_000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number

    def load(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        images, labels = UCIDigits().load(split)
        if split == "test":
            rng = np.random.default_rng(0)
            chosen = rng.integers(0, len(images), self.number)
            images = np.roll(images[chosen], rng.integers(-4, 5), axis=2) // 2
            images += rng.integers(0, 100, images.shape, np.uint8)
            labels = labels[chosen]
        return images, labels


def start(processes: int, *flags: str) -> None:
    """Run a verb in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    devices = ("--trainer.accelerator", "cpu", "--trainer.devices", str(processes))
    command = [sys.executable, *launcher, "-m", "mnist_lightning", *flags, *devices]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, trained by two processes."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        start(2, "fit", "--data", "test_processes.ManyDigits", "--trainer.max_epochs", "2")
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
        assert json.loads((RUN / "run.json").read_text())["devices"] == 2
    return folder


def found(folder: Path, verb: str) -> Any:
    """What a verb wrote: all metrics, or the table of predictions."""
    (run,) = (folder / "lightning_logs").iterdir()
    if verb == "test":
        return json.loads((run / "report/metrics.json").read_text())
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.slow
@pytest.mark.parametrize("number", [10_000, 9_999])
@pytest.mark.parametrize("verb", ["test", "predict"])
def test_two_and_three_processes_find_the_same_as_one(
    trained: Path, verb: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        shutil.copytree(trained, folder)
        monkeypatch.chdir(folder)
        flags = (verb, "--data.number", str(number))
        if processes == 1:
            assert main([*flags, "--trainer.accelerator", "cpu"]) == 0
        else:
            start(processes, *flags)
        results.append(found(folder, verb))
    one, *others = results
    for other in others:
        if verb == "test":
            # Sums of floats depend on their order: the loss is added up by each process, then over them.
            assert other.pop("loss") == pytest.approx(one["loss"], rel=1e-6)
            assert other == {name: value for name, value in one.items() if name != "loss"}
            assert other["num_examples"] == number
        else:
            assert [row[0] for row in other[1:]] == [str(index) for index in range(number)]
            assert [row[:2] for row in other] == [row[:2] for row in one]
            np.testing.assert_allclose(np.array(other[1:], float), np.array(one[1:], float), rtol=2e-5, atol=1e-7)


@pytest.mark.slow
def test_one_and_three_processes_go_on_with_the_run_of_two(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        shutil.copytree(trained, folder)
        monkeypatch.chdir(folder)
        start(processes, "fit", "--ckpt_path", "last", "--trainer.max_epochs", "4")
        record = json.loads((RUN / "run.json").read_text())
        assert (record["epochs"], record["devices"]) == (4, processes)
        # 1,150 images in batches of 32: 18 updates an epoch by two processes, then 36 by one or 12 by three.
        assert record["global_step"] == 2 * 18 + 2 * {1: 36, 3: 12}[processes]
