"""Checks of what a run reads and writes: data, the log folder, checkpoints."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import lightning as L
from torch.testing import assert_close

from mnist_lightning.checkpoints import AtomicCheckpointIO, load_checkpoint
from mnist_lightning.checks.findings import Finding, size
from mnist_lightning.checks.machine import loss_and_gradients
from mnist_lightning.checks.site import Site
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.errors import InputError
from mnist_lightning.files import kept_if_used, write_atomic
from mnist_lightning.models import MLP

RUN_SIZE = 100 * 2**20  # bytes: ample for a run folder


def check_data(site: Site) -> Finding:
    """Verify and read the data, without a network."""
    verified = site.data.verify()
    site.data.setup()
    sets = {"training": site.data.train_set, "validation": site.data.val_set, "test": site.data.test_set}
    digest = hashlib.sha256()
    for dataset in sets.values():
        assert dataset is not None
        for tensor in (*dataset.tensors, dataset.rows):
            digest.update(tensor.contiguous().numpy().data)
    sizes = ", ".join(f"{len(dataset or ()):,} {name}" for name, dataset in sets.items())
    return Finding(f"{verified}; {sizes} images with fingerprint {digest.hexdigest()[:8]}")


@contextmanager
def _new_file(site: Site) -> Iterator[Path]:
    """Name a new file in the folder of runs, which is made if it must be, and remove it afterwards."""
    try:
        site.stack.enter_context(kept_if_used(site.root))
        path = site.root / f".doctor-{uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{site.root}: {error.strerror or error}; choose another --default_root_dir") from error


def check_log_folder(site: Site) -> Finding:
    """Write a file into the folder of runs as a run does, and read it back."""
    content = os.urandom(2**20)
    with _new_file(site) as path:
        write_atomic(path, content)
        if path.read_bytes() != content:
            raise InputError(f"{site.root} does not give back what is written; choose another --default_root_dir")
        free = shutil.disk_usage(site.root).free
    if free < RUN_SIZE:
        raise InputError(f"{site.root} has {size(free)} free, a run needs {size(RUN_SIZE)}; make room there")
    return Finding(f"{site.root} can be written to and read", free=(free,))


def check_checkpoint(site: Site) -> Finding:
    """Save the default model after an update as ``fit`` does, and load it as ``test`` does."""
    model = DigitClassifier(MLP()).to(site.device)
    optimizer = model.configure_optimizers()
    loss_and_gradients(model)
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    with _new_file(site) as path:
        checkpoint = state | {"global_step": 1, "pytorch-lightning_version": L.__version__}
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
        loaded = load_checkpoint(path)
        length = path.stat().st_size
    try:
        assert_close({name: loaded[name] for name in state}, state, rtol=0, atol=0, check_device=False)
    except AssertionError as error:
        raise InputError(f"a checkpoint in {site.root} comes back damaged: {error}") from error
    return Finding(f"{length / 1e6:.1f} MB of weights and optimizer state come back as they were saved")
