"""Make a run folder of a network that was trained elsewhere."""

import io
import shutil
from pathlib import Path

import torch
from torch import nn

from mnist_lightning.checkpoints import to_settings
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.export.keras import read_keras
from mnist_lightning.files import write_atomic
from mnist_lightning.training.folders import claim
from mnist_lightning.training.record import (
    class_name,
    size_of,
    started_now,
    versions,
    write_config,
    write_record,
)
from mnist_lightning.training.run import Run
from mnist_lightning.training.runs import LOG_DIR


def import_run(
    path: str | Path,
    data: DigitDataModule,
    *,
    like: nn.Module | None = None,
    name: str | None = None,
    log_dir: str | Path = LOG_DIR,
) -> Run:
    """Make a run of a Keras file, to test and predict with, or to train on with ``init_from``.

    Args:
        path: A ``.keras`` or ``.h5`` file with a Sequential model, or a ``.weights.h5`` file.
        data: The data that the run is for.
        like: A network with the layers of a ``.weights.h5`` file, which does not say what they are.
        name: The name of the run folder; the next free ``version_N`` by default.
        log_dir: The folder of runs.

    Raises:
        InputError: If the file cannot be read, or has layers that are not known.
    """
    net = read_keras(path, like)
    model = DigitClassifier(net)
    settings = dict(model.hparams)
    record = {
        "verb": "import",
        "file": str(path),
        "started": started_now("seconds"),
        "dataset": class_name(data),
        "network": class_name(net),
        **size_of(net),
        "weights": "best",
        "versions": versions(),
    }
    content = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": settings}, content)
    folder = claim(Path(log_dir), name)
    checkpoint = folder / "checkpoints" / "best.ckpt"
    try:
        checkpoint.parent.mkdir()
        write_config(folder, {"model": settings, "data": to_settings(data, lossy=True)})
        write_record(folder, record)
        write_atomic(checkpoint, content.getbuffer())
    except BaseException:
        shutil.rmtree(folder)
        raise
    return Run(folder, checkpoint, model, data)
