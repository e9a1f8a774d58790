"""Exact resuming: each epoch is seeded and can be repeated; last.ckpt is saved between epochs."""

import io
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mnist_lightning.files import write_atomic


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and torch from several non-negative numbers combined."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  an augmentation may use them
    torch.manual_seed(seed)


class ResumePoint(Callback):
    """Save ``last.ckpt`` whenever an epoch begins and when training ends, and seed each epoch.

    An epoch is a function of the weights, the optimizer's state, the seed, the epoch's number and the rank. So a
    killed run repeats its unfinished epoch and ends with the weights of an undisturbed run.
    ``max_steps`` may end a run inside an epoch: that epoch then counts as completed.

    Args:
        path: Where to save.
        seed: The run's seed.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch from its beginning: with ``max_steps``, Lightning 2.6 would count an extra update."""
        trainer.fit_loop.epoch_loop.restarting = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, now that the epoch before is over for every callback and scheduler, and seed the new epoch."""
        trainer.save_checkpoint(self.path, weights_only=False)
        seed_all(self.seed, trainer.current_epoch, trainer.global_rank)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state at the end."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the loops' state as "N epochs completed, no epoch started".

        Otherwise Lightning 2.6 takes it for an unfinished epoch, and skips that epoch when it resumes.
        """
        for name, state in checkpoint["loops"]["fit_loop"].items():
            if name.endswith("epoch_progress"):
                for counts in (state["total"], state["current"]):
                    counts.update(dict.fromkeys(counts, counts["completed"]))
            elif name.endswith(("batch_progress", "scheduler_progress")):
                state["current"] = dict.fromkeys(state["current"], 0)
                if "is_last_batch" in state:
                    state["is_last_batch"] = False

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Update ModelCheckpoint's paths: otherwise it forgets the best checkpoint of a run folder that was moved."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state and callback.dirpath:
                moved = Path(state["dirpath"] or ""), Path(callback.dirpath)
                state["dirpath"] = str(callback.dirpath)
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = _move(state[name], *moved)
                state["best_k_models"] = {_move(path, *moved): score for path, score in state["best_k_models"].items()}


def _move(path: str, old: Path, new: Path) -> str:
    return str(new / Path(path).relative_to(old)) if path and Path(path).is_relative_to(old) else path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints whole or not at all. Lightning's own moves them from the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: D102
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(path), content.getbuffer())
