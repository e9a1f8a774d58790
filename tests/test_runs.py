"""The table of the runs: what it shows, how it sorts, and folders that are damaged or foreign."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mnist_lightning.cli import main
from mnist_lightning.training.runs import COLUMNS, runs, runs_table

CONFIG = "model:\n  net:\n    class_path: mynet.Old\n    init_args: {}\n"


def write(name: str, record: Any, test: Any = None, config: str = "") -> Path:
    """Write a run folder."""
    folder = Path("lightning_logs", name)
    (folder / "report").mkdir(parents=True)
    (folder / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    (folder / "config.yaml").write_text(config)
    if test is not None:
        (folder / "report/metrics.json").write_text(json.dumps({"accuracy": test}))
    return folder


@pytest.fixture
def three(folder: Path) -> None:
    """Three runs: the oldest has no network and no start in its record, and the newest was not tested."""
    old = write("old", {"dataset": "MNIST", "epochs": 10, "best_val_acc": 0.9768}, 0.9775, CONFIG)
    os.utime(old / "run.json", (1e9, 1e9))
    record = {"dataset": "UCIDigits", "network": "CNN", "started": "2026-11-26T17:31:59+00:00", "epochs": 3}
    write("b", record | {"best_val_acc": 0.99}, 0.98)
    write("a", record | {"best_val_acc": None, "started": "2026-11-26T17:20:00-01:00"})


@pytest.mark.usefixtures("three")
def test_rows_and_table() -> None:
    rows = {row["name"]: row for row in runs()}
    assert list(rows) == ["a", "b", "old"]
    assert list(rows["b"].values())[:-1] == ["b", "UCIDigits", "CNN", 3, 0.99, 0.98]
    assert datetime.fromisoformat(rows["b"]["when"]) == datetime.fromisoformat("2026-11-26T17:31:59+00:00")
    assert list(rows["old"].values())[:-1] == ["old", "MNIST", "Old", 10, 0.9768, 0.9775]
    assert datetime.fromisoformat(rows["old"]["when"]).timestamp() == 1e9
    lines = [line.split() for line in runs_table(runs()).splitlines()]
    assert lines[0] == list(COLUMNS)
    start = datetime.fromisoformat("2026-11-26T17:31:59+00:00").astimezone()
    assert lines[2] == ["b", "UCIDigits", "CNN", "3", "99.00%", "98.00%", f"{start:%Y-%m-%d}", f"{start:%H:%M}"]
    assert lines[1][3:6] == ["3", "-", "-"]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("column", "order"),
    [("name", "a b old"), ("data", "old a b"), ("epochs", "old a b"), ("validation", "b old a"), ("test", "b old a")],
)
def test_sorting(column: str, order: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--sort", column, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == runs(sort=column)
    assert [row["name"] for row in rows] == order.split()


def test_damaged_and_foreign_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "No runs in lightning_logs: train one first, python -m mnist_lightning fit\n"
    for name, text in {"cut": '{"epochs": 3', "list": "[1]", "empty": "", "binary": "\0", "deep": "[" * 10**5}.items():
        write(name, text)
    Path("lightning_logs/describe_MNIST").mkdir()
    Path("lightning_logs/file").write_text("")
    assert runs() == []
    strange = {"dataset": ["x"], "network": 3, "epochs": "many", "best_val_acc": float("nan"), "started": "yesterday"}
    write("strange", strange, 10**400, "model: [")
    write("far", {"dataset": "\x1b[2J", "started": "0001-01-01T00:00:00+23:59"}, "high", "model: {net: 3}")
    assert main(["runs", "--json", "--sort", "data"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [list(row.values())[:-1] for row in rows] == [
        ["far", "\x1b[2J", None, None, None, None],
        ["strange", None, None, None, None, None],
    ]
    assert main(["runs", "--log_dir", "lightning_logs"]) == 0
    assert "\\x1b[2J" in capsys.readouterr().out
