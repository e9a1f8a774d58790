"""Trainer callbacks that Lightning lacks: frozen layers, a test's report, validation figures."""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.inference import classify
from mnist_lightning.networks import TestTimeAugmentation
from mnist_lightning.report.results import Metrics
from mnist_lightning.report.text import counted
from mnist_lightning.terminal import waiting
from mnist_lightning.training.loggers import read_history, tensorboards
from mnist_lightning.training.progress import Bar


def gather(parts: list[Tensor], world_size: int) -> NDArray[Any]:
    """Return the rows of all processes in the data set's order.

    Process r of N has the rows r, r + N, and so on.

    Args:
        parts: This process's batches of rows.
        world_size: The number of processes, all of which must call this.
    """
    own = torch.cat(parts).cpu()
    ranks = [own] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(ranks, own)
    merged = torch.empty(sum(map(len, ranks)), *own.shape[1:])
    for rank, rows in enumerate(ranks):
        merged[rank::world_size] = rows
    return merged.numpy()


class Freeze(Callback):
    """Keep layers of the network as they are, and their statistics of batch normalisation.

    Args:
        patterns: Names of layers, such as ``layers.0``, or patterns, such as ``layers.1*``.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns, self.frozen = patterns, list[nn.Module]()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze the layers, before a strategy looks for weights to train."""
        layers = dict(pl_module.net.named_modules())  # type: ignore[union-attr]
        chosen = nn.ModuleList()
        for pattern in self.patterns:
            found = fnmatch.filter(layers, pattern)
            if not found:
                leaves = [name for name in layers if name and not [*layers[name].children()]]
                raise InputError(
                    f"no layer to freeze is called {pattern}: the layers are {', '.join(leaves)}"
                )
            chosen.extend(layers[name] for name in found)
        if set(chosen.parameters()) >= set(pl_module.parameters()):
            raise InputError(f"nothing is left to train when {' '.join(self.patterns)} are frozen")
        self.frozen = [layer.requires_grad_(False) for layer in chosen]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Switch dropout off, and keep the statistics of batch normalisation."""
        for layer in self.frozen:
            layer.eval()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let a later training change them again."""
        for layer in self.frozen:
            layer.requires_grad_(True)


class ReportWriter(Callback):
    """Write the report of ``test``, and show its figures in TensorBoard.

    Args:
        folder: The folder of the report.
        run: The folder of the run.
        record: The content of its ``run.json``.
        robustness: Whether to measure changed images too.
    """

    def __init__(
        self, folder: Path, run: Path, record: Mapping[str, Any], robustness: bool = False
    ) -> None:
        self.folder, self.run, self.record, self.robustness = folder, run, record, robustness
        self.metrics: dict[str, Any] = {}
        self._parts: list[Tensor] = []

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep the probabilities."""
        self._parts.append(outputs.float().softmax(dim=1))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, draw and write."""
        probabilities = gather(self._parts, trainer.world_size)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # Here, since matplotlib takes a while to import.
            from mnist_lightning.report.run_report import write_report

            data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
            assert data.test_set is not None
            images, labels = data.test_set.arrays(slice(len(probabilities)))
            net: nn.Module = pl_module.net  # type: ignore[assignment]
            changed = None
            if self.robustness:
                # Here, since OpenCV takes a while to import.
                from mnist_lightning.report.robustness import CALLS, robustness

                shown = trainer.progress_bar_callback
                bar = tqdm(disable=True)
                if isinstance(shown, Bar):
                    bar = shown.open("Changed images", CALLS)

                def answers(images: Any) -> Any:
                    probabilities = classify(net, images)
                    bar.update()
                    return probabilities

                with bar, trainer.precision_plugin.forward_context():
                    changed = robustness(answers, images, labels)
            views = ""
            if isinstance(net, TestTimeAugmentation):
                views = f" · {counted(net.views, 'random view')}"
            with waiting("drawing the report ..."):
                self.metrics, pngs = write_report(
                    self.folder,
                    title=f"{type(data).__name__} · {self.run.resolve().name}{views}",
                    dataset=type(data).__name__,
                    test=(images, labels, probabilities),
                    loss=trainer.callback_metrics["test/loss"].item(),
                    history=read_history(self.run / "metrics.csv"),
                    record=self.record,
                    robustness=changed,
                    names=data.class_names,
                )
            for logger in tensorboards(trainer):
                logger.show("test", pngs)
        self.metrics = Metrics(trainer.strategy.broadcast(self.metrics), self.folder / "index.html")


class ValidationFigures(Callback):
    """Show the validation's confusion matrix and errors in TensorBoard while a run trains.

    Add it with ``--trainer.callbacks+=ValidationFigures``.

    Args:
        every_n_epochs: Number of epochs from one drawing to the next.

    Raises:
        InputError: If that is below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._parts: list[Tensor] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Keep the probabilities, if the figures are due."""
        is_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if is_training and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._parts.append(outputs.float().softmax(dim=1))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and log the figures."""
        if not self._parts:
            return
        probabilities = gather(self._parts, trainer.world_size)
        self._parts.clear()
        if trainer.is_global_zero:
            # Here, since matplotlib takes a while to import.
            from mnist_lightning.report import figures, metrics, run_report

            data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
            assert data.val_set is not None
            images, labels = data.val_set.arrays(slice(len(probabilities)))
            counts = metrics.confusion(labels, probabilities)
            parts = (images, labels, probabilities)
            drawn = {
                "confusion": figures.confusion_counts(counts, data.class_names),
                "misclassified": figures.gallery(run_report.misclassified(parts, data.class_names)),
            }
            pngs = {name: figures.png(figure) for name, figure in drawn.items()}
            for logger in tensorboards(trainer):
                logger.show("val", pngs, trainer.global_step)
