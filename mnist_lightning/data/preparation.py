"""From a picture of digits to the images MNIST would have: found, cleaned, scaled and centred."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError

MAX_DIGITS = 500  # in one picture
WORKING_SIDE = 1600  # larger pictures are shrunk to it first; a digit of 1/80 of the page still has 20 pixels
DIGIT_SIDE = 20  # MNIST: digits scaled into 20x20, their centre of mass at the centre of 28x28
SIDE = 28
MIN_CONTRAST = 16  # of 255 grey levels between ink and paper; less is an empty page
NOISE = 5.0  # standard deviations of the paper's grey that are still paper
EVEN = 0.1  # of the contrast: how much the grey of evenly lit paper varies
HEADROOM = 24  # grey levels
EDGE = 0.2  # of the ink's strength, where a stroke's anti-aliased edge ends

Box = tuple[int, int, int, int]


class Digit(NamedTuple):
    """One digit found in a picture."""

    image: NDArray[np.uint8]  # (28, 28), white on black, as the network takes it
    box: Box  # left, top, right, bottom in the picture's pixels; right and bottom are exclusive


def find_digits(picture: NDArray[np.uint8]) -> list[Digit]:
    """Find the digits of a picture in reading order, and prepare each as MNIST was.

    Transparency is flattened, the polarity found, an uneven background removed; each digit is cropped, its longest
    side scaled to 20 pixels, and its centre of mass put at the centre of 28x28 (LeCun, Cortes and Burges,
    http://yann.lecun.com/exdb/mnist/). A picture and its negative give the same images.

    Args:
        picture: Grey ``(H, W)``, grey with alpha ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``, upright.

    Returns:
        One entry per digit, none for an empty page.

    Raises:
        InputError: If the array is no such picture.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (2,), (3,), (4,)):
        raise InputError(f"a picture is uint8 (H, W) or (H, W, 2 to 4), got {picture.dtype} {picture.shape}")
    if 0 in picture.shape:
        raise InputError(f"a picture has at least one pixel, got {picture.shape}")
    grey = _grey(picture)  # (H, W)
    height, width = grey.shape
    scale = WORKING_SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    found = _ink(grey)
    if found is None:
        return []
    ink, mask = found
    labels, digits = _digit_parts(mask)
    zoom = width / grey.shape[1], height / grey.shape[0]
    return [_digit(ink, labels, parts, zoom) for parts in digits]


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luminance ``(H, W)``; where the picture is transparent, of the paper that suits it."""
    channels = picture.shape[2] if picture.ndim == 3 else 1
    if channels == 1:
        return picture
    grey = picture[..., 0] if channels == 2 else cv2.cvtColor(picture[..., :3], cv2.COLOR_RGB2GRAY)
    alpha = picture[..., -1]
    if channels == 3 or alpha.min() == 255:
        return np.ascontiguousarray(grey)
    opaque = alpha > 127
    level = float(grey[opaque].mean()) if opaque.any() else 0.0
    paper = 255.0 if level < 128 else 0.0  # ink without paper: give it one that it stands out from
    if opaque.mean() > 0.5:
        paper = level  # a picture with transparent margins: they continue its own paper
    weight = alpha / np.float32(255)
    return (grey * weight + paper * (1 - weight)).round().astype(np.uint8)


def _ink(grey: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """Return how strongly each pixel is inked, 0-255, and where it is (0 or 1), or None for an empty page."""
    if int(grey.max()) - int(grey.min()) < MIN_CONTRAST:
        return None
    work = grey if _is_light_on_dark(grey) else cv2.bitwise_not(grey)
    if min(work.shape) >= 64:
        work = cv2.GaussianBlur(work, (3, 3), 0)  # sensor noise; a stroke is wider
    ink = _without_ground(work)

    otsu = int(cv2.threshold(ink, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0])
    histogram = cv2.calcHist([ink], [0], None, [256], [0, 256]).ravel()
    below = histogram.cumsum()  # below[v]: pixels of at most v
    # The most frequent grey but the ink's, or rather the median about it, since a mode is noisy.
    mode = int(np.convolve(histogram, np.ones(5), "same")[: otsu + 1].argmax())
    reach = (otsu - mode) // 2
    darker = below[mode - reach - 1] if mode > reach else 0
    paper = int(np.searchsorted(below, (darker + below[mode + reach]) / 2))
    # One standard deviation under it, where its grey varies as much as above it, but where there is no ink.
    low = int(np.searchsorted(below, 0.317 * below[paper]))
    noise = NOISE * (paper - low)
    least = min(255, round(max(otsu, paper + noise)))
    inked = below[-1] - below[least]
    strength = int(np.searchsorted(below, below[least] + 0.8 * inked)) - paper
    if inked == 0 or strength < MIN_CONTRAST:
        return None
    ink = cv2.convertScaleAbs(np.maximum(ink, paper) - paper, alpha=255 / strength)
    edge = max(EDGE * 255, noise * 255 / strength)
    return ink, cv2.threshold(ink, edge, 1, cv2.THRESH_BINARY)[1]


def _is_light_on_dark(grey: NDArray[np.uint8]) -> bool:
    """Return whether the ink is lighter than the paper: it is what differs from its surroundings the most."""
    if max(grey.shape) > 256:
        grey = cv2.resize(grey, (256, 256), interpolation=cv2.INTER_AREA)
    window = max(3, min(grey.shape) // 2)
    values = grey.astype(np.float32)
    difference = values - cv2.blur(values, (window, window), borderType=cv2.BORDER_REPLICATE)
    return float((difference * difference * difference).sum()) > 0


def _without_ground(work: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Subtract the paper's grey, which the ink is lighter than, where the light on it is uneven."""
    unevenness = _unevenness(work)
    if unevenness <= EVEN:
        return work
    ground = _opened(work) if unevenness == math.inf else _smooth_ground(work)
    # Headroom, so that noise is not cut off below the ground.
    ink: NDArray[np.uint8] = cv2.subtract(cv2.convertScaleAbs(work, beta=HEADROOM), ground)
    return ink


