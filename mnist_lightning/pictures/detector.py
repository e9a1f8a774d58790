"""The image of a mark as MNIST's are, and a small network that says which digit it is, if any."""

from functools import lru_cache
from importlib.resources import files
from threading import get_ident

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.read import Pixels

SIDE = 28
DIGIT_SIDE = 20  # MNIST: digits scaled into 20x20, their centre of mass at the centre of 28x28
THINNEST = 1.7  # pixels of 28: no stroke of MNIST's digits is thinner
USUAL = (
    2.4  # pixels of 28: the width of most strokes of MNIST's digits; thinner ones become as wide
)
NO_DIGIT = 10  # the last class
CLASSES = 11  # the digits, and "no digit"
AT_ONCE = 64  # images whose activations fit a processor's cache


def detect(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities ``(N, 11)`` of each digit, and last that it is none.

    OpenCV runs the network; ``tools/detector`` trains it.

    Args:
        images: ``(N, 28, 28)``, white on black, as ``prepared`` makes them.
    """
    answers = [np.empty((0, CLASSES), np.float32)]
    for start in range(0, len(images), AT_ONCE):
        network = _network(get_ident())
        network.setInput(images[start : start + AT_ONCE, None].astype(np.float32))
        answers.append(network.forward().copy())
    return np.concatenate(answers)


@lru_cache(maxsize=16)
def _network(_thread: int) -> cv2.dnn.Net:
    """Read the network, once for each thread, since two may not share it."""
    content = files(__package__).joinpath("detector.onnx").read_bytes()
    return cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))


def prepared(crop: Pixels) -> Pixels:
    """Prepare a digit as MNIST's were.

    Its longest side becomes 20 pixels, and its centre of mass the centre of 28x28. Strokes
    thinner than any of MNIST's become as wide as most of them.

    Args:
        crop: A digit ``(h, w)``, white on black, without a margin.

    Returns:
        ``(28, 28)``.
    """
    crop = _thickened(crop)
    height, width = crop.shape
    factor = DIGIT_SIDE / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    mass = cv2.moments(crop)
    total = mass["m00"] or 1.0  # a hairline across a page may have faded away
    x = min(max(round(SIDE / 2 - mass["m10"] / total), 0), SIDE - size[0])
    y = min(max(round(SIDE / 2 - mass["m01"] / total), 0), SIDE - size[1])
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[y : y + size[1], x : x + size[0]] = crop
    return image


def _thickened(crop: Pixels) -> Pixels:
    """Return a digit whose strokes are not too thin for 28x28 pixels."""
    ink = cv2.threshold(crop, 96, 1, cv2.THRESH_BINARY)[1]
    inked = cv2.countNonZero(ink)
    if not inked:
        return crop
    factor = DIGIT_SIDE / max(crop.shape)
    padded = cv2.copyMakeBorder(ink, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distances = cv2.distanceTransform(padded, cv2.DIST_C, 3)
    # The distances in a stroke of n pixels go up to n / 2, and their mean is about half of that.
    stroke = max(1.0, 4 * cv2.sumElems(distances)[0] / inked - 2)
    if stroke * factor >= THINNEST:
        return crop
    fine = min(1, 4 * factor)  # large crops are shrunk first
    height, width = crop.shape
    size = max(1, round(width * fine)), max(1, round(height * fine))
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    wider = max(1, round(USUAL / factor * fine - stroke * fine))
    crop = cv2.copyMakeBorder(crop, wider, wider, wider, wider, cv2.BORDER_CONSTANT)
    crop = cv2.dilate(crop, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (wider + 1, wider + 1)))
    crop = cv2.convertScaleAbs(crop, alpha=255 / max(1, crop.max()))
    left, top, width, height = cv2.boundingRect(crop)
    return crop[top : top + height, left : left + width]
