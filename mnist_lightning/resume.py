"""Nothing of a run is lost: ``last.ckpt``, all that an exact resume needs, and how a signal stops training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor

from mnist_lightning import runs, signals
from mnist_lightning.checkpoints import AtomicCheckpointIO
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import ResumableLoader
from mnist_lightning.errors import InputError

STATE = "mnist_lightning"  # the key of a checkpoint under which every process's state is


def make_resumable(trainer: L.Trainer) -> None:
    """Let a trainer write checkpoints atomically, and leave signals to ``LastCheckpoint``.

    Lightning's own handlers talk to other processes, or save, in the middle of whatever is being done; and it ends
    with 0 on SIGTERM.
    """
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user chose
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    """Take the place of a method; unlike a lambda, in a process that is spawned too."""


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``: saved after each epoch, and wherever SIGINT, SIGTERM, SIGUSR1 or an error stop training.

    Every checkpoint of the trainer gets what an exact resume needs beside Lightning's own: each process's random
    state and the training metrics so far. (The order of the data is in ``ResumableLoader``.)

    Args:
        every_n_train_steps: After how many updates to save it as well; a kill loses no more than these.

    Raises:
        InputError: If that is below 1.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise InputError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        self.every_n_train_steps = every_n_train_steps
        self._is_due = False
        self._epoch_end: dict[str, Any] | None = None  # the loops' state at the end of an epoch that is not saved yet
        self._random: Tensor | None = None  # torch's random state when the last update was done, once training began
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up the state of the checkpoint that is resumed from, and wait for the end of an update from now on."""
        if self._state is not None:
            with _damage_told():
                self._restore(trainer, pl_module, self._state)
            # Lightning has seen where to go on. It would count a validation that is begun again twice, and leave out
            # what schedulers that watch a metric do at the end of the epoch.
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
            if trainer.fit_loop.restarted_mid_epoch:
                trainer.fit_loop._restarting = False
        self._random = torch.get_rng_state()
        signals.defer()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due; stop if any process was told to."""
        self._random = torch.get_rng_state()  # 1 µs
        if (
            self.every_n_train_steps is not None
            and not trainer.fit_loop._should_accumulate()
            and trainer.global_step % self.every_n_train_steps == 0
        ):
            self._is_due = True
        stop = _told_to_stop(trainer)
        if (self._is_due or stop) and _can_resume_here(trainer):
            self._save(trainer)
            if stop:
                raise _interruption(trainer, stop)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note where Lightning can go on; some schedulers and loggers have yet to learn that the epoch is over."""
        self._epoch_end = trainer._checkpoint_connector._get_loops_state_dict()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch before, now that it is over for all; stop if any process was told to."""
        self._save_epoch(trainer)
        if stop := _told_to_stop(trainer):
            raise _interruption(trainer, stop)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last epoch, and obey signals at once again. One that came too late to stop anything is forgotten."""
        self._save_epoch(trainer)
        signals.defer(False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save after an error in an update or a validation, as if that had not begun, or between two epochs.

        Of the random numbers, torch's on the CPU are set back. After an error elsewhere, or in one of several
        processes, which cannot save alone, the last checkpoint stands.
        """
        in_validation = trainer.validating and trainer.state.fn == TrainerFn.FITTING
        in_training = trainer.training and (self._epoch_end is not None or _can_resume_here(trainer))
        if (
            isinstance(exception, Exception)
            and trainer.world_size == 1
            and self._random is not None  # before, what is restored may be damaged
            and (in_validation or in_training)
        ):
            with suppress(Exception):  # what stopped the run, such as a full disk, may stop this
                self._save(trainer)

    def _save_epoch(self, trainer: L.Trainer) -> None:
        if self._epoch_end is not None:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._is_due = False
        path = Path(trainer.default_root_dir) / runs.CHECKPOINTS / runs.LAST
        trainer.save_checkpoint(path, weights_only=False)
        self._epoch_end = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add every process's state, and leave out an update that did not come to its end."""
        state: dict[str, Any] = {"random": _random_state(pl_module.device)}
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if isinstance(pl_module, DigitClassifier) and epochs.processed == epochs.completed:  # it is not over yet
            batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            state["epoch"] = pl_module.epoch_state(batches.processed)
        ranks = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, state)
        checkpoint[STATE] = {"ranks": ranks}
        loops = checkpoint["loops"]["fit_loop"]
        if self._epoch_end is not None:
            counted = "epoch_loop.scheduler_progress"  # in the meantime
            loops = self._epoch_end["fit_loop"] | {counted: loops[counted]}
            checkpoint["epoch"] = loops["epoch_progress"]["current"]["completed"]
            checkpoint["loops"] = self._epoch_end | {"fit_loop": loops}
        if _forget_unfinished_update(loops):
            state["random"]["torch"] = self._random
        if trainer.state.status == TrainerStatus.INTERRUPTED and trainer.validating:
            _begin_validation_again(loops["epoch_loop.val_loop.batch_progress"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training starts: making and checking the model draws random numbers."""
        self._state = checkpoint.get(STATE)

    def _restore(self, trainer: L.Trainer, pl_module: L.LightningModule, state: dict[str, Any]) -> None:
        _go_on_at_the_same_image(trainer)
        ranks = state["ranks"]
        if len(ranks) != trainer.world_size:
            if trainer.is_global_zero:
                print(
                    f"The checkpoint is of {len(ranks)} processes, and here are {trainer.world_size}: from here on "
                    "random numbers differ from theirs, and this epoch's training metrics cover the rest of it."
                )
            return
        own = ranks[trainer.global_rank]
        _set_random_state(own["random"], pl_module.device)
        if isinstance(pl_module, DigitClassifier) and "epoch" in own:
            pl_module.load_epoch_state(own["epoch"])


def _told_to_stop(trainer: L.Trainer) -> int:
    """Return the number of a signal that any process was sent, or 0: all have to stop at the same place."""
    told = signals.received()
    if trainer.world_size > 1:
        number = torch.tensor(told, device=trainer.strategy.root_device)
        told = int(trainer.strategy.reduce(number, reduce_op="max"))
    return told


def _can_resume_here(trainer: L.Trainer) -> bool:
    """Return whether Lightning goes on exactly from here: inside an epoch, where nothing is due before an update.

    Resumed where a validation is due, it would leave that out; resumed after the last update, the epoch's end.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    done, interval = progress.current.processed, trainer.val_check_batch
    since = progress.total.processed if trainer.check_val_every_n_epoch is None else done
    return (
        0 < done < trainer.num_training_batches
        and trainer.global_step != trainer.max_steps
        and done % trainer.accumulate_grad_batches == 0
        and (interval in (None, float("inf")) or since % interval != 0)
    )


def _interruption(trainer: L.Trainer, number: int) -> signals.Interrupted:
    """Return what ends this process, with 0 where Lightning started it: else it would kill the first one for that."""
    launcher = trainer.strategy.launcher
    is_watched = (
        isinstance(launcher, _SubprocessScriptLauncher)
        and not launcher.cluster_environment.creates_processes_externally
        and trainer.local_rank != 0
    )
    return signals.Interrupted(number, 0 if is_watched else None)


def _forget_unfinished_update(fit_loop: dict[str, Any]) -> bool:
    """Set the counters of a fit loop's state back to the last update that came to its end; return whether they were."""
    progress = fit_loop["epoch_loop.batch_progress"]
    begun, done = progress["current"]["ready"], progress["current"]["processed"]
    if begun == done:
        return False
    optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for counted in (progress, optimizer["step"], optimizer["zero_grad"]):
        for counters in (counted["total"], counted["current"]):
            counters.update(dict.fromkeys(counters, counters["completed"]))
    progress["is_last_batch"] = False
    for loader in fit_loop["state_dict"].get("combined_loader", []):
        if "images" in loader:  # a loader of ours
            loader["images"] = loader["images"] // begun * done
    return True


def _begin_validation_again(progress: dict[str, Any]) -> None:
    """Set the counters of a validation to those of its first batch: Lightning goes on with it there."""
    before = progress["total"]["completed"] - progress["current"]["completed"]
    for counters, done in ((progress["total"], before), (progress["current"], 0)):
        counters.update(ready=done + 1, started=done + 1, processed=done, completed=done)
    progress["is_last_batch"] = False


def _go_on_at_the_same_image(trainer: L.Trainer) -> None:
    """Count the batches of this epoch anew: another number of processes, or batch size, makes others of them."""
    loader = trainer.train_dataloader
    if isinstance(loader, ResumableLoader):
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        more = loader.batches_taken - progress.ready
        for name in ("ready", "started", "processed", "completed"):
            setattr(progress, name, getattr(progress, name) + more)


def _random_state(device: torch.device) -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  a module's augmentation may draw from it
    # Tensors and plain values, as weights-only loading has them.
    return {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": (kind, torch.tensor(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged values may raise whatever they like
        raise InputError(f"the checkpoint's state of the run is damaged: {error}; go on from another") from error
