"""A checkpoint is restored whole or refused in one line: what it holds beside the weights is not trusted either."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from mnist_lightning.callbacks import RunRecord
from mnist_lightning.errors import InputError

KNOWN = (RunRecord, ModelCheckpoint, EarlyStopping)  # in their states a number stays a number
LARGEST_COUNT = 2**53


def check_resumable(path: Path, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint holds a state of training.

    Raises:
        InputError: If it holds weights only.
    """
    for name in ("optimizer_states", "lr_schedulers", "loops"):
        if name not in checkpoint:
            raise InputError(
                f"{path} has no {name}, so training cannot go on from it: it was saved with save_weights_only; use it "
                "with validate, test or predict"
            )


def refuse_damage(trainer: Trainer) -> None:
    """Let a trainer take whatever a checkpoint causes while it is restored for the user's to mend, in one line."""
    trainer._checkpoint_connector = _CarefulConnector(trainer)


class _CarefulConnector(_CheckpointConnector):
    """Lightning's way of restoring a checkpoint, with a look at what is restored before it is."""

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (InputError, MisconfigurationException):
            raise
        except Exception as error:  # damaged states may raise whatever they like
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
            path = os.path.normpath(self._ckpt_path or "")
            raise InputError(f"{path} cannot be restored ({reason}); give a checkpoint that fit wrote") from error

    def resume_start(self, *args: Any, **kwargs: Any) -> None:
        with self._told():
            super().resume_start(*args, **kwargs)

    def restore_model(self) -> None:
        with self._told():
            super().restore_model()

    def restore_datamodule(self) -> None:
        with self._told():
            super().restore_datamodule()

    def restore_callbacks(self) -> None:
        with self._told():
            _check_callbacks(self.trainer, self._loaded_checkpoint)
            super().restore_callbacks()

    def restore_training_state(self) -> None:
        with self._told():
            if self._loaded_checkpoint:
                _check_training(self.trainer, self._loaded_checkpoint)
            super().restore_training_state()
            if self._loaded_checkpoint:
                _try_optimizers(self.trainer)


def _check_callbacks(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if state and isinstance(callback, KNOWN):
            _check_alike(callback.state_key, state, callback.state_dict())
            if isinstance(callback, ModelCheckpoint):
                _check_files(state)


def _check_files(state: dict[str, Any]) -> None:
    """Check the files of a ModelCheckpoint, which deletes them when there are better ones.

    It deletes none outside its folder, but by ".." one would seem to be inside, and what fsspec takes for an address,
    which "::" and "://" make of a path, would not seem to be a file.
    """
    scores = state.get("best_k_models", {})
    if not all(isinstance(score, Tensor) and score.numel() == 1 for score in scores.values()):
        raise ValueError("best_k_models must be numbers")
    folder = os.path.join(state["dirpath"] or "", "")
    for path in (state["best_model_path"], state["kth_best_model_path"], state["last_model_path"], *scores):
        rest = path.removeprefix(folder)
        if ".." in Path(rest).parts or "::" in rest or "://" in rest:
            raise ValueError(f"{path!r} is no checkpoint's path")


def _check_training(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    loops = {
        TrainerFn.FITTING: ("fit_loop", trainer.fit_loop),
        TrainerFn.VALIDATING: ("validate_loop", trainer.validate_loop),
        TrainerFn.TESTING: ("test_loop", trainer.test_loop),
        TrainerFn.PREDICTING: ("predict_loop", trainer.predict_loop),
    }
    assert trainer.state.fn is not None
    name, loop = loops[trainer.state.fn]
    if "loops" in checkpoint:
        _check_alike(name, checkpoint["loops"][name], loop.state_dict())
        _check_counts(name, checkpoint["loops"][name])
    if trainer.state.fn == TrainerFn.FITTING:
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
            _check_alike("optimizer", state["param_groups"], optimizer.state_dict()["param_groups"])
        # StochasticWeightAveraging saves one more.
        for config, state in zip(trainer.lr_scheduler_configs, checkpoint["lr_schedulers"], strict=False):
            if type(config.scheduler).__module__.startswith(("torch.", "lightning.")):
                _check_alike("lr_scheduler", state, config.scheduler.state_dict())


def _check_alike(name: str, there: Any, here: Any) -> None:
    """Check that a state has numbers, texts, lists and dicts where the one it is going to replace has them."""
    kind, expected = _kind(there), _kind(here)
    if kind != expected and {kind, expected} != {"number", "nothing"}:  # some numbers are not known at first
        raise ValueError(f"{name} must be a {expected}, got a {kind}")
    if kind == "dict":
        for key in here.keys() & there.keys():
            _check_alike(f"{name}.{key}", there[key], here[key])
    elif kind == "list":
        for index, (theirs, ours) in enumerate(zip(there, here, strict=True)):
            _check_alike(f"{name}.{index}", theirs, ours)


def _kind(value: Any) -> str:
    if isinstance(value, (bool, int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
        return "number"
    kinds = {type(None): "nothing", str: "text", list: "list", tuple: "list"}
    return "dict" if isinstance(value, dict) else kinds.get(type(value), type(value).__name__)


def _check_counts(name: str, state: Any) -> None:
    if isinstance(state, dict):
        for key, value in state.items():
            if key != "combined_loader":  # a loader checks its own state
                _check_counts(f"{name}.{key}", value)
    elif not isinstance(state, int) or not 0 <= state < LARGEST_COUNT:
        raise ValueError(f"{name} must be a count, got {state!r:.50}")


def _try_optimizers(trainer: Trainer) -> None:
    """Let a copy of each optimizer make an update: none of them looks at the state it is given before."""
    if trainer.state.fn != TrainerFn.FITTING or not isinstance(trainer.strategy, SingleDeviceStrategy):
        return
    for optimizer in trainer.optimizers:
        _check_fused(optimizer)
        if not type(optimizer).__module__.startswith("torch.optim.") or isinstance(optimizer, LBFGS):
            continue  # has attributes of its own, which a copy lacks
        trial = deepcopy(optimizer)
        for group in trial.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.detach().clone().zero_()
        trial.step(lambda: 0.0)


def _check_fused(optimizer: Optimizer) -> None:
    """Check the state of a fused optimizer's parameters: it would read and write past the end of what is too small."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            for name, value in optimizer.state.get(parameter, {}).items():
                like = value if name == "step" else parameter
                if not isinstance(value, Tensor) or (value.shape, value.stride()) != (like.shape, like.stride()):
                    raise ValueError(f"{name} of a parameter {tuple(parameter.shape)} must be as large")
                if name == "step" and (value.dim() or value.dtype != torch.float32):
                    raise ValueError("step must be one float32 number")
