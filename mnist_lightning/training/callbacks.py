"""Trainer callbacks for what Lightning lacks: the run's record, the report of a test, and the validation's figures."""

import fnmatch
import json
import math
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.classifier import read_checkpoint
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomic
from mnist_lightning.models.classify import classify
from mnist_lightning.models.ensemble import TestTimeAugmentation
from mnist_lightning.models.layers import layer_table
from mnist_lightning.report.metrics import Metrics
from mnist_lightning.report.text import seen_text
from mnist_lightning.settings import plain
from mnist_lightning.training.loggers import HistoryLogger, TensorBoardRunLogger, read_history
from mnist_lightning.training.runs import kept_checkpoint, read_json

PACKAGES = ("mnist-lightning", "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that can change a run's result."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


LOST_AVERAGE = "StochasticWeightAveraging's average would not be saved: use EMAWeightAveraging, whose average is tested"
# What run.json says of a run that a resumed one cannot change.
FIXED = ("network", "optimizer", "lr", "lr_scheduler", "augmentation")


def check_same(saved: Mapping[str, Any], given: Mapping[str, Any], folder: Path, place: str = "") -> None:
    """Refuse a setting that a run has otherwise.

    Args:
        saved: The run's settings.
        given: Those that it is resumed with; one that only one of both has is no matter.
        folder: The run folder.
        place: Where the settings are, with a dot at its end.

    Raises:
        InputError: If there is one.
    """
    for name in saved.keys() & given.keys():
        before, now = saved[name], given[name]
        if name == "class_path":  # MLP has two import paths
            before, now = (str(path).rpartition(".")[2] for path in (before, now))
        if isinstance(before, dict) and isinstance(now, dict):
            check_same(before, now, folder, f"{place}{name}.")
        elif before != now:
            raise InputError(f"a resumed run keeps its settings: {folder} has {place}{name} {before}, got {now}")


class RunRecord(Callback):
    """Write ``config.yaml`` when training begins, ``run.json`` with each epoch, and ``curves.png`` at the end.

    A resumed run that ends before its first update leaves both files as they were.

    Args:
        folder: The run folder.
        seed: The run's seed, for the record.
        config: The content of ``config.yaml``. A text replaces the file; settings do not.
        first_weights: Where they came from: ``seed``, or ``given`` if the seed does not repeat them.
        trained_on: What the weights and the teachers that the run starts with were trained on.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        config: str | Mapping[str, Any],
        first_weights: str = "seed",
        trained_on: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.folder, self.seed, self.config = folder, seed, config
        self.settings: dict[str, Any] = {}
        self.start: float | None = None
        self.first_step = 0
        self.files_before: dict[Path, bytes] = {}
        self.validated: dict[int, dict[str, Any]] = {}  # the accuracy and the epoch after so many updates
        # What a resumed run continues from; best_epoch is counted from 0, as in metrics.csv.
        self.state: dict[str, Any] = {
            "started": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "first_weights": first_weights,
            "trained_on": list(trained_on),
            "fit_seconds": 0.0,
            "best_val_acc": None,
            "best_epoch": None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues from."""
        self._remember_best()
        return self.state | {"fit_seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.state |= state_dict

    def _seconds(self) -> float:
        earlier: float = self.state["fit_seconds"]
        return earlier + (0.0 if self.start is None else time.perf_counter() - self.start)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse settings that are not the resumed run's. With a progress bar, print the data, network and device."""
        record = self.settings = plain(settings_of(trainer, pl_module)) | {"seed": self.seed}
        # LearningRateFinder finds another rate each time.
        fixed = {name: record[name] for name in FIXED if name != "lr" or pl_module.lr is None}
        check_same(read_json(self.folder / "run.json"), fixed, self.folder)
        data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
        record["validation_seen"] = seen = data.seen(self.state["trained_on"])
        if trainer.is_global_zero and (warning := seen_text(seen, len(data.val_set or ()))):
            print(warning)
        if trainer.is_global_zero and trainer.progress_bar_callback:
            number = trainer.world_size
            line = (
                f"{record['dataset']}: {len(data.train_set or ()):,} training and "
                f"{len(data.val_set or ()):,} validation images. "
                f"{record['network']}: {record['num_parameters']:,} parameters on {record['device']}. "
                f"Run folder: {self.folder}"
            )
            if number > 1:
                line += (
                    f"\n{number} processes: {number * data.batch_size} images per update, at the same learning rate."
                )
            print(line, "", *record["layers"], "", sep="\n", flush=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, write ``config.yaml``, and show the settings in TensorBoard."""
        for logger in tensorboards(trainer):
            logger.show_settings(self.settings)
        self.start, self.first_step = time.perf_counter(), trainer.global_step
        path = self.folder / "config.yaml"
        self.files_before = {file: file.read_bytes() for file in (path, self.folder / "run.json") if file.exists()}
        if trainer.is_global_zero and (isinstance(self.config, str) or not path.exists()):
            text = self.config if isinstance(self.config, str) else yaml.safe_dump(self.config, sort_keys=False)
            write_atomic(path, text)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record so far, so that a killed run has one too."""
        if trainer.is_global_zero:
            self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the accuracy of these weights: they may become the best checkpoint."""
        if not trainer.sanity_checking:
            accuracy = trainer.callback_metrics["val/acc"].item()
            self.validated[trainer.global_step] = {"best_val_acc": accuracy, "best_epoch": trainer.current_epoch}

    def _remember_best(self) -> None:
        """Remember the accuracy of the checkpoint that counts, or the best one if nothing is saved."""
        if kept := kept_checkpoint(self.folder):
            self.state |= self.validated.get(read_checkpoint(kept)["global_step"], {})
        elif self.validated:
            self.state |= max(self.validated.values(), key=lambda each: each["best_val_acc"])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule, finished: bool = True) -> None:
        """Write the record, draw the curves, and say so if training diverged."""
        if self.start is None and read_json(self.folder / "run.json").get("finished"):  # nothing was left to train
            return
        loss = trainer.callback_metrics.get("train/loss", torch.zeros(()))
        if trainer.is_global_zero:
            self._write(trainer, finished)
            if history := read_history(self.folder / "metrics.csv"):
                from mnist_lightning.report import figures  # here, since matplotlib takes a while to import

                figures.save(figures.curves(history), self.folder / "curves.png")
            if not math.isfinite(loss):
                print(
                    f"Training diverged: the training loss is {loss:g}. Try a smaller learning rate "
                    "(--model.optimizer.lr) or gradient clipping (--trainer.gradient_clip_val 1)."
                )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the record of a run that was interrupted after it began, unless the disk is full."""
        if self.start is None:
            return
        with suppress(OSError):
            if trainer.global_step > self.first_step:
                self.on_fit_end(trainer, pl_module, finished=False)
            elif trainer.is_global_zero:
                for file, content in self.files_before.items():
                    write_atomic(file, content)

    def _write(self, trainer: L.Trainer, finished: bool = False) -> None:
        self._remember_best()
        command = f"python -m mnist_lightning fit --config {shlex.quote(str(self.folder / 'config.yaml'))}"
        record = {
            "verb": "fit",
            "command": None if '"<' in json.dumps(self.config) else command,
            **self.settings,
            **self.state,
            "fit_seconds": round(self._seconds(), 2),
            "epochs": trainer.current_epoch,
            "global_step": trainer.global_step,
            "finished": finished,
        }
        write_atomic(self.folder / "run.json", json.dumps(record, indent=2) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, HistoryLogger):
                logger.write()


def settings_of(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Return what stays the same during a run, as plain values: the data, the network, the optimizer, the machine."""
    data, schedules = trainer.datamodule, trainer.lr_scheduler_configs  # type: ignore[attr-defined]
    things: dict[str, Any] = {"dataset": data, "network": module.net, "optimizer": trainer.optimizers[0]}
    things |= {"lr_scheduler": schedules[0].scheduler if schedules else None, "augmentation": data.augmentation}
    device = module.device
    return {name: None if thing is None else type(thing).__name__ for name, thing in things.items()} | {
        "net_arguments": (module.hparams.get("net") or {}).get("init_args"),  # None if they are not plain values
        "layers": layer_table(module.net).splitlines(),  # type: ignore[arg-type]
        "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "lr": float(module.lr or things["optimizer"].defaults["lr"]),  # type: ignore[arg-type]
        "batch_size": data.batch_size,
        "max_epochs": trainer.max_epochs,
        # The checkpoint that counts: without validation images there is no best one.
        "weights": "best" if data.val_fraction else "last",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "versions": versions(),
    }


def tensorboards(trainer: L.Trainer) -> list[TensorBoardRunLogger]:
    """Return the run's TensorBoard logger, if it has one."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardRunLogger)]


def gather(parts: list[Tensor], world_size: int) -> NDArray[Any]:
    """Return the rows of all processes in the data set's order: process r of N has r, r + N, and so on.

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
    """Keep layers of the network as they are: their weights, and the statistics of batch normalisation.

    Args:
        patterns: Names of layers, such as ``layers.0``, or patterns, such as ``layers.1*``.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns, self.frozen = patterns, list[nn.Module]()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze the layers, before a strategy looks for weights to train."""
        layers = dict(pl_module.net.named_modules())  # type: ignore[union-attr]
        for pattern in self.patterns:
            if not fnmatch.filter(layers, pattern):
                names = ", ".join(name for name, layer in layers.items() if name and not [*layer.children()])
                raise InputError(f"no layer to freeze is called {pattern}: the layers are {names}")
        chosen = [layers[name] for pattern in self.patterns for name in fnmatch.filter(layers, pattern)]
        if {weight for layer in chosen for weight in layer.parameters()} >= set(pl_module.parameters()):
            raise InputError(f"nothing is left to train when {' '.join(self.patterns)} are frozen")
        self.frozen = [layer.requires_grad_(False) for layer in chosen]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Switch dropout off, and use the statistics of batch normalisation instead of updating them."""
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

    def __init__(self, folder: Path, run: Path, record: Mapping[str, Any], robustness: bool = False) -> None:
        self.folder, self.run, self.record, self.robustness = folder, run, record, robustness
        self.metrics: dict[str, Any] = {}
        self._parts: list[Tensor] = []

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Keep the probabilities."""
        self._parts.append(outputs.float().softmax(dim=1))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, draw and write."""
        probabilities = gather(self._parts, trainer.world_size)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            from mnist_lightning.report.page import write_report  # here, since matplotlib takes a while to import

            data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
            assert data.test_set is not None
            images, labels = data.test_set.arrays(slice(len(probabilities)))
            net: nn.Module = pl_module.net  # type: ignore[assignment]
            changed = None
            if self.robustness:
                from mnist_lightning.report.robustness import robustness  # here, since OpenCV takes a while to import

                with trainer.precision_plugin.forward_context():
                    changed = robustness(partial(classify, net), images, labels)
            views = f" · {net.views} random views" if isinstance(net, TestTimeAugmentation) else ""
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
    """Show the validation's confusion matrix and misclassified digits in TensorBoard while a run trains.

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
            from mnist_lightning.report import figures, metrics  # here, since matplotlib takes a while to import

            data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
            assert data.val_set is not None
            images, labels = data.val_set.arrays(slice(len(probabilities)))
            chosen = figures.choose_misclassified(labels, probabilities)
            drawn = {
                "confusion": figures.confusion_counts(metrics.confusion(labels, probabilities), data.class_names),
                "misclassified": figures.gallery(*chosen, (images, labels, probabilities), data.class_names),
            }
            for logger in tensorboards(trainer):
                logger.show("val", {name: figures.png(figure) for name, figure in drawn.items()}, trainer.global_step)
