"""MNIST's file format, IDX: a big-endian header, then the bytes."""

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError


def parse_idx(content: bytes, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    The header is two zero bytes, 8 for unsigned bytes, the number of dimensions, and each dimension as a
    big-endian 32-bit integer (http://yann.lecun.com/exdb/mnist/, "The IDX file format").

    Args:
        content: The file's content, uncompressed.
        name: What to call the file in an error.
        shape: The dimensions it must have.

    Raises:
        InputError: If the header or the size is not that of such a file.
    """
    header = b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
    expected = len(header) + int(np.prod(shape))
    if len(content) != expected:
        raise InputError(f"{name} has {len(content):,} bytes instead of {expected:,}")
    if not content.startswith(header):
        raise InputError(f"{name} is no IDX file of {shape} bytes: it starts with {content[: len(header)].hex()}")
    # A copy, since torch wants to own memory that it may write to.
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()
