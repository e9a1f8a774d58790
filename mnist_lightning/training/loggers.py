"""The two loggers of a run: both write into the run folder and continue the files there."""

import csv
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image

from mnist_lightning.checkpoints import as_list
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_csv
from mnist_lightning.inference import evaluating

HPARAMS_METRICS = ("val/best_acc", "val/acc", "val/loss", "test/acc")
# The charts of TensorBoard's tab Custom Scalars; it matches names as regular expressions.
CHARTS = {
    "Training and validation": {
        "loss": ["Multiline", ["(train|val)/loss$"]],
        "accuracy": ["Multiline", ["(train|val)/acc$"]],
        "training loss of single batches": ["Multiline", ["train/loss_step"]],
    }
}


class TensorBoardRunLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, with ``CHARTS``, the network's graph, pictures and HPARAMS.

    Lightning would list every argument there, and no metric, since none is known when training
    begins. This one lists what runs differ in, and TensorBoard adds the last value of each of
    ``HPARAMS_METRICS``. It writes no ``hparams.yaml``: ``config.yaml`` says more.

    Args:
        folder: The run folder.
        resumed_step: Number of updates in the checkpoint of a resumed run; later rows are removed.
        final_step: Number of updates of a trained run: what is logged now belongs to its end.
    """

    def __init__(
        self, folder: Path, resumed_step: int | None = None, final_step: int | None = None
    ) -> None:
        super().__init__(
            save_dir=folder, name="", version="", default_hp_metric=False, purge_step=resumed_step
        )
        self.final_step = final_step

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``show_settings`` writes the HPARAMS tab."""

    @rank_zero_only
    def show_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the HPARAMS tab and ``CHARTS``. TensorBoard sorts HPARAMS' columns by name.

        Args:
            settings: Those of ``run.json``.
        """
        # Here, since TensorBoard takes a while to import.
        from torch.utils.tensorboard.summary import hparams

        arguments = settings["net_arguments"] or {}
        names = ("augmentation", "batch_size", "lr", "lr_scheduler", "optimizer", "seed")
        columns = {name: settings[name] for name in names}
        # The first argument is the one that people vary most, such as the hidden sizes.
        first = [str(value) for value in arguments.values()][:1]
        columns["architecture"] = " ".join([settings["network"], *first])
        columns["epochs"], columns["trained_on"] = settings["max_epochs"], settings["dataset"]
        for name, value in arguments.items():
            columns[f"net_{name}"] = value
        for name, value in columns.items():
            if not isinstance(value, (int, float)):
                columns[name] = str(value or "none")
        metrics = dict.fromkeys(HPARAMS_METRICS, 0.0)  # only their names are written
        for summary in hparams(columns, metrics):  # type: ignore[no-untyped-call]
            self.experiment.file_writer.add_summary(summary)
        self.experiment.add_custom_scalars(CHARTS)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: D102
        if self.final_step is not None:  # Lightning counts a test's updates from 0
            step = self.final_step
        # Lightning adds the epoch, which would be a chart.
        super().log_metrics({name: metrics[name] for name in metrics if name != "epoch"}, step)

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Any = None) -> None:  # type: ignore[override]  # noqa: D102
        net = getattr(model, "net", None)
        if net is None or self.final_step is not None:
            return
        try:  # in evaluation mode, because dropout would make two traces differ
            with warnings.catch_warnings(action="ignore"), evaluating(net) as like:
                self.experiment.add_graph(net, torch.zeros(1, 1, 28, 28).to(like))
        except Exception as error:  # a compiled network cannot be traced, but trained
            reason = str(error).strip().splitlines()[:1]
            rank_zero_warn(f"TensorBoard shows no graph of {type(net).__name__}: {reason}")

    def show(self, stage: str, pngs: Mapping[str, bytes], step: int = 0) -> None:
        """Log PNG pictures as ``<stage>/<name>``, at ``final_step`` if there is one."""
        step = self.final_step or step
        for name, png in pngs.items():
            image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            self.experiment.add_image(f"{stage}/{name}", image, step, dataformats="HWC")

    @rank_zero_only
    def save(self) -> None:  # noqa: D102
        self.experiment.flush()


def tensorboards(trainer: L.Trainer) -> list[TensorBoardRunLogger]:
    """Return the run's TensorBoard logger, if it has one."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardRunLogger)]


def show_pictures(
    folder: Path, step: int, pngs: Mapping[str, bytes], stage: str = "pictures"
) -> None:
    """Show PNG pictures in the TensorBoard of a run that is trained.

    Args:
        folder: The run folder.
        step: Where on the axis of updates; a run's end is the ``global_step`` of its ``run.json``.
        pngs: PNG files under the names that TensorBoard shows.
        stage: The heading above the names.
    """
    logger = TensorBoardRunLogger(folder, final_step=step)
    logger.show(stage, pngs)
    logger.finalize("success")


class HistoryLogger(Logger):
    """Write ``metrics.csv``: a row per step that logged anything, a column per metric.

    Each call appends a row, which takes as long in a long run as in a short one; ``write`` joins
    those of a step.

    Lightning's CSVLogger overwrites the file when a run is resumed, and writes two rows for
    training and validation of an epoch. This one continues the file it finds.

    Args:
        folder: The run folder.
        resumed_step: Number of updates in the checkpoint of a resumed run; later rows are removed.
    """

    name = version = ""

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        history = read_history(self.path) if resumed_step is not None else []
        self._rows: dict[int, dict[str, Any]] = {}
        for row in history:
            if int(row["step"]) < (resumed_step or 0):
                self._rows[int(row["step"])] = row
        self._columns: list[str] = []  # of the file

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a run's hyperparameters are in its ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of their step, and append them to the file."""
        assert step is not None
        # Nine digits keep a float32 exactly.
        row = {name: f"{value:.9g}" for name, value in metrics.items()}
        self._rows.setdefault(step, {"step": step}).update(row)
        if not row.keys() <= set(self._columns):
            self.write()
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, self._columns, lineterminator="\n")
                writer.writerow(row | {"step": step})
        except PermissionError:  # the next write says so
            pass

    @rank_zero_only
    def write(self) -> None:
        """Write the whole file, with one row per step."""
        names = {name for row in self._rows.values() for name in row}
        self._columns = ["epoch", "step", *sorted(names - {"epoch", "step"})]
        rows = [self._rows[step] for step in sorted(self._rows)]
        try:
            write_csv(self.path, self._columns, rows)
        except PermissionError as error:  # on Windows, while a spreadsheet shows the file
            rank_zero_warn(
                f"{self.path} cannot be written: {error.strerror}; close the program that shows it"
            )


def read_history(path: Path) -> list[dict[str, str]]:
    """Read a ``metrics.csv``: per step a mapping from column to text, ``""`` if not logged.

    Returns:
        The rows; none if there is no such file.

    Raises:
        InputError: If the file is damaged.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        # A killed run may leave half a line.
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        for row in csv.DictReader(io.StringIO(whole)):
            int(row["epoch"] or 0), int(row["step"]), [float(cell or 0) for cell in row.values()]
            logged = {name: cell for name, cell in row.items() if cell}
            rows.setdefault(row["step"], row).update(logged)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged: {error!s:.200}; move it away to continue without the history"
        ) from error
    return [*rows.values()]


def all_loggers(given: Any, own: list[Any]) -> Any:
    """Return the Trainer's loggers: the run's and the given ones; none if False is given."""
    if given is False:
        return False
    return own + [logger for logger in as_list(given) if logger is not True] or False
