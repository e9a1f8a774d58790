"""What a start imports beyond Lightning itself: nothing heavy that the verb does not need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# What takes long to import and only some verbs need.
SOME_VERBS = {
    *("cv2", "polars", "pyarrow", "pandas", "sklearn", "jinja2", "tensorboard", "torch.utils.tensorboard"),
    *("mnist_lightning.evaluation.figures", "mnist_lightning.doctor", "mnist_lightning.checks"),
}
# What Lightning mostly imports itself, by way of torchmetrics, and training may ask for where it has not.
LIGHTNINGS = {"PIL.Image", "matplotlib", "matplotlib.pyplot", "scipy", "torchvision", "torch._dynamo"}
# One process for all, since each start takes seconds: what is imported is noted after each step, and stays imported.
PROGRAM = """
import contextlib, json, sys
import lightning.pytorch
from lightning.pytorch.cli import LightningCLI

steps = {"Lightning": [0, sorted(sys.modules)]}

def step(name, *args):
    try:
        with contextlib.redirect_stdout(sys.stderr):
            code = main(args)
    except SystemExit as end:  # of --help
        code = end.code
    steps[name] = [code, sorted(sys.modules)]

from mnist_lightning.cli import main
import numpy as np
from mnist_lightning import DigitDataModule

class Noise(DigitDataModule):
    def load(self, split):
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (100, 28, 28), np.uint8), np.arange(100) % 10

fit = ["fit", "--data", "Noise", "--trainer.accelerator", "cpu"]
step("--help", "--help")
step("fit --help", "fit", "--help")
step("error", *fit, "--nonsense", "1")
step("fit", *fit, "--trainer.fast_dev_run", "1")
step("run", *fit, "--trainer.max_epochs", "1")
step("UCIDigits", "fit", "--data", "UCIDigits", "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1")
print(json.dumps(steps))
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, set[str]]]:
    """The exit code of each step, and the modules imported by then that Lightning alone had not imported."""
    folder: Path = tmp_path_factory.mktemp("startup")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before = set(found["Lightning"][1])
    return {name: (code, set(modules) - before) for name, (code, modules) in found.items()}


@pytest.mark.parametrize(("step", "code"), [("--help", 0), ("fit --help", 0), ("error", 2)])
def test_help_and_errors_import_nothing_heavy_beyond_lightning(
    steps: dict[str, tuple[int, set[str]]], step: str, code: int
) -> None:
    assert steps[step][0] == code
    assert steps[step][1] & (SOME_VERBS | LIGHTNINGS) == set()


def test_fit_imports_what_it_needs_when_it_needs_it(steps: dict[str, tuple[int, set[str]]]) -> None:
    assert steps["fit"][0] == steps["run"][0] == steps["UCIDigits"][0] == 0
    dry, run, uci = (steps[name][1] & SOME_VERBS for name in ("fit", "run", "UCIDigits"))
    assert dry == set()
    assert run == {"tensorboard", "torch.utils.tensorboard", "mnist_lightning.evaluation.figures"}  # curves.png
    assert uci - run == {"sklearn"}
