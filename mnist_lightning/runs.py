"""The run folder: where a run is kept, and how the newest one and its checkpoints are found.

``lightning_logs/<run>/`` is all there is to know about a run: ``config.yaml``, ``run.json``, ``metrics.csv``, the
TensorBoard events, ``checkpoints/best.ckpt`` and ``last.ckpt``, ``curves.png``, and what test and predict wrote.
"""

from contextlib import suppress
from itertools import count
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from mnist_lightning.errors import InputError

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
KEYWORDS = ("best", "last")


def claim(root: Path) -> Path:
    """Make and return the next free ``version_N`` under ``root``; no two processes get the same one.

    Raises:
        InputError: If the folder cannot be made.
    """
    numbers = [int(path.name[8:]) for path in root.glob("version_*") if path.name[8:].isdigit()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in count(max(numbers, default=-1) + 1):
            with suppress(FileExistsError):
                folder = root / f"version_{number}"
                folder.mkdir()
                return folder
    except OSError as error:
        raise InputError(
            f"cannot make a run folder in {root}: {error.strerror}; choose another --trainer.default_root_dir"
        ) from error
    raise AssertionError("count() does not end")


def discard(folder: Path) -> None:
    """Remove a run folder that nothing was written to, and the folder of runs if it held no other."""
    with suppress(OSError):  # not empty
        folder.rmdir()
        folder.parent.rmdir()


def newest(root: Path) -> Path:
    """Return the run under ``root`` that saved a checkpoint last.

    Raises:
        InputError: If there is none.
    """
    checkpoints = list(root.glob(f"*/{CHECKPOINTS}/*.ckpt"))
    if not checkpoints:
        raise InputError(f"no run with a checkpoint in {root}; train one first: python -m mnist_lightning fit")
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns).parent.parent


def find_checkpoint(ckpt_path: str, root: Path, default: str) -> Path:
    """Return the checkpoint file that a ``--ckpt_path`` means.

    Args:
        ckpt_path: A checkpoint file, a run folder, or ``best`` or ``last`` of the newest run.
        root: Folder of runs, for the newest one.
        default: Which checkpoint of a run folder is meant, ``best`` or ``last``.

    Raises:
        InputError: If there is no such checkpoint.
    """
    if ckpt_path in KEYWORDS:
        path = newest(root) / CHECKPOINTS / f"{ckpt_path}.ckpt"
    else:
        path = Path(ckpt_path)
        if path.is_dir():
            path = path / CHECKPOINTS / f"{default}.ckpt"
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give --ckpt_path a checkpoint file or a run folder")
    return path


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder a checkpoint lies in, or None if it lies elsewhere."""
    folder = checkpoint.absolute().parent
    run = folder.parent
    if folder.name != CHECKPOINTS or not (run / CONFIG).is_file():
        return None
    return checkpoint.parent.parent


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint's weights and plain values; code in it is refused and does not run.

    Raises:
        InputError: If the file is no Lightning checkpoint, is damaged, or holds anything else.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds objects other than weights and plain values, so it was not loaded: it "
                "could run code; save weights only"
            ) from error
        raise InputError(f"{path} is no checkpoint, or is damaged; use one that fit wrote") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no checkpoint, or is damaged; use one that fit wrote") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(f"{path} is no Lightning checkpoint: it has no state_dict; use one that fit wrote")
    return checkpoint


def check_fits(checkpoint: Path, state_dict: dict[str, Any], model: nn.Module) -> None:
    """Check that a checkpoint's weights are for this network.

    Raises:
        InputError: If a weight is missing, unknown, or of another shape; the first such is named.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}
    for name in sorted(own.keys() | given.keys()):
        if own.get(name) != given.get(name):
            raise InputError(
                f"{checkpoint} is for another network: {name} is {given.get(name, 'missing')} there and "
                f"{own.get(name, 'unknown')} here"
            )
