"""The recipes in configs/ parse, train, and say what they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT

from mnist_lightning import load_run
from mnist_lightning.cli.main import main
from mnist_lightning.recipe import FitCLI

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def settings(*args: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(FitCLI(args).text)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_gives_its_command_and_builds(path: Path) -> None:
    assert f"\n#   python -m mnist_lightning fit --config configs/{path.name}" in path.read_text(
        encoding="utf-8"
    )
    cli = FitCLI(["--config", str(path)])
    convolutional = {
        "cnn": "CNN",
        "cnn_fast": "FastCNN",
        "cnn_robust": "FastCNN",
        "transfer_uci": "CNN",
    }
    assert type(cli.model.net).__name__ == convolutional.get(path.stem, "MLP")
    assert cli.datamodule.val_fraction == 0.2


def test_the_default_config_is_the_built_in_default() -> None:
    assert settings("--config", str(ROOT / "configs/default.yaml")) == settings()


@pytest.mark.usefixtures("folder")
def test_the_fast_config_fits_its_schedule_to_the_run() -> None:
    fast = [
        "fit",
        "--config",
        str(ROOT / "configs/fast.yaml"),
        "--data",
        "UCIDigits",
        "--trainer.accelerator",
        "cpu",
    ]
    assert main([*fast, "--trainer.max_epochs", "7"]) == 0
    assert load_run().record["global_step"] == 7 * 5
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=35)
    rates = []
    for _ in range(35):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [row["lr"] for row in load_run().history if "lr" in row] == pytest.approx(rates[::5])
    assert main(["fit", "--ckpt_path", "last", "--epochs", "8"]) == 0
