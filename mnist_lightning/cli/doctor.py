"""The verb ``doctor``: can a machine, or each process of a cluster allocation, run a training?"""

import hashlib
import os
import shutil
import socket
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from packaging.requirements import Requirement
from torch import distributed as dist
from torch.testing import assert_close

from mnist_lightning.checkpoints import read_checkpoint
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.networks import MLP
from mnist_lightning.training.record import versions
from mnist_lightning.training.resume import AtomicCheckpointIO

TIMEOUT = timedelta(seconds=60)  # for all processes to start, and for each to finish its checks
Report = tuple[int, str, list[str]]  # a process's rank and host, and a line for each check


def doctor(
    data: DigitDataModule,
    log_dir: Path,
    accelerator: str,
    devices: int | str,
    num_nodes: int | None,
) -> int:
    """Check what a run needs, in each process of it, and print a line for each check.

    Args:
        data: The data module, whose data are checked but not downloaded.
        log_dir: The folder of runs.
        accelerator: What to run on, such as ``auto`` or ``cpu``.
        devices: How many devices of each node; ``auto`` for all GPUs, or as many as torchrun or
            srun started processes.
        num_nodes: How many nodes; None for as many as torchrun or srun use, or one.

    Returns:
        In the first process 1 if a check failed in any process; otherwise 0. A launcher stops all
        processes when one of them fails, so the others let the first one speak.
    """
    fabric: Fabric | None = None

    def check_devices() -> str:
        nonlocal fabric
        fabric = choose_devices(accelerator, devices, num_nodes)
        return name_devices(fabric)

    checks: dict[str, Callable[[], str]] = {
        "versions": check_versions,
        "devices": check_devices,
        "processes": lambda: check_processes(fabric),
        "compute": lambda: check_compute(fabric),
        "data": lambda: check_data(data),
        "log folder": lambda: check_log_folder(log_dir),
    }
    lines = [outcome(name, check) for name, check in checks.items()]
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


def outcome(name: str, check: Callable[[], str]) -> str:
    """Return the line of a check: that it is ok, or how it failed."""
    try:
        result, text = "ok", check()
    except Exception as error:  # whatever it is, the user should read it
        result, text = "FAIL", f"{type(error).__name__}: {error}".removeprefix("InputError: ")
    return f"{result:<4}  {name:<10}  {' '.join(text.split())[:500]}"


def merge(reports: list[Report]) -> list[str]:
    """Return a line for each check; where processes differ, each line with its ranks and hosts."""
    merged = []
    for lines in zip(*(report[2] for report in reports), strict=True):
        groups: dict[str, list[str]] = {}
        for (rank, host, _), line in zip(reports, lines, strict=True):
            groups.setdefault(line, []).append(f"rank {rank} on {host}")
        if sum(line.startswith(("ok    versions", "ok    data")) for line in groups) > 1:
            merged.append(f"FAIL  {lines[0][6:16]}  the processes differ, but must have the same:")
        for line, who in groups.items():
            merged.append(line + note_of(who, len(reports)))
    return merged


def note_of(who: list[str], processes: int) -> str:
    """Return which processes say a line; nothing if the only one is the first.

    Args:
        who: Their ranks and hosts.
        processes: How many processes there are.
    """
    if len(who) == processes > 1:
        return f" ({processes} processes)"
    if processes == 1 and who[0].startswith("rank 0 "):
        return ""
    more = f" and {len(who) - 4} more" if len(who) > 4 else ""
    return f" ({', '.join(who[:4])}{more})"


def check_versions() -> str:
    """Name the versions, and check that they are what this package requires."""
    for need in map(Requirement, requires("mnist-lightning") or []):
        if need.marker is not None:
            continue  # an extra
        found = version(need.name)
        if not need.specifier.contains(found, prereleases=True):
            raise InputError(
                f"expected {need}, got {found}; pip install -e . installs what is required"
            )
    named = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{named}; CUDA {torch.version.cuda}"


