"""Denormal numbers are flushed to zero while ``fit`` trains.

Adam's averages of a weight that hardly gets a gradient shrink until they are denormal: nearer to
zero than 1.2e-38. Many Intel processors take some 150 cycles for each.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

DENORMAL = 1e-40
OMP_PAUSE_SOFT = 1  # of omp_pause_resource_t (OpenMP 5.0): end the threads, keep the settings


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Compute with zero instead of denormal numbers, and put the processor's flag back afterwards.

    It holds for this thread and for the threads on which torch divides an operation on the CPU.
    """
    before = is_flushed()
    _flush(True)
    try:
        yield
    finally:
        _flush(before)


def is_flushed() -> bool:
    """Return whether this thread computes with zero instead of denormal numbers."""
    return bool(torch.tensor(DENORMAL) * 1 == 0)


def _flush(flag: bool) -> None:
    if not torch.set_flush_denormal(flag):  # the processor has no such flag
        return
    # A thread takes the flag from the one that starts it. So OpenMP ends its threads here, and
    # starts new ones with the next operation.
    with suppress(AttributeError, TypeError):  # a library or a system without this function
        ctypes.CDLL(None).omp_pause_resource_all(OMP_PAUSE_SOFT)
