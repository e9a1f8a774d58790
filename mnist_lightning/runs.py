"""The run folder: where a run is kept, and how the newest one and its checkpoints are found.

``lightning_logs/<run>/`` is all there is to know about a run: ``config.yaml``, ``run.json``, ``metrics.csv``, the
TensorBoard events, ``checkpoints/best.ckpt`` and ``last.ckpt``, ``curves.png``, and what test and predict wrote.
"""

import json
import os
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from mnist_lightning.errors import InputError
from mnist_lightning.files import open_regular

CONFIG = "config.yaml"
RECORD = "run.json"
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
LARGEST_RECORD = 100_000  # bytes
KEYWORDS = ("best", "last")  # of the newest run


def claim(root: Path) -> Path:
    """Make and return the next free ``version_N`` under ``root``; no two processes get the same one.

    Raises:
        InputError: If the folder cannot be made.
    """
    numbers = [int(path.name[8:]) for path in root.glob("version_*") if path.name[8:].isdecimal()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in count(max(numbers, default=-1) + 1):
            with suppress(FileExistsError):
                folder = root / f"version_{number}"
                folder.mkdir()
                break
    except OSError as error:
        raise InputError(
            f"cannot make a run folder in {root}: {error.strerror}; choose another --trainer.default_root_dir"
        ) from error
    return folder


def discard(folder: Path) -> None:
    """Remove a new run folder that has come to nothing, and the folder of runs if it held no other.

    A folder with a checkpoint stays.
    """
    if not (folder / CHECKPOINTS).exists():
        shutil.rmtree(folder)
        with suppress(OSError):  # not empty
            folder.parent.rmdir()


def newest(root: Path) -> Path:
    """Return the run under ``root`` that saved a checkpoint last.

    Raises:
        InputError: If there is none.
    """
    checkpoints = [path for path in root.glob(f"*/{CHECKPOINTS}/*.ckpt") if path.is_file()]
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
        if os.path.isdir(path):
            path = path / CHECKPOINTS / f"{default}.ckpt"
    if not os.path.isfile(path):  # unlike Path's own, it does not raise for a name that is too long
        raise InputError(f"no checkpoint at {path}; give --ckpt_path a checkpoint file or a run folder")
    return path


def read_record(run: Path) -> dict[str, Any] | None:
    """Return the content of a run's ``run.json``, or None where ``fit`` has not come to write it, or not whole."""
    try:
        with open_regular(run / RECORD) as file:
            record = json.loads(file.read(LARGEST_RECORD))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder a checkpoint lies in, or None if it lies elsewhere."""
    run = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None
    return run if run is not None and (run / CONFIG).is_file() else None