def choose_devices(accelerator: str, devices: int | str, num_nodes: int | None) -> Fabric:
    """Choose devices as ``fit`` does; in a job of torchrun or srun, check that they fit to it."""
    started: ClusterEnvironment | None = None
    if TorchElasticEnvironment.detect():
        started = TorchElasticEnvironment()
    elif SLURMEnvironment.detect():
        started = SLURMEnvironment()
    if started is not None:
        processes = started.world_size()
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        on_a_node = int(os.environ.get("LOCAL_WORLD_SIZE") or processes // nodes)
        devices = on_a_node if devices == "auto" else devices
        num_nodes = num_nodes or processes // on_a_node
    chosen: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes or 1,
    }
    fabric = Fabric(**chosen)
    if started is not None:
        started.validate_settings(getattr(fabric.strategy, "num_processes", 1), num_nodes or 1)
    if isinstance(fabric.strategy, DDPStrategy):
        # By default, a process waits half an hour for the others.
        fabric = Fabric(**chosen, strategy=DDPStrategy(timeout=TIMEOUT))
    return fabric


def name_devices(fabric: Fabric) -> str:
    """Name the devices that this process may use, and the one that was chosen."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names))) or "no GPU"
    return f"{os.cpu_count()} CPU cores, {gpus}; training would run on {fabric.device.type}"


def check_processes(fabric: Fabric | None) -> str:
    """Join the processes as ``fit`` does, and sum as many numbers as a gradient has, exactly."""
    if fabric is None:
        raise InputError("not checked, because the devices are not as asked for")
    fabric.launch()
    number = fabric.world_size
    if number == 1:
        return "one process: nothing to sum"
    total = torch.full((109_386,), fabric.global_rank + 1.0, device=fabric.device)
    # NCCL's own timeout would end the process.
    dist.all_reduce(total, async_op=True).wait(TIMEOUT / 2)
    wrong = int((total != number * (number + 1) // 2).sum())
    if wrong:
        raise InputError(f"{wrong:,} of {len(total):,} sums over {number} processes are wrong")
    return f"{dist.get_backend()} sums {len(total):,} numbers over {number} processes exactly"


def check_compute(fabric: Fabric | None) -> str:
    """Compare loss and gradients of the default network with those in float64 on the CPU."""
    cpu = torch.device("cpu")
    device = cpu if fabric is None else fabric.device
    net, images, labels = MLP().eval(), torch.rand(32, 1, 28, 28), torch.arange(32) % 10
    results = []
    for where, dtype in ((device, torch.float32), (cpu, torch.float64)):
        logits = net.to(where, dtype)(images.to(where, dtype))
        loss = torch.nn.functional.cross_entropy(logits, labels.to(where))
        results.append([loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))])
    assert_close(*results, rtol=1e-4, atol=1e-6, check_device=False, check_dtype=False)
    return f"loss and gradients on {device.type} in float32 agree with the CPU in float64"


def check_data(data: DigitDataModule) -> str:
    """Verify and read the data, without a network."""
    verified = data.verify()
    data.setup()
    digest, sizes = hashlib.sha256(), []
    for name, split in (("training", "train_set"), ("validation", "val_set"), ("test", "test_set")):
        images, labels = getattr(data, split).arrays()
        sizes.append(f"{len(images):,} {name}")
        digest.update(images.tobytes())
        if labels is not None:
            digest.update(labels.tobytes())
    return f"{verified}; {', '.join(sizes)} images with fingerprint {digest.hexdigest()[:8]}"


def check_log_folder(log_dir: Path) -> str:
    """Save a network where ``fit`` would make the folder of runs, and read it back as ``test``."""
    folder = next(folder for folder in (log_dir, *log_dir.parents) if folder.exists())
    free = shutil.disk_usage(folder).free >> 20  # MiB
    if free < 100:  # ample for a run folder
        raise InputError(
            f"{log_dir} has {free} MiB free, and a run needs 100: delete something there"
        )
    weights = MLP().state_dict()
    with TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
        path = Path(scratch) / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"state_dict": weights, "global_step": 1}, path)
        assert_close(read_checkpoint(path)["state_dict"], weights, rtol=0, atol=0)
    return f"{log_dir}: a checkpoint is the same when it is read back"
