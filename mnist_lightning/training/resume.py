"""Exact resuming: each epoch is seeded and can be repeated; last.ckpt is saved between epochs."""

import inspect
import io
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mnist_lightning.checkpoints import is_plain, read_checkpoint
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import check_writable, read_config, read_json, write_atomic
from mnist_lightning.training.record import check_same
from mnist_lightning.training.run import find_checkpoint
from mnist_lightning.training.runs import LOG_DIR

# The Trainer's settings that a resumed run may change: length, devices, logging, display, callbacks
# without a state.
FREE = re.compile(
    r"(max|min)_(epochs|steps|time)|accelerator|devices|num_nodes|strategy|callbacks.*|default_root_dir|logger|profiler|"
    r"log_every_n_steps|num_sanity_val_steps|enable_\w+"
)


def find_last(path: str | Path, log_dir: str | Path = LOG_DIR) -> Path:
    """Return the ``last.ckpt`` of a run folder, or of the newest run for ``last``.

    Raises:
        InputError: If there is no such run.
    """
    file = find_checkpoint(path, "last", log_dir)
    config = file.parent.parent / "config.yaml"
    if (file.parent.name, file.name) != ("checkpoints", "last.ckpt") or not config.is_file():
        raise InputError(f"only a run can be resumed: give 'last' or a run folder, got {path}")
    return file


class ResumedRun:
    """A run that is resumed: its ``last.ckpt``, read once, and what must not change.

    Args:
        path: Its folder, its ``last.ckpt``, or ``last`` for the newest run.
        log_dir: The folder of runs.

    Raises:
        InputError: If there is no such run, or its folder cannot be written to.
    """

    def __init__(self, path: str | Path, log_dir: Path) -> None:
        self.file = find_last(path, log_dir)
        self.folder = check_writable(self.file.parent.parent)
        self.checkpoint = read_checkpoint(self.file)

    def check_settings(
        self,
        model: DigitClassifier,
        data: DigitDataModule,
        seed: int,
        config: str | Mapping[str, Any],
    ) -> None:
        """Refuse other settings than the run's.

        Args:
            model: The classifier.
            data: The data module.
            seed: The run's seed.
            config: What ``config.yaml`` would be. A text has been compared before.

        Raises:
            InputError: If there is one.
        """
        check_same(read_json(self.folder / "run.json"), {"seed": seed}, self.folder)
        for name, now in (
            ("hyper_parameters", model.hparams),
            ("datamodule_hyper_parameters", data.hparams),
        ):
            check_same(self.checkpoint.get(name, {}), now, self.folder)
        if isinstance(config, str):
            return
        earlier = read_config(self.folder / "config.yaml")
        before, now = (_fixed(each.get("trainer") or {}) for each in (earlier, config))
        check_same(before, now, self.folder, "trainer.")
        names = ("teacher", "freeze")
        check_same(
            {name: earlier.get(name) for name in names},
            {name: config[name] for name in names},
            self.folder,
        )

    def check_trainer(self, trainer: L.Trainer) -> None:
        """Refuse fewer epochs than the run has, or other callbacks that keep a state.

        Raises:
            InputError: If the trainer has these.
        """
        progress = self.checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for name, limit, noun, done in (
            ("max_epochs", trainer.max_epochs or 0, "epochs", progress["current"]["completed"]),
            ("max_steps", trainer.max_steps, "updates", self.checkpoint["global_step"]),
        ):
            if 0 <= limit < done:
                raise InputError(
                    f"the run has {done} {noun} already: {name} must be at least that, got {limit}"
                )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        before = self.checkpoint["callbacks"].keys()
        lost = before - {each.state_key for each in callbacks}
        new = set()
        for each in callbacks:
            if each.state_dict() and not isinstance(each, EarlyStopping | Timer):
                new.add(each.state_key)
        if names := sorted(lost | (new - before)):
            raise InputError(
                "a resumed run keeps its callbacks, but this one was trained with others: "
                f"{', '.join(names)}"
            )


def _fixed(trainer_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer's settings that a resumed run cannot change, defaults too."""
    settings = {}
    for name, parameter in inspect.signature(L.Trainer).parameters.items():
        value = trainer_kwargs.get(name, parameter.default)
        if not FREE.fullmatch(name) and is_plain(value):
            settings[name] = value
    return settings


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and torch from several non-negative numbers combined."""
    seed_plainly(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def seed_plainly(seed: int) -> None:
    """Seed Python, NumPy and torch with one number."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


class ResumePoint(Callback):
    """Save ``last.ckpt`` whenever an epoch begins and when training ends, and seed each epoch.

    An epoch is a function of the weights, the optimizer's state, the seed, the epoch's number and
    the rank. So a killed run repeats its unfinished epoch and ends with the weights of an
    undisturbed run. ``max_steps`` may end a run inside an epoch: that epoch then counts as
    completed.

    Args:
        path: Where to save.
        seed: The run's seed.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch from its beginning.

        With ``max_steps``, Lightning 2.6 would count an extra update.
        """
        trainer.fit_loop.epoch_loop.restarting = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, now that the epoch before is over for every callback, and seed the new epoch."""
        trainer.save_checkpoint(self.path, weights_only=False)
        seed_all(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state at the end."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the loops' state as "N epochs completed, no epoch started".

        Otherwise Lightning 2.6 takes it for an unfinished epoch, and skips that epoch when it
        resumes.
        """
        for name, state in checkpoint["loops"]["fit_loop"].items():
            if name.endswith("epoch_progress"):
                for counts in (state["total"], state["current"]):
                    counts.update(dict.fromkeys(counts, counts["completed"]))
            elif name.endswith(("batch_progress", "scheduler_progress")):
                state["current"] = dict.fromkeys(state["current"], 0)
                if "is_last_batch" in state:
                    state["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Update ModelCheckpoint's paths.

        Otherwise it forgets the best checkpoint of a run folder that was moved.
        """
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state and callback.dirpath:
                moved = Path(state["dirpath"] or ""), Path(callback.dirpath)
                state["dirpath"] = str(callback.dirpath)
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = _move(state[name], *moved)
                state["best_k_models"] = {
                    _move(path, *moved): score for path, score in state["best_k_models"].items()
                }


def _move(path: str, old: Path, new: Path) -> str:
    """Return the path of a file in a folder that was moved; any other path as it is."""
    is_inside = path and Path(path).is_relative_to(old)
    return str(new / Path(path).relative_to(old)) if is_inside else path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints whole or not at all.

    Lightning's own moves them from the system's temporary folder.
    """

    def save_checkpoint(  # noqa: D102
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(path), content.getbuffer())
