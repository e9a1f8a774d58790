"""What a run writes about itself: ``config.yaml`` and ``run.json``."""

import json
import math
import platform
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch import nn

from mnist_lightning.checkpoints import plain, read_checkpoint
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import SPLIT_SETTINGS, DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import read_json, write_atomic
from mnist_lightning.inference import layer_table
from mnist_lightning.report.text import seen_text
from mnist_lightning.training.loggers import HistoryLogger, read_history, tensorboards
from mnist_lightning.training.runs import kept_checkpoint

PACKAGES = (
    "mnist-lightning",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "numpy",
)
# What run.json says of a run that a resumed one cannot change.
FIXED = ("network", "optimizer", "lr", "lr_scheduler", "augmentation")
# Of weights that do not say what they were trained on.
UNKNOWN: Mapping[str, Any] = {"dataset": None}


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that can change a run's result."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def learnt_from(
    checkpoint: Mapping[str, Any] | None, config: Mapping[str, Any] | None
) -> Sequence[Mapping[str, Any]]:
    """Return the data and splits that weights have learnt from, also by their start and teachers.

    Args:
        checkpoint: The content of their file; None for a network of another runtime.
        config: The settings of their run, if the file is part of one.
    """
    with suppress(KeyError, TypeError, AttributeError):  # the file is not trusted
        found = (checkpoint or {})["callbacks"]["RunRecord"]["trained_on"]
        return [{"dataset": each["dataset"], **each} for each in found]
    data = (config or {}).get("data")
    if not isinstance(data, dict):
        return [UNKNOWN]
    # A run that was imported, or trained by an earlier version.
    given = data.get("init_args") or {}
    split = {name: given[name] for name in SPLIT_SETTINGS if name in given}
    return [{"dataset": str(data.get("class_path")).rpartition(".")[2], **split}]


def write_config(folder: Path, config: str | Mapping[str, Any]) -> None:
    """Write a run's ``config.yaml``: its text, or settings."""
    text = config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
    write_atomic(folder / "config.yaml", text)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a run's ``run.json``."""
    write_atomic(folder / "run.json", json.dumps(record, indent=2) + "\n")


def started_now(timespec: str) -> str:
    """Return this moment as ``run.json`` has it, with the time zone."""
    return datetime.now().astimezone().isoformat(timespec=timespec)


def git_commit() -> str | None:
    """Return the commit of the repository that is worked in, with ``-dirty`` if files differ.

    None without a repository, or without git.
    """
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def size_of(net: nn.Module) -> dict[str, Any]:
    """Return the layers of a network and its number of parameters, as ``run.json`` has them."""
    number = sum(parameter.numel() for parameter in net.parameters())
    return {"layers": layer_table(net).splitlines(), "num_parameters": number}


def class_name(thing: Any) -> str | None:
    """Return the name of an object's class; None for None."""
    return None if thing is None else type(thing).__name__


