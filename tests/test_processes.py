"""Two processes train exactly resumable runs, and measure and predict what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray

from mnist_lightning import UCIDigits, load_run
from mnist_lightning.cli.main import main

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt", reason="the launcher is a bash script"),
]
LAUNCHER = ROOT / "configs/cluster/torchrun.sh"


class Odd(UCIDigits):
    """An odd number of test images, which two processes cannot share evenly."""

    def load(self, split: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        images, labels = super().load(split)
        return (images[:333], labels[:333]) if split == "test" else (images, labels)


def launch(folder: Path, *args: str, code: int = 0) -> str:
    """Run a verb with two processes, and return what they print."""
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    env = (
        os.environ
        | own
        | {"PROCESSES": "2", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    )
    done = subprocess.run(
        [LAUNCHER, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_batches_of_unequal_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process has a validation batch more; the numbers are those of one process."""
    # Of 287 images they validate 144 and 143; of 1,150 they train on 575 each, and one image is
    # left over.
    sizes = ["--data.eval_batch_size", "143", "--data.batch_size", "287"]
    flags = [
        "--data",
        "UCIDigits",
        *sizes,
        "--net",
        "CNN",
        "--net.width",
        "2",
        "--trainer.max_epochs",
        "2",
    ]
    launch(tmp_path, "fit", *flags, "--name", "a")
    monkeypatch.chdir(tmp_path)
    run = load_run("lightning_logs/a")
    assert run.record["global_step"] == 2 * 2
    best = run.record["best_epoch"]
    metrics = run.validate()
    assert metrics["accuracy"] == pytest.approx(run.history[best]["val/acc"], rel=1e-6)
    assert metrics["loss"] == pytest.approx(run.history[best]["val/loss"], rel=1e-5)
    assert f"{metrics['accuracy']:.2%}   loss {metrics['loss']:.4f}" in launch(tmp_path, "validate")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that two processes trained undisturbed."""
    folder = tmp_path_factory.mktemp("two")
    printed = launch(
        folder, "fit", "--data", "UCIDigits", "--trainer.max_epochs", "4", "--name", "whole"
    )
    assert printed.count("Run folder: ") == 1  # one process prints
    return folder / "lightning_logs"


def test_results_of_one_process(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(logs.parent)
    flags = [
        "--ckpt_path",
        "lightning_logs/whole",
        "--data",
        "test_processes.Odd",
        "--data.eval_batch_size",
        "166",
    ]
    metrics, tables = [], []
    for processes in (1, 2):
        for verb in ("test", "predict"):
            if processes == 1:
                assert main([verb, *flags, "--trainer.accelerator", "cpu"]) == 0
            else:
                launch(logs.parent, verb, *flags)
        metrics.append(json.loads((logs / "whole/report_Odd/metrics.json").read_text()))
        tables.append(np.loadtxt(logs / "whole/predictions_Odd.csv", delimiter=",", skiprows=1))
    for name in ("loss", "ece"):  # sums of floats depend on their order
        assert metrics[1].pop(name) == pytest.approx(metrics[0].pop(name), rel=1e-6)
    assert metrics[1] == metrics[0]
    assert metrics[0]["num_examples"] == 333
    np.testing.assert_array_equal(tables[1][:, :2], tables[0][:, :2])  # index and digit
    np.testing.assert_allclose(tables[1], tables[0], rtol=2e-5, atol=1e-7)
