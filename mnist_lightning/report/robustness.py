"""Robustness: the accuracy of a network on images that are shifted, rotated, noisy, and so on."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.report.metrics import Images, Labels, Probabilities, decide

# What widens a stroke by 1 or 2 pixels. Without a 3x3 square's corners, people can still read the
# thinned digits.
KERNELS: dict[float, NDArray[np.uint8]] = {
    1: np.ones((2, 2), np.uint8),
    2: np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8),
}

CALLS = 54  # of the network, for a progress bar


def robustness(
    classify: Callable[[Images], Probabilities], images: Images, labels: Labels
) -> dict[str, dict[str, float]]:
    """Return the accuracy of a network for each kind and strength of the changes in ``CHANGES``.

    Args:
        classify: The network: from images ``(N, 28, 28)`` to probabilities ``(N, 10)``. It is
            called once for each changed copy of all images, about fifty times.
        images: ``(N, 28, 28)``, white on black, at least one.
        labels: True digits ``(N,)``.

    Returns:
        Fractions in [0, 1] under the names of the kind and the strength: ``{"shift": {"1": 0.95,
        ...}, ...}``. If a strength has several directions, it is the mean over them.
    """
    result: dict[str, dict[str, float]] = {}
    for kind, (change, strengths) in CHANGES.items():
        result[kind] = {}
        for strength in strengths:
            right = []
            for copy in change(images, strength):
                digits, _ = decide(classify(copy))
                right.append(np.mean(digits == labels))
            result[kind][f"{strength:g}"] = float(np.mean(right))
    return result


def shifted(images: Images, pixels: float) -> Iterator[Images]:
    """Yield the images moved in each of eight directions; black enters.

    Diagonally they move by as many pixels in both axes.
    """
    room = int(pixels)
    padded = np.pad(images, ((0, 0), (room, room), (room, room)))
    for y in (0, room, 2 * room):
        for x in (0, room, 2 * room):
            if (y, x) != (room, room):
                yield padded[:, y : y + 28, x : x + 28]


def rotated(images: Images, degrees: float) -> Iterator[Images]:
    """Yield the images rotated about their centre, counterclockwise and clockwise."""
    centre = (13.5, 13.5)  # between four pixels
    for angle in (degrees, -degrees):
        matrix = cv2.getRotationMatrix2D(centre, angle, scale=1)
        # Bilinear, and black outside.
        yield np.array([cv2.warpAffine(image, matrix, (28, 28)) for image in images], np.uint8)


def noisy(images: Images, std: float) -> Iterator[Images]:
    """Yield the images with Gaussian noise, always the same; ``std`` is a share of white."""
    rng = np.random.default_rng(0)
    noisy = [np.rint(rng.normal(image, 255 * std)).clip(0, 255) for image in images]
    yield np.array(noisy, np.uint8)


def blurred(images: Images, sigma: float) -> Iterator[Images]:
    """Yield the images blurred with a Gaussian of this standard deviation in pixels."""
    border = cv2.BORDER_CONSTANT
    blurred = [cv2.GaussianBlur(image, (0, 0), sigma, borderType=border) for image in images]
    yield np.array(blurred, np.uint8)


def restroked(images: Images, pixels: float) -> Iterator[Images]:
    """Yield the images with strokes wider by this many pixels, or thinner if it is negative."""
    change = cv2.erode if pixels < 0 else cv2.dilate
    yield np.array([change(image, KERNELS[abs(pixels)]) for image in images], np.uint8)


Change = Callable[[Images, float], Iterator[Images]]  # one changed copy at a time, to save memory
# For each kind the function and the strengths.
CHANGES: dict[str, tuple[Change, tuple[float, ...]]] = {
    "shift": (shifted, (1, 2, 3, 4)),
    "rotation": (rotated, (5, 10, 15, 20, 25)),
    "noise": (noisy, (0.1, 0.2, 0.3, 0.4)),
    "blur": (blurred, (0.5, 1.0, 1.5, 2.0)),
    "stroke": (restroked, (-2, -1, 1, 2)),
}
