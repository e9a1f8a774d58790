"""Make a run folder of a network that was trained elsewhere."""

import io
import json
import shutil
from datetime import datetime
from pathlib import Path

import torch
import yaml
from torch import nn

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.export.keras import read_keras
from mnist_lightning.files import write_atomic
from mnist_lightning.models.layers import layer_table
from mnist_lightning.settings import to_settings
from mnist_lightning.training.callbacks import versions
from mnist_lightning.training.fit import claim
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
    """Make a run of a Keras file, to validate, test and predict with, or to train on with ``init_from``.

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
    config = {"model": dict(model.hparams), "data": to_settings(data, lossy=True)}
    record = {
        "verb": "import",
        "file": str(path),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "dataset": type(data).__name__,
        "network": type(net).__name__,
        "layers": layer_table(net).splitlines(),
        "num_parameters": sum(parameter.numel() for parameter in net.parameters()),
        "weights": "best",
        "versions": versions(),
    }
    checkpoint = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, checkpoint)
    folder = claim(Path(log_dir), name)
    try:
        (folder / "checkpoints").mkdir()
        write_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        write_atomic(folder / "run.json", json.dumps(record, indent=2) + "\n")
        write_atomic(folder / "checkpoints" / "best.ckpt", checkpoint.getbuffer())
    except BaseException:
        shutil.rmtree(folder)
        raise
    return Run(folder, folder / "checkpoints" / "best.ckpt", model, data)
