"""The verb ``doctor``: whether a machine, or all of a cluster allocation, is fit for a run."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Literal, NamedTuple

from jsonargparse.typing import PositiveInt
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed as dist

from mnist_lightning.checks import machine, run
from mnist_lightning.checks.findings import Finding, Report, line, merge, one_line
from mnist_lightning.checks.site import TIMEOUT, Site
from mnist_lightning.describe import data_parser, only_data
from mnist_lightning.errors import InputError, refusals
from mnist_lightning.request import runs_root

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
GRACE_SECONDS = 10  # a launcher stops all processes when one fails: the first has more to tell
CHECKS: dict[str, Callable[[Site], Finding]] = {
    "versions": machine.check_versions,
    "devices": machine.check_devices,
    "memory": machine.check_memory,
    "compute": machine.check_compute,
    "collective": machine.check_collective,
    "data": run.check_data,
    "log folder": run.check_log_folder,
    "checkpoint": run.check_checkpoint,
}


def doctor(args: Sequence[str], **parser_kwargs: Any) -> int:
    """Check what a run needs in each process that would take part in it, and print a line for each check.

    Args:
        args: The arguments after the verb.
        **parser_kwargs: The parser's.

    Returns:
        The exit code, the same for all processes: 1 if a check failed in any of them, or else 0.

    Raises:
        InputError: If the flags cannot be used.
    """
    parser = data_parser(**parser_kwargs)
    parser.add_argument("--accelerator", type=Accelerator, default="auto", help="What to run on.")
    parser.add_argument(
        "--devices",
        type=int | str,
        default="auto",
        help="How many devices of each node, or which; by default all GPUs, or as many as torchrun or srun started.",
    )
    parser.add_argument(
        "--num_nodes",
        type=PositiveInt | None,
        default=None,
        help="How many nodes; by default as torchrun or srun say.",
    )
    parser.add_argument(
        "--default_root_dir", type=str, default=None, help="Folder of lightning_logs; by default where you are."
    )
    config = parser.parse_args(only_data(args))
    with refusals():
        data = parser.instantiate_classes(config).data
    with ExitStack() as stack:
        for name in ("lightning.fabric", "lightning.pytorch"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.WARNING)  # who has joined, the checks tell
        site = Site("", "", data, runs_root(config.default_root_dir), stack)
        try:
            site.fabric = fabric = connect(config.accelerator, config.devices, config.num_nodes)
        except Exception as error:
            site.fabric = one_line(error)
            return _check_alone(site)
        try:
            fabric.launch()
            # Of gloo, whatever the devices: where NCCL does not work, this still says so.
            group = dist.new_group(backend="gloo", timeout=TIMEOUT) if fabric.world_size > 1 else None
        except Exception as error:
            site.stranded = _stranded(error, fabric.world_size)
            code = _check_alone(site, is_silent=isinstance(error, dist.DistStoreError))
        else:
            code = _check_together(site, fabric, group)
        # Lightning's own launcher kills the process whose exit code counts as soon as one that it started ends with 1.
        is_started_by_lightning = isinstance(_environment(fabric), LightningEnvironment) and fabric.local_rank > 0
        return 0 if is_started_by_lightning else code


class Launched(NamedTuple):
    """The processes that torchrun or srun say they started."""

    per_node: int
    nodes: int
    total: int


def connect(accelerator: str, devices: int | str, num_nodes: int | None) -> Fabric:
    """Return what will join the processes as ``fit`` does, but will not wait for half an hour.

    Raises:
        InputError: If the devices are not there, or torchrun or srun have not started a process for each of them.
    """
    started = launched()
    if started is not None:
        devices = started.per_node if devices == "auto" else devices
        num_nodes = num_nodes or started.nodes
    num_nodes = num_nodes or 1
    kwargs: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "num_nodes": num_nodes}
    with refusals():
        fabric, local = Fabric(**kwargs), 1
        if isinstance(fabric.strategy, DDPStrategy):
            strategy = DDPStrategy(timeout=TIMEOUT)
            fabric, local = Fabric(**kwargs, strategy=strategy), strategy.num_processes
    if started is not None and local * num_nodes != started.total:
        raise InputError(
            f"{started.total} processes were started, but --devices {local} on each of --num_nodes {num_nodes} "
            f"take {local * num_nodes}; start one process for each device"
        )
    return fabric


def launched() -> Launched | None:
    """Return what torchrun or srun say they started, or None where neither started this process."""
    if TorchElasticEnvironment.detect():
        local, total = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        return Launched(local, total // local, total)
    if SLURMEnvironment.detect():
        nodes, total = int(os.environ.get("SLURM_NNODES", 1)), int(os.environ["SLURM_NTASKS"])
        return Launched(int(os.environ.get("SLURM_NTASKS_PER_NODE", total // nodes)), nodes, total)
    return None


def _environment(fabric: Fabric) -> Any:
    return getattr(fabric.strategy, "cluster_environment", None)


def _stranded(error: Exception, number: int) -> str:
    if isinstance(error, (dist.DistStoreError, dist.DistNetworkError)):
        address = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        return (
            f"{number} processes were awaited for {TIMEOUT.total_seconds():.0f} s: {str(error).rstrip('.')}; "
            f"start all of them, on nodes that reach {address}"
        )
    return f"{number} processes could not be joined: {one_line(error)}"


def _check_alone(site: Site, is_silent: bool = False) -> int:
    """Check in a process that has met no other: everything if it is the first, or else what kept it from them."""
    rank, host = int(getattr(rank_zero_only, "rank", 0)), socket.gethostname()
    if rank == 0:
        _print(merge([Report(rank, host, _examine(site, CHECKS))]))
        return 1
    if not is_silent:
        name = "devices" if isinstance(site.fabric, str) else "collective"
        text = _examine(site, [name])[name].text
        _print([(name, Finding(f"{text} (rank {rank} on {host})", ok=False))])
    time.sleep(GRACE_SECONDS)
    return 1


def _check_together(site: Site, fabric: Fabric, group: Any) -> int:
    """Check in every process, and print in the first what all of them found."""
    number = fabric.world_size
    # The collective first, while all processes have just come: it waits for the slowest.
    found = _examine(site, sorted(CHECKS, key=lambda name: name != "collective"))
    own = Report(fabric.global_rank, socket.gethostname(), {name: found[name] for name in CHECKS})
    reports: list[Any] = [own]
    if group is not None:
        reports = [None] * number
        try:
            dist.all_gather_object(reports, own, group)
        except RuntimeError:
            text = f"{number} processes began, but one was killed or is stuck: it never told what it found"
            own.findings["collective"] = Finding(text, ok=False)
            reports = [own]
    merged = merge(reports)
    if own.rank == 0:
        _print(merged)
    if group is not None:
        with suppress(RuntimeError):  # the first is gone
            dist.barrier(group)  # a launcher stops all processes when one fails: not before all is told
    return int(not all(finding.ok for _, finding in merged))


def _examine(site: Site, names: Iterable[str]) -> dict[str, Finding]:
    """Carry out checks, whatever becomes of the others."""
    findings = {}
    for name in names:
        try:
            findings[name] = CHECKS[name](site)
        except Exception as error:  # whatever it is, it is a finding
            findings[name] = Finding(one_line(error), ok=False)
    return findings


def _print(merged: Sequence[tuple[str, Finding]]) -> None:
    for name, finding in merged:
        print(line(name, finding), flush=True)
