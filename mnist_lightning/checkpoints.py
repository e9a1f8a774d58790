"""Checkpoints are untrusted files: weights and plain values are read, anything else is refused."""

import inspect
import re
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from mnist_lightning.errors import InputError
from mnist_lightning.files import open_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all: whatever happens, the one before stays until the new one is on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: D102
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path) as file:
            torch.save(checkpoint, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint's weights and plain values; code in it is refused and does not run.

    Raises:
        InputError: If the file is no Lightning checkpoint, is damaged, or holds anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of how the file was pickled: what matters is told below
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except (UnpicklingError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        if code := re.search(r"GLOBAL:? ([\w.]+)", str(error)):
            raise InputError(
                f"{path} was not loaded: it holds {code[1]}, and anything but weights and plain values could run code"
            ) from error
        raise InputError(f"{path} is no checkpoint, or is damaged; give one that fit wrote") from error
    needed = {"state_dict": dict, "global_step": int, "pytorch-lightning_version": str}
    content: dict[str, Any] = checkpoint if isinstance(checkpoint, dict) else {}
    for name, kind in needed.items():
        if not isinstance(content.get(name), kind):
            raise InputError(f"{path} is no Lightning checkpoint: it has no {name}; give one that fit wrote")
    return content


def check_made_by(path: Path, checkpoint: dict[str, Any], model_class: type) -> None:
    """Check that a checkpoint's hyperparameters are some that the class takes.

    Raises:
        InputError: If one of them is not; the first such is named.
    """
    known = inspect.signature(model_class).parameters
    for name in checkpoint.get("hyper_parameters", {}):
        if not name.startswith("_") and name not in known:  # Lightning's own begin with an underscore
            raise InputError(f"{path} is no checkpoint of {model_class.__name__}, which takes no {name}")


def check_fits(path: Path, state_dict: dict[str, Any], model: nn.Module) -> None:
    """Check that a checkpoint's weights are for this network.

    Raises:
        InputError: If a weight is missing, unknown, or of another shape; the first such is named.
    """
    here = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    there = {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise InputError(
                f"{path} is for another network: {name} is {there.get(name, 'missing')} there and "
                f"{here.get(name, 'unknown')} here"
            )
