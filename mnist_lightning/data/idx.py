"""MNIST's file format, IDX: a big-endian header, then the bytes."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError
from mnist_lightning.files import open_regular


def read_idx(path: Path, shape: tuple[int, ...], memory_map: bool = False) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    Args:
        path: The file, uncompressed.
        shape: The dimensions it must have.
        memory_map: Whether to leave the bytes on disk and return a read-only view of them.

    Raises:
        InputError: If the header or the size is not that of such a file.
        OSError: If the file cannot be read.
    """
    header = _header(shape)
    with open_regular(path) as file:
        check_idx(file.read(len(header)), os.fstat(file.fileno()).st_size, str(path), shape)
        if memory_map:
            return np.memmap(file, np.uint8, mode="r", offset=len(header), shape=shape)
        return np.fromfile(file, np.uint8).reshape(shape)


def check_idx(start: bytes, size: int, name: str, shape: tuple[int, ...]) -> None:
    """Check that a content is an IDX file of unsigned bytes.

    The header is two zero bytes, 8 for unsigned bytes, the number of dimensions, and each dimension as a
    big-endian 32-bit integer (http://yann.lecun.com/exdb/mnist/, "The IDX file format").

    Args:
        start: The beginning of the content, uncompressed, or all of it.
        size: How many bytes there are in all.
        name: What to call the file in an error.
        shape: The dimensions it must have.

    Raises:
        InputError: If the header or the size is not that of such a file.
    """
    header = _header(shape)
    expected = len(header) + int(np.prod(shape))
    if size != expected:
        raise InputError(f"{name} has {size:,} bytes instead of {expected:,}")
    if not start.startswith(header):
        raise InputError(f"{name} is no IDX file of {shape} bytes: it starts with {start[: len(header)].hex()}")


def _header(shape: tuple[int, ...]) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
