"""Marks: ink that hangs together, and how much it looks like a digit."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from mnist_lightning.pictures.ink import Pixels
from mnist_lightning.pictures.judge import judge

MAX_MARKS = 2_000  # a texture has more
DIGIT_SIDE = 20  # MNIST: digits scaled into 20x20, their centre of mass at the centre of 28x28
SIDE = 28
THIN = 1.7  # pixels of 28: a stroke thinner than any of MNIST's is drawn as wide as
WIDE = 2.4  # most of them


class Mark(NamedTuple):
    """Ink that hangs together: a digit, a piece of one, several, or something else."""

    left: int
    top: int
    ink: Pixels  # (h, w), 0 where it is not this mark's
    cut: float = 0.0  # how much ink was cut through at its left, as a share of the digits' height
    likeness: float = -1.0  # the judge's probability of its likeliest digit; -1 before it is judged

    @property
    def mask(self) -> Pixels:
        """1 where there is ink."""
        return np.asarray(cv2.threshold(self.ink, 0, 1, cv2.THRESH_BINARY)[1])

    @property
    def right(self) -> int:
        """Exclusive."""
        return self.left + int(self.ink.shape[1])

    @property
    def bottom(self) -> int:
        """Exclusive."""
        return self.top + int(self.ink.shape[0])

    @property
    def middle(self) -> tuple[float, float]:
        """Of the box, x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def centred(crop: Pixels) -> Pixels:
    """Scale a digit's longest side to 20 pixels, and put its centre of mass at the centre of 28x28, as MNIST's are.

    Strokes thinner than any of MNIST's become as wide as most of them.

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
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[y : y + size[1], x : x + size[0]] = crop
    return pixels


def _thickened(crop: Pixels) -> Pixels:
    """Return a digit whose strokes are not too thin for 28x28 pixels."""
    ink = cv2.threshold(crop, 96, 1, cv2.THRESH_BINARY)[1]
    inked = cv2.countNonZero(ink)
    if not inked:
        return crop
    factor = DIGIT_SIDE / max(crop.shape)
    distances = cv2.distanceTransform(cv2.copyMakeBorder(ink, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_C, 3)
    stroke = max(1.0, 4 * cv2.sumElems(distances)[0] / inked - 2)  # a stroke of n pixels has distances up to n / 2
    if stroke * factor >= THIN:
        return crop
    fine = min(1, 4 * factor)  # large crops are shrunk first
    crop = cv2.resize(crop, [max(1, round(side * fine)) for side in crop.shape[::-1]], interpolation=cv2.INTER_AREA)
    wider = max(1, round(WIDE / factor * fine - stroke * fine))
    crop = cv2.copyMakeBorder(crop, wider, wider, wider, wider, cv2.BORDER_CONSTANT)
    crop = cv2.dilate(crop, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (wider + 1, wider + 1)))
    return tight(Mark(0, 0, cv2.convertScaleAbs(crop, alpha=255 / max(1, crop.max())))).ink


def tight(mark: Mark) -> Mark:
    """Return a mark without empty rows and columns."""
    left, top, width, height = cv2.boundingRect(mark.ink)
    return Mark(mark.left + left, mark.top + top, mark.ink[top : top + height, left : left + width], mark.cut)


def connected(ink: Pixels, mask: Pixels, left: int = 0, top: int = 0, least: int = 1) -> list[Mark]:
    """Return the marks of a mask, but for those whose longer side is shorter than ``least`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    big = 1 + np.flatnonzero(stats[1:, 2:4].max(axis=1) >= least)
    if len(big) > MAX_MARKS:
        big = big[np.argsort(-stats[big, 4])[:MAX_MARKS]]
    marks = []
    for label in big:
        x, y, w, h = (int(value) for value in stats[label, :4])
        own = labels[y : y + h, x : x + w] == label
        marks.append(Mark(left + x, top + y, ink[y : y + h, x : x + w] * own))
    return marks


def judged(marks: Sequence[Mark]) -> list[Mark]:
    """Return the marks with their likeness; those that have been judged keep theirs."""
    images = [centred(mark.ink) for mark in marks if mark.likeness < 0]
    answers = judge(np.array(images, np.uint8).reshape(-1, SIDE, SIDE))[:, :10]  # without "no digit"
    fresh = iter(answers.max(axis=1).tolist())
    return [mark if mark.likeness >= 0 else Mark(*mark[:-1], next(fresh)) for mark in marks]


def joined(marks: Sequence[Mark]) -> Mark:
    """Return several marks as one."""
    if len(marks) == 1:
        return marks[0]
    left, top = min(mark.left for mark in marks), min(mark.top for mark in marks)
    right, bottom = max(mark.right for mark in marks), max(mark.bottom for mark in marks)
    ink = np.zeros((bottom - top, right - left), np.uint8)
    for mark in marks:
        place = slice(mark.top - top, mark.bottom - top), slice(mark.left - left, mark.right - left)
        ink[place] = np.maximum(ink[place], mark.ink)
    return Mark(left, top, ink)
