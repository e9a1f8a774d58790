"""From a page to its ink, whatever the paper, the pen and the light."""

import math

import cv2
import numpy as np

from mnist_lightning.pictures.read import MIN_CONTRAST, Pixels

NOISE = 5.0  # standard deviations of the paper's grey that still count as paper
BEYOND_ONE = 0.317  # the share of a normal distribution beyond one standard deviation
EVEN = 0.1  # of the contrast: how much the grey of evenly lit paper varies
HEADROOM = 24  # grey levels added before the ground is subtracted: keeps noise darker than it
STRONG = 0.9  # the quantile of the ink that counts as full ink
THICKEST = 20  # a stroke is thinner than the longer side divided by this, if only pens count
EDGE = 0.2  # of the ink's strength, where a stroke's anti-aliased edge ends


def by_polarity(grey: Pixels) -> tuple[Pixels, Pixels]:
    """Return a picture and its negative; first the one whose ink seems to be the lighter part.

    In large pictures both are without the sensor's noise, which is finer than a stroke.
    """
    pair = grey, cv2.bitwise_not(grey)
    lighter, darker = pair if _is_light_on_dark(grey) else pair[::-1]
    if min(grey.shape) >= 64:
        return cv2.GaussianBlur(lighter, (3, 3), 0), cv2.GaussianBlur(darker, (3, 3), 0)
    return lighter, darker


def find_ink(work: Pixels, pen_only: bool = False) -> tuple[Pixels, Pixels] | None:
    """Return how strongly each pixel is inked.

    Args:
        work: A page ``(H, W)`` whose ink is lighter than its paper.
        pen_only: Whether only thin strokes of the strongest ink count: no table, finger or shadow,
            and no ruled line that is paler than the pen.

    Returns:
        The ink ``(H, W)``, 0-255, and its mask ``(H, W)``, 0 or 1; None for an empty page.
    """
    ink = _thin_parts(work) if pen_only else _without_ground(work)

    otsu = int(cv2.threshold(ink, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0])
    histogram = cv2.calcHist([ink], [0], None, [256], [0, 256]).ravel()
    below = histogram.cumsum()  # below[v]: pixels of at most v
    # The paper is the most frequent grey below the ink's, or rather the median about it, since a
    # mode is noisy.
    mode = int(np.convolve(histogram, np.ones(5), "same")[: otsu + 1].argmax())
    reach = (otsu - mode) // 2
    darker = below[mode - reach - 1] if mode > reach else 0
    paper = int(np.searchsorted(below, (darker + below[mode + reach]) / 2))
    # The paper's standard deviation, measured below its grey: above it there is ink.
    noise = NOISE * (paper - int(np.searchsorted(below, BEYOND_ONE * below[paper])))
    least = min(255, round(max(otsu, paper + noise)))
    inked = below[-1] - below[least]
    strength = int(np.searchsorted(below, below[least] + STRONG * inked)) - paper
    if inked == 0 or strength < MIN_CONTRAST:
        return None
    ink = cv2.convertScaleAbs(np.maximum(ink, paper) - paper, alpha=255 / strength)
    edge = max(EDGE * 255, noise * 255 / strength)
    mask = np.asarray(cv2.threshold(ink, edge, 1, cv2.THRESH_BINARY)[1])
    return _strongest(ink, mask) if pen_only else (ink, mask)


def _strongest(ink: Pixels, mask: Pixels) -> tuple[Pixels, Pixels]:
    """Return the stronger of two inks, with its soft edges: the pen's rather than the rules'."""
    between = cv2.threshold(ink[mask == 1], 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]
    strong = cv2.threshold(ink, between, 1, cv2.THRESH_BINARY)[1]
    mask = np.asarray(cv2.bitwise_and(cv2.dilate(strong, np.ones((3, 3), np.uint8)), mask))
    return ink * mask, mask


def _is_light_on_dark(grey: Pixels) -> bool:
    """Return whether the ink is lighter than the paper; it differs from its surroundings most."""
    if max(grey.shape) > 256:
        grey = cv2.resize(grey, (256, 256), interpolation=cv2.INTER_AREA)
    window = max(3, min(grey.shape) // 2)
    values = grey.astype(np.float32)
    difference = values - cv2.blur(values, (window, window), borderType=cv2.BORDER_REPLICATE)
    return float((difference * difference * difference).sum()) > 0


def _without_ground(work: Pixels) -> Pixels:
    """Subtract the paper's grey if the light on it is uneven; the ink must be lighter."""
    unevenness = _unevenness(work)
    if unevenness <= EVEN:
        return work
    if unevenness == math.inf:
        # Remove what is thinner than a third of the picture: the paper's grey, also across a
        # shadow's edge.
        window = 2 * (min(work.shape) // 6) + 1
        opened = cv2.morphologyEx(work, cv2.MORPH_OPEN, np.ones((window, window), np.uint8))
        ground = cv2.blur(opened, (5, 5))
    else:
        ground = _smooth_ground(work)
    return _above(work, ground)


def _thin_parts(work: Pixels) -> Pixels:
    """Return a picture without its ground and without parts that are thicker than a stroke."""
    window = 2 * (max(work.shape) // THICKEST // 2) + 1
    kernel = np.ones((window, window), np.uint8)
    opened = cv2.morphologyEx(work, cv2.MORPH_OPEN, kernel)
    # What hangs together with a thick part belongs to it: a finger's round tip.
    ground = np.minimum(cv2.dilate(opened, kernel), work)
    return _above(work, cv2.blur(ground, (5, 5)))


def _above(work: Pixels, ground: Pixels) -> Pixels:
    return np.asarray(cv2.subtract(cv2.convertScaleAbs(work, beta=HEADROOM), ground))


def _unevenness(work: Pixels) -> float:
    """Return the standard deviation of the paper's grey as a share of the ink's contrast."""
    _, ink = cv2.threshold(work, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    contrast = cv2.mean(work, ink)[0] - cv2.mean(work, 1 - ink)[0]
    # A mark thicker than any stroke is a shadow.
    if contrast <= 0 or cv2.distanceTransform(ink, cv2.DIST_C, 3).max() > max(work.shape) / 3:
        return math.inf
    if max(work.shape) > 64:
        work = cv2.resize(work, (64, 64), interpolation=cv2.INTER_AREA)
    height, width = work.shape
    half = np.ones((height // 2 + 1, width // 2 + 1), np.uint8)  # each half shows some paper
    ground = cv2.morphologyEx(work, cv2.MORPH_OPEN, half)
    return float(cv2.meanStdDev(ground)[1][0, 0]) / contrast


def _smooth_ground(work: Pixels) -> Pixels:
    """Fit a quadratic surface to the paper, ignoring what is lighter; 0 if it has another shape."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j].reshape(2, -1)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)  # (1024, 6)
    small = cv2.resize(work, (32, 32), interpolation=cv2.INTER_AREA)
    values = small.ravel().astype(np.float64)  # (1024,)
    paper = np.ones(values.shape, bool)
    for _ in range(5):
        factors = np.linalg.lstsq(terms[paper], values[paper], rcond=None)[0]
        surface = terms @ factors
        rest = values - surface
        paper = rest <= np.quantile(rest, 0.7)
    # Light is smooth: otherwise these are the soft edges of a digit that fills the picture.
    if rest[paper].var() > 0.2 * values[paper].var():
        surface[:] = 0
    surface = surface.clip(0, 255).round().astype(np.uint8).reshape(32, 32)
    return np.asarray(cv2.resize(surface, work.shape[::-1], interpolation=cv2.INTER_LINEAR))
