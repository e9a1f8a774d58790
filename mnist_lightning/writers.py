"""Trainer callbacks that write what a checkpoint is found to do: predictions, the test report, validation figures."""

import csv
import io
import json
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mnist_lightning import runs
from mnist_lightning.data.base import DigitDataModule, GatheredDataset
from mnist_lightning.data.kaggle import Kaggle
from mnist_lightning.errors import InputError
from mnist_lightning.files import open_atomic, write_atomic
from mnist_lightning.loggers import read_history

if TYPE_CHECKING:
    from mnist_lightning.data.picture_loader import PictureBatch

PICTURE, SUBMISSION = "predictions.png", "submission.csv"
PROBABILITIES = [f"p{digit}" for digit in range(10)]


def _in_order(own: Mapping[str, Tensor], world_size: int) -> dict[str, NDArray[Any]]:
    """Gather every process's rows, and return them all in the order of their ``index``."""
    ranks = [dict(own)]
    if world_size > 1:
        ranks = [{}] * world_size
        torch.distributed.all_gather_object(ranks, dict(own))
    merged = {name: torch.cat([rank[name] for rank in ranks]).numpy() for name in own}
    order = merged["index"].argsort()
    return {name: values[order] for name, values in merged.items()}


def _drop_others(folder: Path) -> None:
    """Remove what was written beside an earlier ``predictions.csv``, which is about to be replaced."""
    for name in (PICTURE, SUBMISSION):
        (folder / name).unlink(missing_ok=True)


def _exact(value: Any) -> Any:
    return f"{value:.9g}" if isinstance(value, float) else value  # nine digits keep a float32 exactly


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_exact, row) for row in rows)
    return text.getvalue().encode(errors="surrogateescape")  # a file name that is no UTF-8 stays as it is


class PredictionWriter(BasePredictionWriter):
    """Writes ``predictions.csv`` in the data set's order: index, digit, confidence, and the ten probabilities.

    From Kaggle's data it writes ``submission.csv`` as well: ImageId, counted from 1, and Label.

    Args:
        folder: The folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="epoch")
        self.folder = folder
        self.written: list[Path] = []

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather every process's predictions, put them in order, and write them whole."""
        if not predictions:
            return
        own = {name: torch.cat([batch[name] for batch in predictions]).cpu() for name in predictions[0]}
        own["index"] = torch.tensor([index for loader in batch_indices for batch in loader for index in batch])
        rows = _in_order(own, trainer.world_size)
        if not trainer.is_global_zero:
            return
        names = ("index", "digit", "confidence", "probabilities")
        columns = [rows[name].tolist() for name in names]
        _drop_others(self.folder)
        table = [[*row, *probabilities] for *row, probabilities in zip(*columns, strict=True)]
        self._write("predictions.csv", [[*names[:3], *PROBABILITIES], *table])
        if isinstance(trainer.datamodule, Kaggle):  # type: ignore[attr-defined]
            self._write(SUBMISSION, [("ImageId", "Label"), *((index + 1, digit) for index, digit, *_ in table)])

    def _write(self, name: str, rows: Iterable[Iterable[Any]]) -> None:
        self.written.append(self.folder / name)
        write_atomic(self.written[-1], _csv(rows))


