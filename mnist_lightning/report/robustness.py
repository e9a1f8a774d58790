"""Robustness: the accuracy of a network on images that are shifted, rotated, noisy, blurred, thinner or thicker."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.report.metrics import Images, Labels, Probabilities, decide

# What widens a stroke by 1 or 2 pixels. Without a 3x3 square's corners, people can still read the thinned digits.
KERNELS: dict[float, NDArray[np.uint8]] = {
    1: np.ones((2, 2), np.uint8),
    2: np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8),
}


def robustness(
    classify: Callable[[Images], Probabilities], images: Images, labels: Labels
) -> dict[str, dict[str, float]]:
    """Return the accuracy of a network on changed images, for each kind and strength of the changes in ``CHANGES``.

    Args:
        classify: The network: from images ``(N, 28, 28)`` to probabilities ``(N, 10)``. It is called once for each
            changed copy of all images, about fifty times.
        images: ``(N, 28, 28)``, white on black, at least one.
        labels: True digits ``(N,)``.

    Returns:
        Fractions in [0, 1] under the names of the kind and the strength: ``{"shift": {"1": 0.95, ...}, ...}``. If a
        strength has several directions, it is the mean over them.
    """

    def accuracy(copies: Iterator[Images]) -> float:
        return float(np.mean([np.mean(decide(classify(copy))[0] == labels) for copy in copies]))

    return {
        kind: {f"{strength:g}": accuracy(change(images, strength)) for strength in strengths}
        for kind, (change, strengths) in CHANGES.items()
    }


def shifted(images: Images, pixels: float) -> Iterator[Images]:
    """Yield the images moved in each of eight directions, diagonally by as many pixels in both axes; black enters."""
    room = int(pixels)
    padded = np.pad(images, ((0, 0), (room, room), (room, room)))
    for y, x in product((0, room, 2 * room), repeat=2):
        if (y, x) != (room, room):
            yield padded[:, y : y + 28, x : x + 28]


def rotated(images: Images, degrees: float) -> Iterator[Images]:
    """Yield the images rotated about their centre, counterclockwise and clockwise."""
    for angle in (degrees, -degrees):
        matrix = cv2.getRotationMatrix2D((13.5, 13.5), angle, 1)  # the centre lies between four pixels
        yield _each(images, cv2.warpAffine, matrix, (28, 28))  # bilinear, black outside


def noisy(images: Images, std: float) -> Iterator[Images]:
    """Yield the images with Gaussian noise, always the same; its standard deviation is a share of white."""
    rng = np.random.default_rng(0)
    yield _each(images, lambda image: np.clip(np.rint(rng.normal(image, 255 * std)), 0, 255))


def blurred(images: Images, sigma: float) -> Iterator[Images]:
    """Yield the images blurred with a Gaussian of this standard deviation in pixels."""
    yield _each(images, cv2.GaussianBlur, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)


def restroked(images: Images, pixels: float) -> Iterator[Images]:
    """Yield the images with strokes wider by this many pixels, or thinner if it is negative, by erosion or dilation."""
    yield _each(images, cv2.erode if pixels < 0 else cv2.dilate, KERNELS[abs(pixels)])


# For each kind the function and the strengths. A function yields one changed copy at a time, to save memory.
CHANGES: dict[str, tuple[Callable[[Images, float], Iterator[Images]], tuple[float, ...]]] = {
    "shift": (shifted, (1, 2, 3, 4)),
    "rotation": (rotated, (5, 10, 15, 20, 25)),
    "noise": (noisy, (0.1, 0.2, 0.3, 0.4)),
    "blur": (blurred, (0.5, 1.0, 1.5, 2.0)),
    "stroke": (restroked, (-2, -1, 1, 2)),
}


def _each(images: Images, change: Callable[..., Any], *arguments: Any, **options: Any) -> Images:
    return np.array([change(image, *arguments, **options) for image in images], np.uint8)
