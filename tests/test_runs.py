"""The table of the runs: what it shows, how it sorts, and folders that are damaged or foreign."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_hostile import checkpoint_bytes

from mnist_lightning import load_run
from mnist_lightning.cli.main import main
from mnist_lightning.training.resume import find_last
from mnist_lightning.training.run import find_checkpoint
from mnist_lightning.training.runs import COLUMNS, runs, runs_table


def write(name: str, record: Any, test: Any = None) -> None:
    """Write a run folder."""
    folder = Path("lightning_logs", name)
    (folder / "report").mkdir(parents=True)
    (folder / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    if test is not None:
        (folder / "report/metrics.json").write_text(json.dumps({"accuracy": test}))


@pytest.fixture
def three(folder: Path) -> None:
    """Three runs: the oldest has no network and no start, and the newest was not tested."""
    write("old", {"dataset": "MNIST", "epochs": 10, "best_val_acc": 0.9768}, 0.9775)
    record = {
        "dataset": "UCIDigits",
        "network": "CNN",
        "started": "2026-11-26T17:31:59+01:00",
        "epochs": 3,
    }
    write("b", record | {"best_val_acc": 0.99}, 0.98)
    write("a", record | {"best_val_acc": None, "started": "2026-11-26T18:20:00+01:00"})


def test_the_newest_run_is_the_one_that_started_last(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the times of its files and its time zone; a folder without a run.json is no run."""
    starts = {
        "a": "2026-11-26T18:20:00+01:00",
        "b": "2026-11-26T17:50:00.000+00:00",
        "c": "2026-11-26T09:00:00-08:00",
    }
    for name, start in starts.items():
        write(name, {"dataset": "UCIDigits", "started": start})
        Path("lightning_logs", name, "config.yaml").write_text("data: UCIDigits")
        (checkpoints := Path("lightning_logs", name, "checkpoints")).mkdir()
        (checkpoints / "last.ckpt").write_bytes(checkpoint_bytes())
    newest = ["b", "a", "c"]  # 17:50, 17:20 and 17:00 in UTC
    assert [row["name"] for row in runs()] == newest
    for file in (
        Path("lightning_logs/a/checkpoints/best.ckpt"),
        Path("lightning_logs/other/checkpoints/best.ckpt"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(checkpoint_bytes())
    found = [find_checkpoint(which) for which in (None, "last", "best")]
    assert [str(path.relative_to("lightning_logs")) for path in found] == [
        "b/checkpoints/last.ckpt",
        "b/checkpoints/last.ckpt",
        "b/checkpoints/last.ckpt",
    ]
    assert load_run().checkpoint == find_last("last") == found[0]
    for args, line in (
        ([], "lightning_logs/b/checkpoints/last.ckpt (the last of the newest run)"),
        (["--ckpt_path", "lightning_logs/c"], "lightning_logs/c/checkpoints/last.ckpt"),
        (["--ckpt_path", "lightning_logs/a"], "lightning_logs/a/checkpoints/best.ckpt"),
    ):
        assert main(["validate", "--data", "UCIDigits", *args]) == 0
        assert capsys.readouterr().out.splitlines()[0] == f"Checkpoint: {line}"


@pytest.mark.usefixtures("three")
def test_rows_and_table() -> None:
    assert [list(row.values()) for row in runs()] == [
        ["a", "UCIDigits", "CNN", 3, None, None, "2026-11-26T18:20:00+01:00"],
        ["b", "UCIDigits", "CNN", 3, 0.99, 0.98, "2026-11-26T17:31:59+01:00"],
        ["old", "MNIST", None, 10, 0.9768, 0.9775, None],
    ]
    assert [line.split() for line in runs_table(runs()).splitlines()] == [
        list(COLUMNS),
        ["a", "UCIDigits", "CNN", "3", "-", "-", "2026-11-26", "18:20"],
        ["b", "UCIDigits", "CNN", "3", "99.00%", "98.00%", "2026-11-26", "17:31"],
        ["old", "MNIST", "-", "10", "97.68%", "97.75%", "-"],
    ]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("column", "order"),
    [("name", "a b old"), ("network", "a b old"), ("epochs", "old a b"), ("validation", "b old a")],
)
def test_sorting(column: str, order: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--sort", column, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == runs(sort=column)
    assert [row["name"] for row in rows] == order.split()


def test_damaged_and_foreign_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert (
        capsys.readouterr().out
        == "No runs in lightning_logs: train one first, python -m mnist_lightning fit\n"
    )
    for name, text in {
        "cut": '{"epochs": 3',
        "list": "[1]",
        "empty": "",
        "binary": "\0",
        "deep": "[" * 10**5,
    }.items():
        write(name, text)
    Path("lightning_logs/describe_MNIST").mkdir()
    Path("lightning_logs/file").write_text("")
    assert runs() == []
    write(
        "strange",
        {"dataset": ["x"], "network": 3, "epochs": "many", "best_val_acc": {}, "started": 5},
        "high",
    )
    write("other", {"dataset": "\x1b[2J"}, 10**400)
    for column in COLUMNS:
        other, strange = sorted(runs(sort=column), key=lambda row: row["name"])
        assert list(other.values()) == ["other", "\x1b[2J", None, None, None, None, None]
        assert list(strange.values()) == ["strange", None, None, None, None, None, None]
    assert main(["runs", "--log_dir", "lightning_logs"]) == 0
    assert "\\x1b[2J" in capsys.readouterr().out
