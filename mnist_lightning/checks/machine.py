"""Checks of what is there: versions, devices, memory, and whether they compute and communicate as they should."""

import os
import time
from collections import Counter
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.testing import assert_close

from mnist_lightning.callbacks import versions
from mnist_lightning.checks.findings import Finding, size
from mnist_lightning.checks.memory import host_memory
from mnist_lightning.checks.site import TIMEOUT, Site
from mnist_lightning.errors import InputError
from mnist_lightning.models import MLP

FIT_MEMORY = 2**30  # bytes: what fit takes with MNIST, about
NUM_REDUCED = 109_386  # what an update of the default network reduces


def check_versions(site: Site) -> Finding:
    """Name the versions, and check that they are what this package requires."""
    problems = []
    for requirement in map(Requirement, requires("mnist-lightning") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
        else:
            if not requirement.specifier.contains(installed, prereleases=True):
                problems.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    if problems:
        raise InputError(f"{', '.join(problems)}; install what mnist-lightning requires: pip install -e .")
    found = versions()
    found["torch"] += f" (CUDA {torch.version.cuda})" if torch.version.cuda else " (no CUDA)"
    return Finding(", ".join(f"{name} {number}" for name, number in found.items()))


def check_devices(site: Site) -> Finding:
    """Count the CPU cores and name the GPUs that this process may use, and say which it takes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    named = ", ".join(f"{number} x {name}" for name, number in gpus.items()) or "no GPU"
    found = f"{cores} CPU cores (torch uses {torch.get_num_threads()}), {named}"
    if isinstance(site.fabric, str):
        raise InputError(f"{found}; {site.fabric}")
    return Finding(f"{found}; training would run on {site.device.type}")


def check_memory(site: Site) -> Finding:
    """Measure the memory of the host, and of the GPU that this process takes; it has to do for ``fit``."""
    total, free = host_memory()
    found = [("host", total, free)]
    if site.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(site.device)
        found.append(("GPU", total, free))
    for name, _, free in found:
        if free is not None and free < FIT_MEMORY:
            raise InputError(f"the {name} has {size(free)} free, and fit takes about {size(FIT_MEMORY)}")
    text = ", ".join(f"{name} {size(total)}" for name, total, _ in found)
    return Finding(text, free=tuple(free for _, _, free in found if free is not None))


def check_compute(site: Site) -> Finding:
    """Compare the default network's loss and gradients on the device with those in double precision on the CPU."""
    net = MLP().eval()  # without dropout
    reference = loss_and_gradients(deepcopy(net).double())
    found = loss_and_gradients(net.to(site.device))
    if not all(value.isfinite().all() for value in found):
        raise InputError(f"the loss or a gradient on {site.device.type} is not finite")
    try:
        assert_close(found, reference, rtol=1e-4, atol=1e-6, check_device=False, check_dtype=False)
    except AssertionError as error:
        raise InputError(f"{site.device.type} in float32 differs from the CPU in float64: {error}") from error
    return Finding(f"loss and gradients on {site.device.type} in float32 agree with the CPU in float64")


def loss_and_gradients(net: nn.Module) -> list[Tensor]:
    """Return the loss and the gradients of a fixed batch of noise, on the network's device and in its precision."""
    weight = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((32, 1, 28, 28), generator=generator).to(weight)
    loss = F.cross_entropy(net(images), torch.arange(32, device=weight.device) % 10)
    loss.backward()  # type: ignore[no-untyped-call]
    return [loss.detach(), *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


def check_collective(site: Site) -> Finding:
    """Sum a gradient's worth of numbers over all processes, as an update does; the sum must be exact."""
    if isinstance(site.fabric, str):
        raise InputError("not tried, since the devices are not as asked for")
    if site.stranded:
        raise InputError(site.stranded)
    number = site.fabric.world_size
    if number == 1:
        return Finding("one process: nothing to reduce")
    own = torch.full((NUM_REDUCED,), site.fabric.global_rank + 1.0, device=site.device)
    for _ in range(2):  # the first makes the connections
        total = own.clone()
        start = time.perf_counter()
        _reduce(total, dist.ReduceOp.SUM)
        seconds = torch.tensor(time.perf_counter() - start, device=site.device)
    expected = number * (number + 1) // 2
    if wrong := int((total != expected).sum()):
        raise InputError(f"{wrong:,} of {NUM_REDUCED:,} sums over {number} processes are not {expected}")
    _reduce(seconds, dist.ReduceOp.MAX)
    nodes = getattr(site.fabric.strategy, "num_nodes", 1)
    return Finding(
        f"{dist.get_backend()} sums {NUM_REDUCED:,} numbers over {number} processes exactly, in "
        f"{1000 * seconds.item():.1f} ms; fit takes them with --trainer.devices {number // nodes} "
        f"--trainer.num_nodes {nodes}"
    )


def _reduce(values: Tensor, op: dist.ReduceOp.RedOpType) -> None:
    # Waited for half as long as a process that comes late to what follows: this one must still be there then.
    # NCCL's own timeout would end the process.
    work = dist.all_reduce(values, op, async_op=True)
    assert work is not None
    work.wait(TIMEOUT / 2)
