"""The two loggers of a run, both writing into the run folder itself and both able to continue it."""

import csv
import io
import os
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.errors import InputError
from mnist_lightning.files import open_regular, write_atomic

# Or an empty cell.
NUMBER = re.compile(r"([-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]{1,3})?|[-+]?(nan|inf)|)", re.IGNORECASE)
HPARAMS_METRICS = ("val/loss", "val/acc")


class TensorBoardRunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, with the network's graph and an HPARAMS tab that shows real metrics.

    Lightning writes the hyperparameters before there is any metric, so the HPARAMS tab stays empty or shows -1.
    This one waits for the first validation. It writes no ``hparams.yaml``: a run's ``config.yaml`` says more.

    Args:
        folder: The run folder.
        resumed_step: How many updates the run had made where it is continued; what it logged later is forgotten.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__(save_dir=folder, name="", version="", default_hp_metric=False, purge_step=resumed_step)
        self._pending: dict[str, Any] = {}

    @rank_zero_only
    def log_hyperparams(  # noqa: D102
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        given = vars(params) if isinstance(params, Namespace) else params
        self._pending = {name: value for name, value in given.items() if not name.startswith("_")}  # Lightning's own

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: D102
        remaining = dict(metrics)
        if self._pending and all(name in metrics for name in HPARAMS_METRICS):
            params, self._pending = self._pending, {}
            super().log_hyperparams(params, {name: remaining.pop(name) for name in HPARAMS_METRICS}, step)
        super().log_metrics(remaining, step)

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Any = None) -> None:  # type: ignore[override]  # noqa: D102
        if not isinstance(model, DigitClassifier):
            return
        weight = next(model.parameters())
        images = torch.zeros(1, 1, 28, 28, device=weight.device, dtype=weight.dtype)
        was_training = model.net.training
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # TensorBoard still traces
            self.experiment.add_graph(model.net.eval(), images)  # dropout would make the trace differ from itself
        model.net.train(was_training)

    @rank_zero_only
    def save(self) -> None:  # noqa: D102
        self.experiment.flush()


class HistoryLogger(Logger):
    """Writes ``metrics.csv``: one row per step that logged anything, one column per metric.

    Lightning's CSVLogger starts afresh when a run is resumed, and splits training and validation of an epoch into
    two rows. This one continues the file it finds.

    Args:
        folder: The run folder.
        resumed_step: How many updates the run had made where it is continued; what it logged later is forgotten.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        rows = {int(row["step"]): row for row in read_history(self.path)}
        self._rows: dict[int, dict[str, Any]] = {
            step: row for step, row in rows.items() if resumed_step is None or step < resumed_step
        }

    @property
    def name(self) -> str:  # noqa: D102
        return ""

    @property
    def version(self) -> str:  # noqa: D102
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a run's hyperparameters are in its ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of their step and write the file."""
        assert step is not None
        # Nine digits keep a float32 exactly.
        row = {name: f"{value:.9g}" for name, value in metrics.items()}
        self._rows.setdefault(step, {"step": step}).update(row)
        names = {name for row in self._rows.values() for name in row}
        columns = ["epoch", "step", *sorted(names - {"epoch", "step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows[step] for step in sorted(self._rows))
        write_atomic(self.path, text.getvalue())


def read_history(path: Path) -> list[dict[str, str]]:
    """Read a ``metrics.csv``: a mapping from column to text per row, ``""`` for what a step did not log.

    Raises:
        InputError: If the file is damaged.
    """
    if not os.path.exists(path):
        return []
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8", errors="replace", newline="") as text:
            rows = list(csv.DictReader(text))
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}; move it away to go on without the history") from error
    if not all(re.fullmatch("[0-9]{1,15}", row.get(name) or "") for row in rows for name in ("epoch", "step")):
        raise InputError(f"{path} is damaged: a row has no epoch or step; move it away to go on without the history")
    if not all(isinstance(cell, str) and NUMBER.fullmatch(cell) for row in rows for cell in row.values()):
        raise InputError(f"{path} is damaged: a cell is no number; move it away to go on without the history")
    return rows
