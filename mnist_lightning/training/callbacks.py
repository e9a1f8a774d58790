"""Trainer callbacks for what Lightning lacks: the run's record, progress in a log file, and the report of a test."""

import json
import math
import platform
import shlex
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomic
from mnist_lightning.models.classify import classify
from mnist_lightning.models.ensemble import TestTimeAugmentation
from mnist_lightning.models.layers import layer_table
from mnist_lightning.training.loggers import TensorBoardRunLogger, read_history

PACKAGES = ("mnist-lightning", "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that can change a run's result."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


class RunRecord(Callback):
    """Write ``config.yaml`` when training begins, ``run.json`` with each epoch, and ``curves.png`` at the end.

    Args:
        folder: The run folder.
        seed: The run's seed, for the record.
        config: The content of ``config.yaml``, unless there is one.
    """

    def __init__(self, folder: Path, seed: int, config: Mapping[str, Any]) -> None:
        self.folder, self.seed, self.config = folder, seed, config
        self.settings: dict[str, Any] = {}
        self.started = datetime.now().astimezone().isoformat(timespec="seconds")
        self.start: float | None = None
        self.earlier_seconds = 0.0
        self.best_val_acc: float | None = None
        self.best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues from."""
        kept = {"started": self.started, "best_val_acc": self.best_val_acc, "best_epoch": self.best_epoch}
        return {"fit_seconds": self._seconds()} | kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.earlier_seconds = state_dict["fit_seconds"]
        self.best_val_acc, self.best_epoch = state_dict["best_val_acc"], state_dict["best_epoch"]
        self.started = state_dict.get("started", self.started)

    def _seconds(self) -> float:
        return self.earlier_seconds + (0.0 if self.start is None else time.perf_counter() - self.start)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the data, the network and the device, and start the clock; loading data is not measured."""
        device = pl_module.device  # asked now: after fit, Lightning has moved the module back to the CPU
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        if trainer.is_global_zero:
            layers = layer_table(pl_module.net)  # type: ignore[arg-type]
            self.settings = settings_of(trainer, pl_module) | {"layers": layers.splitlines(), "device": device_name}
            data, number = trainer.datamodule, trainer.world_size  # type: ignore[attr-defined]
            line = (
                f"{type(data).__name__}: {len(data.train_set):,} training and {len(data.val_set):,} validation images. "
                f"{type(pl_module.net).__name__}: {_num_parameters(pl_module):,} parameters on {device_name}. "
                f"Run folder: {self.folder}"
            )
            if number > 1:
                line += (
                    f"\n{number} processes: {number * data.batch_size} images per update, at the same learning rate."
                )
            print(f"{line}\n\n{layers}\n", flush=True)
        self.start = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``config.yaml``, now that the settings are known to work, and show them in TensorBoard."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardRunLogger):
                logger.show_settings(self.settings | {"seed": self.seed})
        path = self.folder / "config.yaml"
        if trainer.is_global_zero and not path.exists():
            write_atomic(path, yaml.safe_dump(self.config, sort_keys=False))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record so far, so that a killed run has one too."""
        self._write(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the best validation accuracy; of equal epochs the first, as for best.ckpt."""
        accuracy = trainer.callback_metrics["val/acc"].item()
        if not trainer.sanity_checking and (self.best_val_acc is None or accuracy > self.best_val_acc):
            self.best_val_acc, self.best_epoch = accuracy, trainer.current_epoch

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record, draw the curves, and say so if training diverged."""
        self._write(trainer, pl_module)
        loss = trainer.callback_metrics.get("train/loss", torch.zeros(()))
        if trainer.is_global_zero:
            history = read_history(self.folder / "metrics.csv")
            if history:
                from mnist_lightning.report import figures  # here, since matplotlib takes a while to import

                figures.save(figures.curves(history), self.folder / "curves.png")
            if not math.isfinite(loss):
                print(
                    f"Training diverged: the training loss is {loss:g}. Try a smaller learning rate "
                    "(--model.optimizer.lr) or gradient clipping (--trainer.gradient_clip_val 1)."
                )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the record of a run that was interrupted after it began, unless the disk is full."""
        if self.start is not None:
            with suppress(OSError):
                self.on_fit_end(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        record = {
            "verb": "fit",
            "command": f"python -m mnist_lightning fit --config {shlex.quote(str(self.folder / 'config.yaml'))}",
            "started": self.started,
            **self.settings,
            "seed": self.seed,
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": versions(),
            "fit_seconds": round(self._seconds(), 2),
            "epochs": trainer.current_epoch,
            "global_step": trainer.global_step,
            "best_val_acc": self.best_val_acc,
            "best_epoch": self.best_epoch,  # counted from 0, as in metrics.csv
            # The checkpoint that counts: without validation images there is no best one.
            "weights": "best" if trainer.datamodule.val_fraction else "last",  # type: ignore[attr-defined]
            "num_parameters": _num_parameters(pl_module),
        }
        write_atomic(self.folder / "run.json", json.dumps(record, indent=2) + "\n")


def settings_of(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Return the settings in which runs differ most, as plain values: of the data, the network and the optimizer."""
    data, schedules = trainer.datamodule, trainer.lr_scheduler_configs  # type: ignore[attr-defined]
    things: dict[str, Any] = {"dataset": data, "network": module.net, "optimizer": trainer.optimizers[0]}
    things |= {"lr_scheduler": schedules[0].scheduler if schedules else None, "augmentation": data.augmentation}
    return {name: None if thing is None else type(thing).__name__ for name, thing in things.items()} | {
        "net_arguments": (module.hparams.get("net") or {}).get("init_args"),  # None if they are not plain values
        "lr": float(module.lr or things["optimizer"].defaults["lr"]),  # type: ignore[arg-type]
        "batch_size": data.batch_size,
        "max_epochs": trainer.max_epochs,
    }


def _num_parameters(module: L.LightningModule) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class EpochLines(ProgressBar):
    """A line for each finished epoch, with its training and validation metrics and its seconds; epochs count from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.validated = False
        self.epoch = 0
        self.start: float | None = None

    def disable(self) -> None:
        """Print nothing: Lightning asks this of every rank but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Print again."""
        self.enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch before: only now are its training metrics complete."""
        self.on_train_end(trainer, pl_module)
        self.epoch, self.validated, self.start = trainer.current_epoch, False, time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the epoch has validation metrics of its own."""
        self.validated = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last epoch's line."""
        if self.start is None:
            return
        seconds, self.start = time.perf_counter() - self.start, None
        parts, metrics = [self.name(trainer)], trainer.callback_metrics
        for stage in ("train", "val") if self.validated else ("train",):
            if f"{stage}/loss" in metrics and f"{stage}/acc" in metrics:
                parts.append(f"{stage} loss {metrics[f'{stage}/loss']:.4f} acc {metrics[f'{stage}/acc']:6.2%}")
        if self.enabled:
            self.print("  ".join([*parts, f"{seconds:.1f} s"]), flush=True)

    def name(self, trainer: L.Trainer) -> str:
        """Return the current epoch's name, such as ``Epoch  1/10``."""
        last = trainer.max_epochs or -1
        return f"Epoch {self.epoch + 1:>{len(str(last))}}/{last}" if last > 0 else f"Epoch {self.epoch + 1}"


class CalmProgressBar(EpochLines):
    """``EpochLines``, and below them a bar of the current epoch with the time left.

    It is drawn at most ten times a second: drawing takes longer than a small update.
    """

    FORMAT = "{desc}  {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}  time left: epoch {remaining}{postfix}"
    _due = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when this run began, and at which epoch."""
        self._begin, self._first = time.perf_counter(), trainer.current_epoch
        self._due = self._begin + 0.1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Draw the bar if it is due."""
        if (now := time.perf_counter()) >= self._due:
            done, total = args[2] + 1, self.total_train_batches
            epochs = (self.epoch - self._first + done / total) or math.inf  # since the beginning
            left = (now - self._begin) * (((trainer.max_epochs or 0) - self._first) / epochs - 1)
            text = f"run {Tqdm.format_interval(left)}" if left > 0 else None
            self._draw(self.name(trainer), done, total, now - (self.start or now), text)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when the validation began."""
        self._validation_start = time.perf_counter()

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Draw the validation's bar if it is due."""
        if not trainer.sanity_checking and (now := time.perf_counter()) >= self._due:
            total, seconds = sum(trainer.num_val_batches), now - self._validation_start
            self._draw(f"{self.name(trainer)} validation", args[2] + 1, total, seconds)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self.print(end="")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print in the place of the bar, which the next update draws below."""
        if self.enabled:
            print(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r", end="")
        print(*args, **kwargs)

    def _draw(self, name: str, done: int, total: float, seconds: float, postfix: str | None = None) -> None:
        self._due = time.perf_counter() + 0.1
        if self.enabled:
            size, width = None if math.isinf(total) else total, shutil.get_terminal_size().columns - 3  # room for ^C
            bar = Tqdm.format_meter(done, size, seconds, width, name, postfix=postfix, bar_format=self.FORMAT)
            print(f"\r{bar}", end="", flush=True)


def gather(parts: list[Tensor], world_size: int) -> NDArray[Any]:
    """Return the rows of all processes in the data set's order: process r of N has r, r + N, and so on.

    Args:
        parts: This process's batches of rows.
        world_size: The number of processes, all of which must call this.
    """
    own = torch.cat(parts).cpu()
    ranks = [own]
    if world_size > 1:
        ranks = [own] * world_size
        torch.distributed.all_gather_object(ranks, own)
    merged = torch.empty(sum(map(len, ranks)), *own.shape[1:])
    for rank, rows in enumerate(ranks):
        merged[rank::world_size] = rows
    return merged.numpy()


class ReportWriter(Callback):
    """Write the report of ``test``, and show its figures in TensorBoard.

    Args:
        folder: The run folder.
        record: The content of its ``run.json``.
        robustness: Whether to measure changed images too.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], robustness: bool = False) -> None:
        self.folder, self.record, self.robustness = folder, record, robustness
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
                self.folder / "report",
                title=f"{type(data).__name__} · {self.folder.resolve().name}{views}",
                dataset=type(data).__name__,
                images=images,
                labels=labels,
                probabilities=probabilities,
                loss=trainer.callback_metrics["test/loss"].item(),
                history=read_history(self.folder / "metrics.csv"),
                record=self.record or None,
                robustness=changed,
                names=data.class_names,
            )
            _show(trainer, "test", pngs)
        self.metrics = trainer.strategy.broadcast(self.metrics)


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
            _show(trainer, "val", {name: figures.png(figure) for name, figure in drawn.items()})


def _show(trainer: L.Trainer, stage: str, pngs: Mapping[str, bytes]) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardRunLogger):
            logger.show(stage, pngs, trainer.global_step)
