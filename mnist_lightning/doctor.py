"""The verb ``doctor``: whether a machine, or every process of a cluster allocation, is fit for a run."""

import hashlib
import os
import shutil
import socket
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from packaging.requirements import Requirement
from torch import distributed as dist
from torch.testing import assert_close

from mnist_lightning.classifier import read_checkpoint
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.models.mlp import MLP
from mnist_lightning.training.callbacks import versions
from mnist_lightning.training.resume import AtomicCheckpointIO

TIMEOUT = timedelta(seconds=60)  # for all processes to start, and for each to finish its checks
Report = tuple[int, str, list[str]]  # a process's rank and host, and a line for each check


@dataclass
class Site:
    """Where a run would take place: what ``doctor`` is given, and what a check finds for the checks after it."""

    data: DigitDataModule
    log_dir: Path
    accelerator: str
    devices: int | str
    num_nodes: int | None
    fabric: Fabric | None = None


def doctor(data: DigitDataModule, log_dir: Path, accelerator: str, devices: int | str, num_nodes: int | None) -> int:
    """Check what a run needs, in every process that would take part in it, and print a line for each check.

    Args:
        data: The data module, whose data are checked but not downloaded.
        log_dir: The folder of runs.
        accelerator: What to run on, such as ``auto`` or ``cpu``.
        devices: How many devices of each node; ``auto`` for all GPUs, or as many as torchrun or srun started processes.
        num_nodes: How many nodes; None for as many as torchrun or srun use, or one.

    Returns:
        In the first process 1 if a check failed in any process; otherwise 0. A launcher stops all processes when one
        of them fails, so the others let the first one speak.
    """
    site = Site(data, log_dir, accelerator, devices, num_nodes)
    lines: list[str] = []
    for check in CHECKS:
        try:
            result, text = "ok", check(site)
        except Exception as error:  # whatever it is, the user should read it
            result, text = "FAIL", f"{type(error).__name__}: {error}".removeprefix("InputError: ")
        name = check.__name__.removeprefix("check_").replace("_", " ")
        lines.append(f"{result:<4}  {name:<10}  {' '.join(text.split())[:500]}")
    rank = int(getattr(rank_zero_only, "rank", 0))
    reports: list[Report] = [(rank, socket.gethostname(), lines)]
    if dist.is_initialized():
        reports *= dist.get_world_size()
        # Gloo on any device: where NCCL does not work, the processes can still report that.
        group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        dist.all_gather_object(reports, reports[0], group)
    lines = merge(reports)
    for line in lines:
        if rank == 0 or (len(reports) == 1 and line.startswith("FAIL")):
            print(line, flush=True)
    return int(rank == 0 and any(line.startswith("FAIL") for line in lines))


def merge(reports: list[Report]) -> list[str]:
    """Return a line for each check; where the processes differ, each of their lines, with their ranks and hosts."""
    merged = []
    for lines in zip(*(report[2] for report in reports), strict=True):
        groups: dict[str, list[str]] = {}
        for (rank, host, _), line in zip(reports, lines, strict=True):
            groups.setdefault(line, []).append(f"rank {rank} on {host}")
        if sum(line.startswith(("ok    versions", "ok    data")) for line in groups) > 1:
            merged.append(f"FAIL  {lines[0][6:16]}  the processes differ, but must have the same:")
        for line, who in groups.items():
            named = ", ".join(who[:4]) + (f" and {len(who) - 4} more" if len(who) > 4 else "")
            note = f" ({len(who)} processes)" if len(who) == len(reports) > 1 else f" ({named})"
            merged.append(line + note if len(reports) > 1 or reports[0][0] > 0 else line)
    return merged


def check_versions(site: Site) -> str:
    """Name the versions, and check that they are what this package requires."""
    for need in map(Requirement, requires("mnist-lightning") or []):
        # Those with a marker are extras.
        if need.marker is None and not need.specifier.contains(found := version(need.name), prereleases=True):
            raise InputError(f"expected {need}, got {found}; pip install -e . installs what is required")
    return ", ".join(f"{name} {number}" for name, number in versions().items()) + f"; CUDA {torch.version.cuda}"


