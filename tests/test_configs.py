"""The recipes in configs/ parse, train, and say what they are."""

import re
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


def test_the_readme_says_what_the_files_say() -> None:
    """The figures of a recipe stand in its file and in the README; both are the same."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\(configs/\w+\.yaml\).*$", readme, re.MULTILINE)
    assert sorted(rows) == [
        path.stem for path in CONFIGS if path.stem != "debug" and path.stem != "transfer_uci"
    ]
    for path in CONFIGS:
        (row,) = re.findall(rf"^\| \[`{path.stem}`\].*$", readme, re.MULTILINE) or [""]
        figures = re.findall(r"\d\d\.\d\d ± \d\.\d\d%|(?<=\| )\d+\.\d s", row)
        comment = path.read_text(encoding="utf-8").partition("\nmodel:")[0]
        assert [figure for figure in figures if figure not in comment] == [], path.name


def test_the_docs_repeat_the_figures_of_the_readme() -> None:
    """docs/accuracy.md begins with the figures of the convolutional network."""
    readme, page = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/accuracy.md")
    )
    section = page.partition("## The convolutional network")[2].partition("###")[0]
    figures = re.findall(r"\d\d\.\d\d ± \d\.\d\d%|\d\d\.\d\d%", section)
    assert len(figures) >= 4
    assert [figure for figure in figures if figure not in readme and figure != "99.75%"] == []
