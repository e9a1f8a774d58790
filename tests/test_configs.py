"""The recipes in configs/ parse, say what they claim, and are what the command line does by itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from mnist_lightning.cli import main

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def printed_config(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *args, "--print_config"])
    assert exit_.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_parses_and_its_header_gives_its_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"python -m mnist_lightning fit --config configs/{path.name}" in path.read_text()
    assert printed_config(capsys, "--config", str(path))["model"]["net"]["class_path"] == "mnist_lightning.MLP"


def test_the_default_recipe_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_config(capsys, "--config", str(ROOT / "configs/default.yaml")) == printed_config(capsys)


def test_the_debug_config_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(ROOT / "configs/debug.yaml")]) == 0
    record = json.loads(Path("lightning_logs/version_0/run.json").read_text())
    assert (record["dataset"], record["epochs"], record["global_step"]) == ("UCIDigits", 2, 10)