def _unevenness(work: NDArray[np.uint8]) -> float:
    """Return the standard deviation of the paper's grey as a share of the ink's contrast with it."""
    _, ink = cv2.threshold(work, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    contrast = cv2.mean(work, ink)[0] - cv2.mean(work, 1 - ink)[0]
    # What is thicker than any stroke is no ink but a shadow.
    if contrast <= 0 or cv2.distanceTransform(ink, cv2.DIST_C, 3).max() > max(work.shape) / 3:
        return math.inf
    if max(work.shape) > 64:
        work = cv2.resize(work, (64, 64), interpolation=cv2.INTER_AREA)
    half = np.ones([side // 2 + 1 for side in work.shape], np.uint8)  # any half of a picture shows some paper
    ground = cv2.morphologyEx(work, cv2.MORPH_OPEN, half)
    return float(cv2.meanStdDev(ground)[1][0, 0]) / contrast


def _opened(work: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the paper without what is thinner than a third of the picture: its grey also across a shadow's edge."""
    window = 2 * (min(work.shape) // 6) + 1
    opened = cv2.morphologyEx(work, cv2.MORPH_OPEN, np.ones((window, window), np.uint8))
    ground: NDArray[np.uint8] = cv2.blur(opened, (5, 5))
    return ground


def _smooth_ground(work: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fit a quadratic surface to the paper, leaving out what is lighter; 0 if the paper is no such surface."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j].reshape(2, -1)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    values = cv2.resize(work, (32, 32), interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
    paper = np.ones(values.shape, bool)
    for _ in range(5):
        surface = terms @ np.linalg.lstsq(terms[paper], values[paper], rcond=None)[0]
        paper = values - surface <= np.quantile(values - surface, 0.7)
    if (values - surface)[paper].var() > 0.2 * values[paper].var():
        surface[:] = 0  # light is smooth: these are the soft edges of a digit that fills the picture
    surface = surface.clip(0, 255).round().astype(np.uint8).reshape(32, 32)
    ground: NDArray[np.uint8] = cv2.resize(surface, work.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return ground


def _digit_parts(mask: NDArray[np.uint8]) -> tuple[NDArray[np.int32], list[list[int]]]:
    """Label the mask's connected parts ``(H, W)``, and return which of them make up each digit, in reading order."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if len(stats) == 2:
        return labels, [[1]]
    left, top, width, height = stats[1:, :4].T
    right, bottom = left + width, top + height
    spans = (width >= 0.95 * mask.shape[1]) | (height >= 0.95 * mask.shape[0])
    if spans.all():
        spans[:] = False  # no frame or ruled line, but all there is
    tall = height[~spans].max()
    touches = (left == 0) | (top == 0) | (right == mask.shape[1]) | (bottom == mask.shape[0])
    is_line = (width > 3 * height) & (width > tall)
    is_part = ~spans & ~is_line & (np.maximum(width, height) >= np.where(touches, 0.5, 0.1) * tall)
    is_body = is_part & (height >= 0.4 * tall)
    if is_body.sum() > MAX_DIGITS:
        raise InputError(f"{is_body.sum():,} separate marks, more than {MAX_DIGITS}: this is no picture of digits")

    digits = [[part] for part in np.flatnonzero(is_body)]
    pieces = np.flatnonzero(is_part & ~is_body)
    if not digits or len(pieces) > 10 * MAX_DIGITS:
        pieces = pieces[:0]  # a line alone, or a texture
    for part in pieces:
        # The bar of a 5, a piece of a broken stroke: near the digit it is a part of, or else a blot.
        gap_x = np.maximum(left[part] - right, left - right[part])[is_body].clip(0)
        gap_y = np.maximum(top[part] - bottom, top - bottom[part])[is_body].clip(0)
        nearest = int((gap_x + gap_y).argmin())
        if gap_x[nearest] + gap_y[nearest] <= 0.25 * tall:
            digits[nearest].append(part)
    boxes = [(left[own].min(), top[own].min(), right[own].max(), bottom[own].max()) for own in digits]
    return labels, [[int(part) + 1 for part in digits[index]] for index in _reading_order(boxes)]


def _reading_order(boxes: list[Box]) -> list[int]:
    """Return the boxes' indices line by line from the top, each line from the left."""
    lines: list[list[int]] = []
    for index in sorted(range(len(boxes)), key=lambda index: boxes[index][1] + boxes[index][3]):
        middle = (boxes[index][1] + boxes[index][3]) / 2
        if lines and middle < np.median([boxes[other][3] for other in lines[-1]]):
            lines[-1].append(index)
        else:
            lines.append([index])
    return [index for line in lines for index in sorted(line, key=lambda index: boxes[index][0])]


def _digit(ink: NDArray[np.uint8], labels: NDArray[np.int32], parts: list[int], zoom: tuple[float, float]) -> Digit:
    """Crop a digit, scale its longest side to 20 pixels, and centre its mass in 28x28."""
    own = (labels == parts[0] if len(parts) == 1 else np.isin(labels, parts)).view(np.uint8)
    left, top, width, height = cv2.boundingRect(own)
    rows, columns = slice(top, top + height), slice(left, left + width)
    crop = ink[rows, columns] * own[rows, columns]
    factor = DIGIT_SIDE / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    mass = cv2.moments(crop)
    total = mass["m00"] or 1.0  # a hairline across a page may have faded away
    image = np.zeros((SIDE, SIDE), np.uint8)
    x, y = (
        min(max(round(SIDE / 2 - mass[moment] / total), 0), SIDE - length)
        for moment, length in zip(("m10", "m01"), size, strict=True)
    )
    image[y : y + size[1], x : x + size[0]] = crop
    left, right = (round(value * zoom[0]) for value in (left, left + width))
    top, bottom = (round(value * zoom[1]) for value in (top, top + height))
    return Digit(image, (left, top, right, bottom))