class PictureWriter(BasePredictionWriter):
    """Prints and writes the digits found in picture files, as they come.

    ``predictions.csv`` has a row per digit, or per file without one and why; ``predictions.png`` shows the first of
    them: where each was found, what the network saw, and the three likeliest digits.

    Args:
        folder: The folder to write to.
        files: The files, in the order of the batches.
    """

    COLUMNS = ("file", "digit", "confidence", "runner_up", "runner_up_confidence", "left", "top", "right", "bottom")
    SHOWN = 40  # digits in the picture

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.files = files
        self.written: list[Path] = []
        self.pictures = self.digits = self.failures = 0
        self._shown: list[tuple[int, list[int], NDArray[np.uint8], NDArray[np.float32]]] = []
        self._file: BinaryIO | None = None
        self._open = ExitStack()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the table and the file."""
        self._file = self._open.enter_context(open_atomic(self.folder / "predictions.csv"))
        self._write([[*self.COLUMNS, *PROBABILITIES, "error"]])
        self._width = min(60, max(len(_printable(file)) for file in self.files))
        print(f"{'file':<{self._width}}  digit  confidence  runner-up  box")

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Mapping[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: "PictureBatch",
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add the rows of some files."""
        probabilities = prediction["probabilities"].cpu()
        best = [values.tolist() for values in probabilities.topk(2)]
        columns = (batch.files.tolist(), batch.boxes.tolist(), *best, probabilities.tolist())
        rows: dict[int, list[list[Any]]] = {file: [] for file in sorted({*batch.files.tolist(), *batch.failures})}
        for file, box, (sure, less), (digit, runner_up), row in zip(*columns, strict=True):
            rows[file].append([digit, sure, runner_up, less, *box, *row, ""])
        for file, found in rows.items():
            name = _printable(self.files[file])
            for digit, sure, runner_up, less, left, top, right, bottom, *_ in found:
                box = f"{left},{top} to {right},{bottom}"
                print(f"{name:<{self._width}}  {digit:>5}  {sure:>10.1%}  {runner_up} ({less:>5.1%})  {box}")
            if not found:
                print(f"{name:<{self._width}}      -  {batch.failures[file]}")
                found.append([""] * 18 + [batch.failures[file]])
            self._write([self.files[file], *row] for row in found)
        self.pictures += len(rows)
        self.digits += len(batch.files)
        self.failures += len(batch.failures)
        missing = self.SHOWN - len(self._shown)
        if missing:
            images = (batch.images[:missing].squeeze(1) * 255).round().byte().cpu().numpy()
            shown = zip(columns[0], columns[1], images, probabilities.float().numpy(), strict=False)
            self._shown += islice(shown, missing)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finish the file, and draw the picture."""
        self._open.close()
        _drop_others(self.folder)
        self.written.append(self.folder / "predictions.csv")
        # Here, since OpenCV and matplotlib take a while to import.
        from mnist_lightning.data.pictures import read_picture, surroundings
        from mnist_lightning.evaluation import figures, picture_figures

        cards = []
        for file, group in groupby(self._shown, key=lambda shown: shown[0]):
            with suppress(InputError):  # the file is read once more, rather than kept since, and may be gone by now
                picture = read_picture(self.files[file])
                for _, box, image, probabilities in group:
                    part, place = surroundings(picture, box)
                    cards.append(picture_figures.FoundDigit(self.files[file], part, place, image, probabilities))
        if cards:
            self.written.append(self.folder / PICTURE)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"Glyph \d+")  # a name in a script that the font lacks
                figures.save(picture_figures.found_digits(cards, self.digits), self.written[-1])

    def summary(self) -> str:
        """Return how many digits were found, and in how many files none."""
        return f"Digits: {self.digits:,}   pictures: {self.pictures:,}   without an answer: {self.failures:,}"

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Drop what was not finished."""
        self._open.__exit__(type(exception), exception, exception.__traceback__)

    def _write(self, rows: Iterable[Iterable[Any]]) -> None:
        assert self._file is not None
        self._file.write(_csv(rows))


def _printable(name: str) -> str:
    """Return a name as this terminal can show it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = name if name.isprintable() else ascii(name)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


class Predictions:
    """The predictions of one pass over a data set, batch by batch."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits ``(B, 10)`` and labels ``(B,)``."""
        self._batches.append((logits.float().softmax(dim=1).cpu(), labels.cpu()))

    def take(self, loader: Any, world_size: int) -> dict[str, NDArray[Any]]:
        """Return every process's ``index`` ``(N,)``, ``labels`` ``(N,)`` and ``probabilities`` ``(N, 10)``, and forget.

        Args:
            loader: The DataLoader of the batches: its sampler tells which images they are.
            world_size: The number of processes, all of which must call this.
        """
        probabilities, labels = (torch.cat(column) for column in zip(*self._batches, strict=True))
        self._batches.clear()
        index = torch.tensor(list(islice(loader.sampler, len(labels))))
        return _in_order({"index": index, "labels": labels, "probabilities": probabilities}, world_size)


