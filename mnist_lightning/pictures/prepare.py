"""From a picture of digits to images like MNIST's: find each digit, clean, scale and centre it."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError

MAX_DIGITS = 500  # in one picture
WORKING_SIDE = 1600  # larger pictures are first shrunk to it; a digit of 1/80 of the page still has 20 pixels
DIGIT_SIDE = 20  # MNIST: digits scaled into 20x20, their centre of mass at the centre of 28x28
SIDE = 28
MIN_CONTRAST = 16  # of 255 grey levels between ink and paper; a page with less is empty
NOISE = 5.0  # standard deviations of the paper's grey that still count as paper
EVEN = 0.1  # of the contrast: how much the grey of evenly lit paper varies
HEADROOM = 24  # grey levels
EDGE = 0.2  # of the ink's strength, where a stroke's anti-aliased edge ends

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are exclusive
Parts = tuple[Box, list[int]]  # a digit's box, and the labels of its connected parts


class Found(NamedTuple):
    """One digit found in a picture."""

    pixels: Pixels  # (28, 28), white on black, as the network takes it
    box: Box  # in the picture's pixels


def find_digits(picture: Pixels) -> list[Found]:
    """Find the digits of a picture in reading order, and prepare each as MNIST's were.

    The function flattens transparency, finds out whether the ink is dark or light, and removes an uneven background.
    It crops each digit, scales its longest side to 20 pixels, and puts its centre of mass at the centre of 28x28
    (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/). A picture and its negative give the same images.

    Args:
        picture: Grey ``(H, W)``, grey with alpha ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``, upright.

    Returns:
        One entry per digit; an empty list for an empty page.

    Raises:
        InputError: If the array has another type or shape, or more than 500 separate marks.
    """
    is_picture = picture.ndim > 1 and picture.size > 0 and picture.shape[2:] in ((), (2,), (3,), (4,))
    if picture.dtype != np.uint8 or not is_picture:
        raise InputError(f"expected pixels, uint8 (H, W) or (H, W, 2 to 4), got {picture.dtype} {picture.shape}")
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
    return [_prepared(ink, labels, digit, zoom) for digit in digits]


def _grey(picture: Pixels) -> Pixels:
    """Return the luminance ``(H, W)``, with a suitable paper where the picture is transparent."""
    channels = picture.shape[2] if picture.ndim == 3 else 1
    if channels == 1:
        return picture
    grey = picture[..., 0] if channels == 2 else cv2.cvtColor(picture[..., :3], cv2.COLOR_RGB2GRAY)
    alpha = picture[..., -1]
    if channels == 3 or alpha.min() == 255:
        return np.ascontiguousarray(grey)
    opaque = alpha > 127
    level = float(grey[opaque].mean()) if opaque.any() else 0.0
    # Ink without paper gets a paper that it stands out from; a picture with transparent margins gets more of its own.
    paper = level if opaque.mean() > 0.5 else 255.0 if level < 128 else 0.0
    weight = alpha / np.float32(255)
    return (grey * weight + paper * (1 - weight)).round().astype(np.uint8)


def _ink(grey: Pixels) -> tuple[Pixels, Pixels] | None:
    """Return how strongly each pixel is inked, 0-255, and a mask of the ink, 0 or 1, or None for an empty page."""
    if np.ptp(grey) < MIN_CONTRAST:
        return None
    work = grey if _is_light_on_dark(grey) else cv2.bitwise_not(grey)
    if min(work.shape) >= 64:
        work = cv2.GaussianBlur(work, (3, 3), 0)  # sensor noise; a stroke is wider
    ink = _without_ground(work)

    otsu = int(cv2.threshold(ink, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0])
    histogram = cv2.calcHist([ink], [0], None, [256], [0, 256]).ravel()
    below = histogram.cumsum()  # below[v]: pixels of at most v
    # The paper is the most frequent grey below the ink's, or rather the median about it, since a mode is noisy.
    mode = int(np.convolve(histogram, np.ones(5), "same")[: otsu + 1].argmax())
    reach = (otsu - mode) // 2
    darker = below[mode - reach - 1] if mode > reach else 0
    paper = int(np.searchsorted(below, (darker + below[mode + reach]) / 2))
    # The paper's standard deviation, measured below its grey: above it there is ink.
    noise = NOISE * (paper - int(np.searchsorted(below, 0.317 * below[paper])))
    least = min(255, round(max(otsu, paper + noise)))
    inked = below[-1] - below[least]
    strength = int(np.searchsorted(below, below[least] + 0.8 * inked)) - paper
    if inked == 0 or strength < MIN_CONTRAST:
        return None
    ink = cv2.convertScaleAbs(np.maximum(ink, paper) - paper, alpha=255 / strength)
    edge = max(EDGE * 255, noise * 255 / strength)
    return ink, cv2.threshold(ink, edge, 1, cv2.THRESH_BINARY)[1]


def _is_light_on_dark(grey: Pixels) -> bool:
    """Return whether the ink is lighter than the paper: ink differs from its surroundings the most."""
    if max(grey.shape) > 256:
        grey = cv2.resize(grey, (256, 256), interpolation=cv2.INTER_AREA)
    window = max(3, min(grey.shape) // 2)
    values = grey.astype(np.float32)
    difference = values - cv2.blur(values, (window, window), borderType=cv2.BORDER_REPLICATE)
    return float((difference * difference * difference).sum()) > 0


def _without_ground(work: Pixels) -> Pixels:
    """Subtract the paper's grey where the light on it is uneven; the ink must be lighter than the paper."""
    unevenness = _unevenness(work)
    if unevenness <= EVEN:
        return work
    if unevenness == math.inf:
        # Remove what is thinner than a third of the picture: the paper's grey, also across a shadow's edge.
        window = 2 * (min(work.shape) // 6) + 1
        ground = cv2.blur(cv2.morphologyEx(work, cv2.MORPH_OPEN, np.ones((window, window), np.uint8)), (5, 5))
    else:
        ground = _smooth_ground(work)
    # The headroom keeps noise that is darker than the ground.
    return np.asarray(cv2.subtract(cv2.convertScaleAbs(work, beta=HEADROOM), ground))


def _unevenness(work: Pixels) -> float:
    """Return the standard deviation of the paper's grey as a share of the ink's contrast with it."""
    _, ink = cv2.threshold(work, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    contrast = cv2.mean(work, ink)[0] - cv2.mean(work, 1 - ink)[0]
    # A mark thicker than any stroke is a shadow.
    if contrast <= 0 or cv2.distanceTransform(ink, cv2.DIST_C, 3).max() > max(work.shape) / 3:
        return math.inf
    if max(work.shape) > 64:
        work = cv2.resize(work, (64, 64), interpolation=cv2.INTER_AREA)
    half = np.ones([side // 2 + 1 for side in work.shape], np.uint8)  # any half of a picture shows some paper
    ground = cv2.morphologyEx(work, cv2.MORPH_OPEN, half)
    return float(cv2.meanStdDev(ground)[1][0, 0]) / contrast


def _smooth_ground(work: Pixels) -> Pixels:
    """Fit a quadratic surface to the paper and ignore what is lighter; return 0 if the paper has another shape."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j].reshape(2, -1)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    values = cv2.resize(work, (32, 32), interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
    paper = np.ones(values.shape, bool)
    for _ in range(5):
        surface = terms @ np.linalg.lstsq(terms[paper], values[paper], rcond=None)[0]
        rest = values - surface
        paper = rest <= np.quantile(rest, 0.7)
    if rest[paper].var() > 0.2 * values[paper].var():
        surface[:] = 0  # light is smooth: these are the soft edges of a digit that fills the picture
    surface = surface.clip(0, 255).round().astype(np.uint8).reshape(32, 32)
    return np.asarray(cv2.resize(surface, work.shape[::-1], interpolation=cv2.INTER_LINEAR))


def _digit_parts(mask: Pixels) -> tuple[NDArray[np.int32], list[Parts]]:
    """Label the mask's connected parts ``(H, W)``, and group them into digits, in reading order."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    left, top, width, height = stats[1:, :4].T
    right, bottom = left + width, top + height
    if len(left) == 1:
        return labels, [((left[0], top[0], right[0], bottom[0]), [1])]
    spans = (width >= 0.95 * mask.shape[1]) | (height >= 0.95 * mask.shape[0])  # a frame or a ruled line
    if spans.all():
        spans[:] = False
    tall = height[~spans].max()
    touches = (left == 0) | (top == 0) | (right == mask.shape[1]) | (bottom == mask.shape[0])
    is_line = (width > 3 * height) & (width > tall)
    is_part = ~spans & ~is_line & (np.maximum(width, height) >= np.where(touches, 0.5, 0.1) * tall)
    is_body = is_part & (height >= 0.4 * tall)
    if is_body.sum() > MAX_DIGITS:
        raise InputError(f"expected at most {MAX_DIGITS} digits, found {is_body.sum():,} separate marks")

    digits = [[int(part)] for part in np.flatnonzero(is_body)]
    pieces = np.flatnonzero(is_part & ~is_body)
    if not digits or len(pieces) > 10 * MAX_DIGITS:
        pieces = pieces[:0]  # a line alone, or a texture
    for part in pieces:
        # The bar of a 5 or a piece of a broken stroke is near its digit; anything else is a blot.
        gap_x = np.maximum(left[part] - right, left - right[part])[is_body].clip(0)
        gap_y = np.maximum(top[part] - bottom, top - bottom[part])[is_body].clip(0)
        nearest = int((gap_x + gap_y).argmin())
        if gap_x[nearest] + gap_y[nearest] <= 0.25 * tall:
            digits[nearest].append(int(part))
    boxes = [(left[own].min(), top[own].min(), right[own].max(), bottom[own].max()) for own in digits]
    return labels, _in_reading_order(
        [(box, [part + 1 for part in own]) for box, own in zip(boxes, digits, strict=True)]
    )


def _in_reading_order(digits: list[Parts]) -> list[Parts]:
    """Sort digits line by line from the top, each line from the left."""
    lines: list[list[Parts]] = []
    for digit in sorted(digits, key=lambda digit: digit[0][1] + digit[0][3]):
        (_, top, _, bottom), _ = digit
        if not lines or (top + bottom) / 2 >= np.median([box[3] for box, _ in lines[-1]]):
            lines.append([])
        lines[-1].append(digit)
    return [digit for line in lines for digit in sorted(line, key=lambda digit: digit[0][0])]


def _prepared(ink: Pixels, labels: NDArray[np.int32], digit: Parts, zoom: tuple[float, float]) -> Found:
    """Cut a digit out, without what is not part of it."""
    (left, top, right, bottom), parts = digit
    place = slice(top, bottom), slice(left, right)
    own = labels[place] == parts[0] if len(parts) == 1 else np.isin(labels[place], parts)  # isin takes longer
    pixels = centred(ink[place] * own)
    left, right = (round(int(side) * zoom[0]) for side in (left, right))
    top, bottom = (round(int(side) * zoom[1]) for side in (top, bottom))
    return Found(pixels, (left, top, right, bottom))


def centred(crop: Pixels) -> Pixels:
    """Scale a digit's longest side to 20 pixels, and put its centre of mass at the centre of 28x28, as MNIST's are.

    Args:
        crop: A digit ``(h, w)``, white on black, without a margin.

    Returns:
        ``(28, 28)``.
    """
    height, width = crop.shape
    factor = DIGIT_SIDE / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    mass = cv2.moments(crop)
    total = mass["m00"] or 1.0  # a hairline across a page may have faded away
    x = min(max(round(SIDE / 2 - mass["m10"] / total), 0), SIDE - size[0])
    y = min(max(round(SIDE / 2 - mass["m01"] / total), 0), SIDE - size[1])
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[y : y + size[1], x : x + size[0]] = crop
    return pixels