def settings_of(trainer: L.Trainer, module: DigitClassifier) -> dict[str, Any]:
    """Return what stays the same in a run: the data, the network, the optimizer, the machine."""
    data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
    optimizer, device = trainer.optimizers[0], module.device
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    return {
        "dataset": class_name(data),
        "network": class_name(module.net),
        "optimizer": class_name(optimizer),
        "lr_scheduler": class_name(schedules[0]) if schedules else None,
        "augmentation": class_name(data.augmentation),
        # None if they are not plain values.
        "net_arguments": (module.hparams.get("net") or {}).get("init_args"),
        **size_of(module.net),
        "lr": float(module.lr or optimizer.defaults["lr"]),
        "batch_size": data.batch_size,
        "max_epochs": trainer.max_epochs,
        # The checkpoint that counts: without validation images there is no best one.
        "weights": "best" if data.val_fraction else "last",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def check_same(
    saved: Mapping[str, Any], given: Mapping[str, Any], folder: Path, place: str = ""
) -> None:
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
            raise InputError(
                f"a resumed run keeps its settings: {folder} has {place}{name} {before}, got {now}"
            )


class RunRecord(Callback):
    """Write ``config.yaml`` when training begins, and ``run.json`` with each epoch.

    At the end it draws ``curves.png``. A resumed run that ends before its first update leaves the
    files as they were.

    Args:
        folder: The run folder.
        seed: The run's seed, for the record.
        config: The content of ``config.yaml``. A text replaces the file; settings do not.
        first_weights: Where they came from: ``seed``, or ``given`` if the seed does not repeat
            them.
        trained_on: What the weights and the teachers that the run starts with were trained on.
        callbacks: What the user's callbacks are, for the record.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        config: str | Mapping[str, Any],
        first_weights: str = "seed",
        trained_on: Sequence[Mapping[str, Any]] = (),
        callbacks: Sequence[str] = (),
    ) -> None:
        self.folder, self.seed, self.config = folder, seed, config
        self.callbacks = list(callbacks)
        self.settings: dict[str, Any] = {}
        self.start: float | None = None  # of the first update
        self.first_step = 0
        self.files_before: dict[Path, bytes] = {}
        # The accuracy and the epoch, by the number of updates before the validation.
        self.validated: dict[int, dict[str, Any]] = {}
        # What a resumed run continues from; best_epoch is counted from 0, as in metrics.csv.
        self.state: dict[str, Any] = {
            "started": started_now("milliseconds"),
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
        return earlier if self.start is None else earlier + time.perf_counter() - self.start

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse settings that are not the resumed run's.

        With a progress bar, print the data, network and device.
        """
        assert isinstance(pl_module, DigitClassifier)
        record = self.settings = plain(settings_of(trainer, pl_module))
        record |= {"seed": self.seed, "callbacks": self.callbacks}
        fixed = {name: record[name] for name in FIXED}
        if pl_module.lr is not None:  # LearningRateFinder finds another rate each time
            del fixed["lr"]
        check_same(read_json(self.folder / "run.json"), fixed, self.folder)
        data: DigitDataModule = trainer.datamodule  # type: ignore[attr-defined]
        record["validation_seen"] = seen = data.seen(self.state["trained_on"])
        if not trainer.is_global_zero:
            return
        if warning := seen_text(seen, len(data.val_set or ())):
            print(warning)
        if trainer.progress_bar_callback:
            print(
                f"{record['dataset']}: {len(data.train_set or ()):,} training and "
                f"{len(data.val_set or ()):,} validation images\n"
                f"{record['network']}: {record['num_parameters']:,} parameters on "
                f"{record['device']}\nRun folder: {self.folder}"
            )
            if (number := trainer.world_size) > 1:
                print(
                    f"{number} processes: {number * data.batch_size} images per update, "
                    "at the same learning rate."
                )
            print("", *record["layers"], "", sep="\n", flush=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, write ``config.yaml``, and show the settings in TensorBoard."""
        for logger in tensorboards(trainer):
            logger.show_settings(self.settings)
        self.start, self.first_step = time.perf_counter(), trainer.global_step
        config, record = (self.folder / name for name in ("config.yaml", "run.json"))
        for file in (config, record):
            if file.exists():
                self.files_before[file] = file.read_bytes()
        if trainer.is_global_zero and (isinstance(self.config, str) or not config.exists()):
            write_config(self.folder, self.config)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record so far, so that a killed run has one too."""
        if trainer.is_global_zero:
            self._write(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Show the loss of some batches in TensorBoard: all would slow down training."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and args[-1] % every == 0 and "loss" in (outputs or {}):
            loss = outputs["loss"].item() * trainer.accumulate_grad_batches
            for logger in tensorboards(trainer):
                logger.log_metrics({"train/loss_step": loss}, trainer.global_step - 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the accuracy of these weights: they may become the best checkpoint."""
        if not trainer.sanity_checking:
            accuracy = trainer.callback_metrics["val/acc"].item()
            result = {"best_val_acc": accuracy, "best_epoch": trainer.current_epoch}
            self.validated[trainer.global_step] = result

    def _remember_best(self) -> None:
        """Remember the accuracy of the checkpoint that counts, or the best one if none is saved."""
        if kept := kept_checkpoint(self.folder):
            self.state |= self.validated.get(read_checkpoint(kept)["global_step"], {})
        elif self.validated:
            self.state |= max(self.validated.values(), key=lambda each: each["best_val_acc"])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the record, draw the curves, and say so if training diverged."""
        was_finished = read_json(self.folder / "run.json").get("finished")
        if self.start is not None or not was_finished:  # otherwise nothing was left to train
            self._finish(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write the record of a run that was interrupted after it began, unless the disk is full.

        Before its first update, put the files back.
        """
        if self.start is None:
            return
        with suppress(OSError):
            if trainer.global_step > self.first_step:
                self._finish(trainer, finished=False)
            elif trainer.is_global_zero:
                for file, content in self.files_before.items():
                    write_atomic(file, content)

    def _finish(self, trainer: L.Trainer, finished: bool = True) -> None:
        if not trainer.is_global_zero:
            return
        self._write(trainer, finished)
        if history := read_history(self.folder / "metrics.csv"):
            from mnist_lightning.report import figures  # here, since matplotlib takes a while

            figures.save(figures.curves(history), self.folder / "curves.png")
        loss = trainer.callback_metrics.get("train/loss", torch.zeros(()))
        if not math.isfinite(loss):
            print(
                f"Training diverged: the training loss is {loss:g}. Try a smaller learning rate "
                "(--model.optimizer.lr) or gradient clipping (--trainer.gradient_clip_val 1)."
            )

    def _write(self, trainer: L.Trainer, finished: bool = False) -> None:
        self._remember_best()
        path = shlex.quote(str(self.folder / "config.yaml"))
        by_python = not isinstance(self.config, str)
        is_whole = '"<' not in json.dumps(self.config) and not (by_python and self.callbacks)
        before = read_json(self.folder / "run.json")
        # By the verb `runs`.
        given: dict[str, Any] = {name: before[name] for name in ("tags", "note") if name in before}
        record = {
            "verb": "fit",
            "command": f"python -m mnist_lightning fit --config {path}" if is_whole else None,
            **self.settings,
            **self.state,
            "fit_seconds": round(self._seconds(), 2),
            "epochs": trainer.current_epoch,
            "global_step": trainer.global_step,
            "finished": finished,
            **given,
        }
        write_record(self.folder, record)
        for logger in trainer.loggers:
            if isinstance(logger, HistoryLogger):
                logger.write()
        if (best := self.state["best_val_acc"]) is not None:
            for logger in tensorboards(trainer):
                logger.log_metrics({"val/best_acc": best}, trainer.global_step)