class ReportWriter(Callback):
    """Writes the report of ``test``: ``report/metrics.json``, its figures, and ``index.html`` with all of it.

    TensorBoard shows the figures too.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.run = folder
        self.folder = folder / "report"
        self.metrics: dict[str, Any] = {}
        self._predictions = Predictions()

    def on_test_batch_end(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self._predictions.add(outputs, batch[1])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, draw and write."""
        rows = self._predictions.take(trainer.test_dataloaders, trainer.world_size)
        if not trainer.is_global_zero:
            return
        from mnist_lightning.evaluation import figures, metrics, page  # here, since they take a while to import

        data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
        labels, probabilities = rows["labels"], rows["probabilities"]
        loss = trainer.callback_metrics["test/loss"].item()
        self.metrics = {
            "dataset": type(data).__name__,
            "num_examples": len(labels),
            "loss": loss if math.isfinite(loss) else None,
            **metrics.classification(labels, probabilities),
        }
        images = _images(data.test_set, rows["index"])
        history = read_history(self.run / "metrics.csv")
        drawn = figures.test_figures(images, labels, probabilities, self.metrics, history)
        pngs = {name: figures.png(figure) for name, figure in drawn.items()}
        self.folder.mkdir(exist_ok=True)
        for name, png in pngs.items():
            write_atomic(self.folder / f"{name}.png", png)
        title = f"{type(data).__name__} · {self.run.resolve().name}"
        write_atomic(self.folder / "index.html", page.index_html(title, self.metrics, pngs, runs.read_record(self.run)))
        write_atomic(self.folder / "metrics.json", json.dumps(self.metrics, indent=2) + "\n")
        _show(trainer, "test", pngs)


class ValidationFigures(Callback):
    """Shows the validation's confusion matrix and misclassified digits in TensorBoard while a run trains.

    It is off unless added: ``--trainer.callbacks+=ValidationFigures``.

    Args:
        every_n_epochs: After how many epochs each to draw them.

    Raises:
        InputError: If that is below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._predictions = Predictions()

    def _is_due(self, trainer: L.Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return False
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_validation_batch_end(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self._is_due(trainer):
            self._predictions.add(outputs, batch[1])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and log the figures."""
        if not self._is_due(trainer):
            return
        rows = self._predictions.take(trainer.val_dataloaders, trainer.world_size)
        if not trainer.is_global_zero:
            return
        from mnist_lightning.evaluation import figures, metrics  # here, since matplotlib takes a while to import

        data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
        labels, probabilities = rows["labels"], rows["probabilities"]
        confusion = metrics.confusion(labels, probabilities)
        images = _images(data.val_set, rows["index"])
        drawn = {
            "confusion": figures.confusion_counts(confusion),
            "misclassified": figures.misclassified(images, labels, probabilities),
        }
        _show(trainer, "val", {name: figures.png(figure) for name, figure in drawn.items()})


def _images(dataset: GatheredDataset | None, index: NDArray[np.int64]) -> NDArray[np.uint8]:
    assert dataset is not None
    images: NDArray[np.uint8] = dataset.__getitems__(index.tolist())[0].numpy()
    return images


def _show(trainer: L.Trainer, stage: str, pngs: Mapping[str, bytes]) -> None:
    """Log figures as TensorBoard images."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, png in pngs.items():
                image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
                logger.experiment.add_image(f"{stage}/{name}", image, trainer.global_step, dataformats="HWC")
