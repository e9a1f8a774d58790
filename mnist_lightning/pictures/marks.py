"""Marks, ink that hangs together: find, join and cut them, and ask the detector about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.detector import NO_DIGIT, SIDE, detect, prepared
from mnist_lightning.pictures.ink import EDGE
from mnist_lightning.pictures.read import Pixels

MAX_MARKS = 2_000  # a texture has more
MAX_CUTS = 20  # of one mark
CUTS_PER_HEIGHT = 9  # of a mark as wide as a digit is high: more than it can need
SLANTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of a cut: pixels to the left for each one down


@dataclass(eq=False)
class Mark:
    """Ink that hangs together: a digit, a piece of one, several, or something else."""

    left: int
    top: int
    ink: Pixels  # (h, w), 0 where it is not this mark's
    cut: float = 0.0  # how much ink was cut through at its left, as a share of the digits' height
    is_piece: bool = False  # whether it was cut out of a larger mark
    is_detected: bool = False  # whether it has the following two
    image: Pixels = field(init=False)  # (28, 28), what a network sees
    probabilities: NDArray[np.float32] = field(init=False)  # (11,), the detector's

    @cached_property
    def probability(self) -> float:
        """Of the likeliest digit."""
        return float(self.probabilities[:NO_DIGIT].max())

    @property
    def area(self) -> int:
        """How many pixels have ink."""
        return cv2.countNonZero(self.ink)

    @cached_property
    def mask(self) -> Pixels:
        """1 where there is ink."""
        return np.asarray(cv2.threshold(self.ink, 0, 1, cv2.THRESH_BINARY)[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return len(self.ink)

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.ink.shape[1])

    @property
    def right(self) -> int:
        """Exclusive."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """Exclusive."""
        return self.top + self.height

    @property
    def middle(self) -> tuple[float, float]:
        """Of the box, x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def connected(ink: Pixels, mask: Pixels, left: int = 0, top: int = 0, least: int = 1) -> list[Mark]:
    """Return the marks of a mask whose longer side has at least ``least`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    big = 1 + np.flatnonzero(stats[1:, 2:4].max(axis=1) >= least)  # label 0 is the paper
    if len(big) > MAX_MARKS:
        big = big[np.argsort(-stats[big, cv2.CC_STAT_AREA])[:MAX_MARKS]]
    marks = []
    for label in big:
        x, y, width, height = stats[label, :4].tolist()
        own = labels[y : y + height, x : x + width] == label
        marks.append(Mark(left + x, top + y, ink[y : y + height, x : x + width] * own))
    return marks


def lone_mark(work: Pixels, gap: float) -> tuple[Mark, float]:
    """Return the largest mark of a picture, with the pieces near it, and its share of the ink.

    Ink is what is lighter than Otsu's threshold, with its soft edges.

    Args:
        work: A picture ``(H, W)`` with more than one grey.
        gap: To the next piece, at most, as a share of the shorter side of all ink.
    """
    mask = cv2.threshold(work, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    reach = 1 + round(gap * min(cv2.boundingRect(mask)[2:]))  # a column of digits is no 1
    near = cv2.dilate(mask, np.ones((reach, reach), np.uint8))
    labels = cv2.connectedComponents(near)[1]  # (H, W), 0 where there is nothing
    inked = np.bincount(labels[mask == 1])
    largest = int(inked.argmax())
    edges = cv2.dilate(mask, np.ones((3, 3), np.uint8)) * (labels == largest).astype(np.uint8)
    darkest, lightest = int(work.min()), int(cv2.minMaxLoc(work, mask=edges)[1])
    ink = cv2.convertScaleAbs(cv2.subtract(work, darkest) * edges, alpha=255 / (lightest - darkest))
    mark = _tight(Mark(0, 0, cv2.threshold(ink, EDGE * 255, 255, cv2.THRESH_TOZERO)[1]))
    return mark, float(inked[largest] / inked.sum())


def touches_edge(mark: Mark, page: tuple[int, ...]) -> bool:
    """Return whether a mark reaches the edge of a page of this height and width."""
    height, width = page
    return mark.left == 0 or mark.top == 0 or mark.right == width or mark.bottom == height


def detected(marks: Sequence[Mark]) -> Sequence[Mark]:
    """Give marks their image and the detector's probabilities, if they have none yet."""
    fresh = [mark for mark in marks if not mark.is_detected]
    images = stacked([prepared(mark.ink) for mark in fresh])
    for mark, image, row in zip(fresh, images, detect(images), strict=True):
        mark.image, mark.probabilities, mark.is_detected = image, row, True
    return marks


def stacked(images: Sequence[Pixels]) -> Pixels:
    """Return images ``(28, 28)`` as one array ``(N, 28, 28)``, also if there is none."""
    return np.array(images, np.uint8).reshape(-1, SIDE, SIDE)


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
    return Mark(left, top, ink, is_piece=any(mark.is_piece for mark in marks))


def cut_apart(mark: Mark, height: float) -> list[Mark]:
    """Cut a mark where the least ink is in the way, into more pieces than it can have digits.

    Args:
        mark: Perhaps several digits that touch.
        height: The usual one of the page's digits.
    """
    costs = np.array([_ink_along(mark, slant) for slant in SLANTS])  # (slants, w)
    cuts = _cheapest(costs, height, min(MAX_CUTS, int(CUTS_PER_HEIGHT * mark.width / height)))
    if not cuts:
        return [mark]
    y, x = np.mgrid[: mark.height, : mark.width]  # (h, w) each
    y = y - mark.height / 2
    number = np.zeros(
        mark.ink.shape, np.int32
    )  # of the piece that a pixel belongs to, from the left
    for place, slant in cuts:
        number[x + slant * y >= place] += 1
    pieces = [Mark(mark.left, mark.top, mark.ink * (number == 0), is_piece=True)]
    for index, (place, _) in enumerate(sorted(cuts), 1):
        through = float(costs[:, place].min()) / height
        pieces.append(Mark(mark.left, mark.top, mark.ink * (number == index), through, True))
    return [_tight(piece) for piece in pieces if piece.ink.any()]


def _ink_along(mark: Mark, slant: float) -> NDArray[np.uint64]:
    """Return for each column ``(w,)`` the pixels of ink on the slanted line through its middle."""
    # Sheared by the slant, such a line is a column.
    shear = np.array([[1, slant, -slant * mark.height / 2], [0, 1, 0]])
    moved = cv2.warpAffine(mark.mask, shear, (mark.width, mark.height))  # (h, w)
    return np.asarray(moved.sum(axis=0))


def _cheapest(costs: NDArray[np.uint64], height: float, most: int) -> list[tuple[int, float]]:
    """Return the columns and slants of the cheapest cuts, not too near to one another."""
    margin = max(2, round(0.05 * height))
    least = costs.min(axis=0).astype(np.float64)  # (w,)
    least[:margin] = np.inf
    least[len(least) - margin :] = np.inf
    cuts: list[tuple[int, float]] = []
    while len(cuts) < most and np.isfinite(least).any():
        place = int(least.argmin())
        cuts.append((place, SLANTS[int(costs[:, place].argmin())]))
        least[max(0, place - margin) : place + margin + 1] = np.inf
    return cuts


def _tight(mark: Mark) -> Mark:
    """Return a mark without empty rows and columns."""
    left, top, width, height = cv2.boundingRect(mark.ink)
    ink = mark.ink[top : top + height, left : left + width]
    return Mark(mark.left + left, mark.top + top, ink, mark.cut, mark.is_piece)