def check_devices(site: Site) -> str:
    """Name the devices that this process may use, and choose one as ``fit`` does."""
    started = next((kind() for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)
    devices, num_nodes = site.devices, site.num_nodes or 1
    if started is not None:
        number = started.world_size()
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or number // int(os.environ.get("SLURM_NNODES", 1)))
        devices, num_nodes = local if devices == "auto" else devices, site.num_nodes or number // local
    chosen: dict[str, Any] = {"accelerator": site.accelerator, "devices": devices, "num_nodes": num_nodes}
    fabric = Fabric(**chosen)
    if started is not None:
        started.validate_settings(getattr(fabric.strategy, "num_processes", 1), num_nodes)
    if isinstance(fabric.strategy, DDPStrategy):  # by default, a process waits half an hour for the others
        fabric = Fabric(**chosen, strategy=DDPStrategy(timeout=TIMEOUT))
    site.fabric = fabric
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names))) or "no GPU"
    return f"{os.cpu_count()} CPU cores, {gpus}; training would run on {fabric.device.type}"


def check_processes(site: Site) -> str:
    """Join the processes as ``fit`` does, and sum a gradient's worth of numbers; the sum must be exact."""
    if site.fabric is None:
        raise InputError("not checked, because the devices are not as asked for")
    site.fabric.launch()
    if (number := site.fabric.world_size) == 1:
        return "one process: nothing to sum"
    total = torch.full((109_386,), site.fabric.global_rank + 1.0, device=site.fabric.device)
    dist.all_reduce(total, async_op=True).wait(TIMEOUT / 2)  # NCCL's own timeout would end the process
    if wrong := int((total != number * (number + 1) // 2).sum()):
        raise InputError(f"{wrong:,} of {len(total):,} sums over {number} processes are wrong")
    return f"{dist.get_backend()} sums {len(total):,} numbers over {number} processes exactly"


def check_compute(site: Site) -> str:
    """Compare the default network's loss and gradients on the device with those in float64 on the CPU."""
    net, images, labels, results = MLP().eval(), torch.rand(32, 1, 28, 28), torch.arange(32) % 10, []
    device = torch.device("cpu") if site.fabric is None else site.fabric.device
    for where, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        loss = torch.nn.functional.cross_entropy(net.to(where, dtype)(images.to(where, dtype)), labels.to(where))
        results.append([loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))])
    assert_close(*results, rtol=1e-4, atol=1e-6, check_device=False, check_dtype=False)
    return f"loss and gradients on {device.type} in float32 agree with the CPU in float64"


def check_data(site: Site) -> str:
    """Verify and read the data, without a network."""
    digest, sizes, verified = hashlib.sha256(), [], site.data.verify()
    site.data.setup()
    for name, split in (("training", "train_set"), ("validation", "val_set"), ("test", "test_set")):
        images, labels = getattr(site.data, split).arrays()
        sizes.append(f"{len(images):,} {name}")
        digest.update(images.tobytes() + (b"" if labels is None else labels.tobytes()))
    return f"{verified}; {', '.join(sizes)} images with fingerprint {digest.hexdigest()[:8]}"


def check_log_folder(site: Site) -> str:
    """Save a network in the folder of runs, or where ``fit`` would make it, and read it back as ``test`` does."""
    folder = next(folder for folder in (site.log_dir, *site.log_dir.parents) if folder.exists())
    if (free := shutil.disk_usage(folder).free >> 20) < 100:  # MiB: ample for a run folder
        raise InputError(f"{site.log_dir} has {free} MiB free, and a run needs 100: delete something there")
    weights = MLP().state_dict()
    with TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
        path = Path(scratch) / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"state_dict": weights, "global_step": 1}, path)
        assert_close(read_checkpoint(path)["state_dict"], weights, rtol=0, atol=0)
    return f"{site.log_dir}: a checkpoint is the same when it is read back"


CHECKS = (check_versions, check_devices, check_processes, check_compute, check_data, check_log_folder)
