"""The table of the runs: what it shows, how it sorts, and folders that are damaged or foreign."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import files_in, refused_line
from test_hostile import checkpoint_bytes

from mnist_lightning import load_run
from mnist_lightning.cli.main import main
from mnist_lightning.training.record import git_commit
from mnist_lightning.training.resume import find_last
from mnist_lightning.training.run import find_checkpoint
from mnist_lightning.training.runs import COLUMNS, annotate, runs, runs_table


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
        ["a", "UCIDigits", "CNN", 3, None, None, "2026-11-26T18:20:00+01:00", [], ""],
        ["b", "UCIDigits", "CNN", 3, 0.99, 0.98, "2026-11-26T17:31:59+01:00", [], ""],
        ["old", "MNIST", None, 10, 0.9768, 0.9775, None, [], ""],
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


@pytest.mark.usefixtures("three")
def test_tags_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = "lightning_logs/a", "lightning_logs/b"
    before = json.loads(Path(a, "run.json").read_text())
    assert main(["runs", a, b, "--tag", "baseline", "old"]) == 0
    assert main(["runs", a, "--untag", "old", "--note", "two words"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[-3:] == ["baseline", "two", "words"]
    assert json.loads(Path(a, "run.json").read_text()) == before | {
        "tags": ["baseline"],
        "note": "two words",
    }
    assert {row["name"] for row in runs(tagged="baseline")} == {"a", "b"}
    assert [row["name"] for row in runs(tagged="old")] == ["b"]
    assert main(["runs", "--tagged", "old"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["name", "b"]
    assert "name the runs first" in refused_line(capsys, "runs", "--tag", "x")
    assert "lightning_logs/none is no run" in refused_line(
        capsys, "runs", a, "lightning_logs/none", "--tag", "new"
    )
    assert "new" not in Path(a, "run.json").read_text()


@pytest.mark.usefixtures("three")
def test_delete(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    left = {path.name for path in Path("lightning_logs").iterdir()}
    outside = Path("outside")
    shutil.copytree("lightning_logs/a", outside)
    Path("lightning_logs/link").symlink_to(outside.resolve())
    Path("own").mkdir()
    for wrong in ("own", "lightning_logs", "lightning_logs/link", "lightning_logs/none", "."):
        line = refused_line(capsys, "runs", "lightning_logs/a", wrong, "--delete", "--yes")
        assert line.startswith(f"{wrong} is no run folder")
    assert "add --yes" in refused_line(capsys, "runs", "lightning_logs/a", "--delete")
    assert {path.name for path in Path("lightning_logs").iterdir()} == left | {"link"}
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, kept in (("n", left), ("", left), ("y", left - {"a"})):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert main(["runs", "lightning_logs/a", "--delete"]) == 0
        assert {path.name for path in Path("lightning_logs").iterdir()} == kept | {"link"}
    assert main(["runs", "lightning_logs/b", "lightning_logs/old", "--delete", "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Deleted: 2 runs"
    assert files_in(outside)


def test_a_resumed_run_keeps_its_tags_and_knows_its_commit(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate([first], ["kept"], note="why")
    assert main(["fit", "--ckpt_path", str(first), "--epochs", "3"]) == 0
    record = json.loads((first / "run.json").read_text())
    assert (record["tags"], record["note"], record["epochs"]) == (["kept"], "why", 3)
    assert record["git_commit"] is None  # no repository
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        settings = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", *settings, *command], check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert git_commit() == head
    Path("file").write_text("1")
    subprocess.run(["git", "add", "file"], check=True)
    assert git_commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


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
        assert list(other.values()) == ["other", "\x1b[2J", *[None] * 5, [], ""]
        assert list(strange.values()) == ["strange", *[None] * 6, [], ""]
    assert main(["runs", "--log_dir", "lightning_logs"]) == 0
    assert "\\x1b[2J" in capsys.readouterr().out
