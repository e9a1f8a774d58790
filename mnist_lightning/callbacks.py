"""Trainer callbacks for what Lightning lacks in training: the run's record, and progress in a log file."""

import json
import os
import platform
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from mnist_lightning import runs
from mnist_lightning.files import write_atomic
from mnist_lightning.loggers import read_history

PACKAGES = ("mnist-lightning", "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that has a part in a run."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


class SaveRunConfig(SaveConfigCallback):
    """Writes the configuration of ``fit`` into the run folder once training starts, also when a run is continued."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, folder: Path) -> None:
        super().__init__(parser, config)
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write nothing yet: a resumed run whose new settings turn out not to work keeps its old ones."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``config.yaml``; a checkpoint to resume from is no part of the recipe and is left out."""
        if trainer.is_global_zero:
            config = self.config.clone()
            config.ckpt_path = None
            write_atomic(self.folder / runs.CONFIG, self.parser.dump(config, skip_none=False))


class RunRecord(Callback):
    """Writes ``run.json`` with each epoch, and ``curves.png`` when ``fit`` ends, also when it is interrupted.

    Args:
        folder: The run folder.
        seed: The run's seed, for the record.
        continues: Whether the folder already holds the run that the checkpoint to resume from is of.
    """

    def __init__(self, folder: Path, seed: int | bool | None, continues: bool) -> None:
        self.folder = folder
        self.continues = continues
        self.seed = seed
        self.device = ""
        self.start: float | None = None
        self.earlier_seconds = 0.0
        self.best_val_acc: float | None = None
        self.best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from."""
        return {"fit_seconds": self._seconds(), "best_val_acc": self.best_val_acc, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where the checkpoint was saved, unless this is a new run that only starts there."""
        if self.continues:
            self.earlier_seconds = state_dict["fit_seconds"]
            self.best_val_acc = state_dict["best_val_acc"]
            self.best_epoch = state_dict["best_epoch"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let ModelCheckpoint find its files again where the run folder was moved, or is now named otherwise.

        Without this it would forget the best score, and a worse checkpoint would replace the best.
        """
        if not self.continues:
            return
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state:
                _move(state, str(callback.dirpath))

    def _seconds(self) -> float:
        return self.earlier_seconds + (0.0 if self.start is None else time.perf_counter() - self.start)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what is going to be trained, and start the clock: data are loaded, nothing is trained."""
        device = pl_module.device  # asked now: when fit has ended, Lightning has moved the module back to the CPU
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        if trainer.is_global_zero:
            data = trainer.datamodule  # type: ignore[attr-defined]
            print(
                f"{type(data).__name__}: {len(data.train_set):,} training and {len(data.val_set):,} validation images. "
                f"{type(pl_module.net).__name__}: {_num_parameters(pl_module):,} parameters on {self.device}. "
                f"Run folder: {self.folder}",
                flush=True,
            )
            if trainer.world_size > 1:
                _say_what_is_shared(trainer, data.batch_size)
        self.start = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record so far: a run that is killed has no end to write it at."""
        self._write(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the best validation accuracy, the first of equals, as the best checkpoint does."""
        accuracy = trainer.callback_metrics["val/acc"].item()
        if not trainer.sanity_checking and (self.best_val_acc is None or accuracy > self.best_val_acc):
            self.best_val_acc, self.best_epoch = accuracy, trainer.current_epoch

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record, and draw the curves."""
        self._write(trainer, pl_module)
        if trainer.is_global_zero:
            self._draw()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the record of a run that was interrupted once it had begun, unless the disk is full or the like."""
        if self.start is not None:
            with suppress(OSError):
                self.on_fit_end(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        record = {
            "verb": "fit",
            "dataset": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
            "seed": self.seed,
            "device": self.device,
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": versions(),
            "fit_seconds": round(self._seconds(), 2),
            "epochs": trainer.current_epoch,
            "global_step": trainer.global_step,
            "best_val_acc": self.best_val_acc,
            "best_epoch": self.best_epoch,  # counted from 0, as in metrics.csv
            "num_parameters": _num_parameters(pl_module),
        }
        write_atomic(self.folder / runs.RECORD, json.dumps(record, indent=2) + "\n")

    def _draw(self) -> None:
        history = read_history(self.folder / "metrics.csv")
        if history:
            from mnist_lightning.evaluation import figures  # here, since matplotlib takes a while to import

            figures.save(figures.curves(history), self.folder / "curves.png")


def _say_what_is_shared(trainer: L.Trainer, batch_size: int) -> None:
    """Say what several processes make of the batch size and the learning rate."""
    number = trainer.world_size
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    print(
        f"{number} processes with batches of {batch_size}: {number * batch_size} images an update. "
        f"The learning rate is {lr:g} as given, not scaled with them.",
        flush=True,
    )


def _move(state: dict[str, Any], folder: str) -> None:
    """Rewrite the paths in a ModelCheckpoint's state to those of the same files in another folder."""

    def moved(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path

    state["dirpath"] = folder
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])


def _num_parameters(module: L.LightningModule) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class CalmProgressBar(TQDMProgressBar):
    """Lightning's progress bar, redrawn in training ten times a second: drawing it takes longer than a small update."""

    SECONDS = 0.1

    def __init__(self) -> None:
        super().__init__()
        self._due = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw the bar if it is due, or the epoch's last batch is done."""
        now = time.monotonic()
        if now >= self._due or batch_idx + 1 == self.total_train_batches:
            self._due = now + self.SECONDS
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class EpochLines(ProgressBar):
    """Progress for a log file: one line per epoch, where a bar would leave thousands of characters."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.epoch = 0
        self.validated = False
        self.start: float | None = None

    def disable(self) -> None:
        """Print nothing: Lightning asks this of every rank but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Print again."""
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin inside the epoch where a resumed run goes on: Lightning does not start that one again."""
        if trainer.fit_loop.restarted_mid_epoch:
            self.epoch, self.start = trainer.current_epoch, time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch before: only now are its training metrics complete."""
        self._print(trainer)
        self.epoch, self.validated, self.start = trainer.current_epoch, False, time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the epoch has validation metrics of its own."""
        self.validated = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last epoch's line."""
        self._print(trainer)

    def _print(self, trainer: L.Trainer) -> None:
        if self.start is not None and self.enabled:
            seconds = time.perf_counter() - self.start
            values = "  ".join(
                f"{name} {value.item():<6.4g}"
                for name, value in sorted(trainer.callback_metrics.items())
                if self.validated or not name.startswith("val/")
            )
            print(f"Epoch {self.epoch}  {values}  {seconds:.1f} s", flush=True)
