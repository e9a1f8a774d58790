import csv
from pathlib import Path

import pytest

from mnist_lightning.errors import InputError
from mnist_lightning.loggers import HistoryLogger, read_history


def test_a_step_is_a_row_and_a_metric_a_column(tmp_path: Path) -> None:
    logger = HistoryLogger(tmp_path)
    logger.log_metrics({"val/acc": 0.5, "epoch": 0}, step=9)
    logger.log_metrics({"train/acc": 0.1, "epoch": 0}, step=9)
    logger.log_metrics({"train/acc": 1 / 3, "epoch": 1}, step=19)
    text = (tmp_path / "metrics.csv").read_text()
    assert text == "epoch,step,train/acc,val/acc\n0,9,0.1,0.5\n1,19,0.333333333,\n"
    assert read_history(tmp_path / "metrics.csv") == list(csv.DictReader(text.splitlines()))


def test_a_continued_run_keeps_its_rows_and_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    first = HistoryLogger(tmp_path)
    for step in (9, 19, 29):
        first.log_metrics({"val/acc": step / 100, "epoch": step // 10}, step)
    HistoryLogger(tmp_path, resumed_step=10).log_metrics({"val/acc": 0.5, "epoch": 1}, 14)
    rows = [(row["step"], row["val/acc"]) for row in read_history(tmp_path / "metrics.csv")]
    assert rows == [("9", "0.09"), ("14", "0.5")]


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(b"epoch,step\n0,\xff\n")
    with pytest.raises(InputError, match=r"metrics.csv is damaged: a row has no epoch or step; move it away"):
        HistoryLogger(tmp_path)


def test_no_history_is_an_empty_one(tmp_path: Path) -> None:
    assert read_history(tmp_path / "metrics.csv") == []
