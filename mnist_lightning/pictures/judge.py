"""Say which digit a mark is, or that it is none: a small network that OpenCV runs. benchmarks/judge.py trains it."""

from functools import lru_cache
from importlib.resources import files
from threading import get_ident

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = 11  # the digits, and "no digit"
BATCH = 64  # images whose activations fit a processor's cache


def judge(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities ``(N, 11)`` of ``(N, 28, 28)``, white on black; the last is that of no digit."""
    answers = [np.empty((0, CLASSES), np.float32)]
    for start in range(0, len(images), BATCH):
        network = _network(get_ident())
        network.setInput(images[start : start + BATCH, None].astype(np.float32))
        answers.append(network.forward().copy())
    return np.concatenate(answers)


@lru_cache(maxsize=16)
def _network(_thread: int) -> cv2.dnn.Net:
    """Read the network, once for each thread, since two may not share it."""
    return cv2.dnn.readNetFromONNX(np.frombuffer(files(__package__).joinpath("judge.onnx").read_bytes(), np.uint8))
