"""Readings of a page compete: one digit or many, which colour is ink, which way is up."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.detector import NO_DIGIT
from mnist_lightning.pictures.ink import by_polarity, find_ink
from mnist_lightning.pictures.lines import PER_DIGIT, PER_LOSS, SURE, cost_of, lines_of_digits
from mnist_lightning.pictures.marks import Mark, detected, lone_mark, touches_edge
from mnist_lightning.pictures.paper import PHOTOGRAPH, Transform, skew, turned
from mnist_lightning.pictures.read import MIN_CONTRAST, Pixels

LIKELY = 0.05  # the least probability of a lone digit that competes with a few digits
FEW = 2  # digits of a page that may be one digit after all
NEAR = 0.2  # of the shorter side of all ink, between the pieces of a digit that is alone
ALONE, MOSTLY = 0.95, 0.8  # shares of the ink of a digit that is alone, or beside dirt
GOOD = 0.93  # the mean probability of the digits of a page that is read once
POOR = 0.7  # the same of a page that is also tried on its side and in the other polarity
CHEAP = 0.5  # the cost of each digit of a good page, and of two more for its lines
UNLIKELY = -0.5  # what a find counts that is no digit
BETTER = 0.5  # digits that a good reading must have, or may lack of another that is not good
MUCH_BETTER = 2.0  # digits that another reading must gain if it is not good either
SHARE_BETTER = 0.25  # the same as a share of the digits of the first reading


class PageReading(NamedTuple):
    """One way to read a page."""

    lines: list[list[Mark]]  # the digits of each line
    cost: float  # how unlikely it is, beside other readings of the same ink
    to_page: Transform = np.eye(3)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Of each digit, that it is one."""
        return np.array([mark.probability for line in self.lines for mark in line])

    @property
    def mean(self) -> float:
        """The mean of these, without 1s if there are others; 0 without digits."""
        others = [mark.probability for mark in self.no_bars]
        probabilities = others or self.probabilities
        return float(np.mean(probabilities)) if len(probabilities) else 0.0

    @property
    def no_bars(self) -> list[Mark]:
        """The digits but for 1s, since every bar looks like one."""
        marks = [mark for line in self.lines for mark in line]
        return [mark for mark in marks if mark.probabilities[:NO_DIGIT].argmax() != 1]

    @property
    def is_good(self) -> bool:
        """Return whether it explains the ink by digits that the detector is sure of."""
        doubt = self.cost - PER_DIGIT * len(self.probabilities)
        return doubt <= CHEAP * (len(self.no_bars) + 2) and self.mean >= GOOD

    def is_better_than(self, other: "PageReading") -> bool:
        """Return whether the detector is sure of more digits, so that this is no accident."""
        if self.is_good:
            return self.worth > max(BETTER, other.worth - BETTER)
        return self.worth > max(other.worth, 0) + max(MUCH_BETTER, SHARE_BETTER * other.worth)

    @property
    def worth(self) -> float:
        """Return how many more digits are right than wrong, as the detector expects.

        What is no digit is doubtful, which is half as bad as wrong. 1s do not count.
        """
        return sum(max(2 * mark.probability - 1, UNLIKELY) for mark in self.no_bars)


def likeliest(page: Pixels, single: bool) -> PageReading:
    """Return the likeliest reading of a page."""
    if np.ptp(page) < MIN_CONTRAST:
        return PageReading([], 0)
    lighter, darker = by_polarity(page)
    is_photograph = min(page.shape) >= PHOTOGRAPH
    lone = []
    # In a photograph the page is read in the other polarity too, if need be.
    for work in (lighter,) if is_photograph and not single else (lighter, darker):
        mark, share = lone_mark(work, NEAR)
        detected([mark])
        # At a photograph's edge there is a table or a finger. A column of digits looks like a 1.
        is_column = mark.probabilities.argmax() == 1 and cv2.connectedComponents(mark.mask)[0] > 2
        if is_column or (is_photograph and touches_edge(mark, page.shape)):
            share = 0.0
        if mark.probability >= SURE and share >= ALONE and not single:
            return PageReading([[mark]], cost_of(mark))
        if work is lighter or mark.probability >= 0.5:
            lone.append((PageReading([[mark]], cost_of(mark) + PER_LOSS * (1 - share)), share))
    as_one, share = min(lone, key=lambda each: each[0].cost)
    mark = as_one.lines[0][0]
    if single:
        return as_one
    best = _read(lighter)
    is_one = share >= MOSTLY and mark.probability >= 0.5
    is_enough = best.is_good and bool(best.no_bars)  # bars alone may be a shadow
    if not is_enough and not is_one:
        best = _better(best, lighter, darker, is_photograph)
    least = LIKELY if len(best.probabilities) <= FEW else 0.5
    may_be_one = share >= MOSTLY and mark.probability >= least
    return as_one if may_be_one and as_one.cost <= best.cost else best


def _better(
    first: PageReading, lighter: Pixels, darker: Pixels, is_photograph: bool
) -> PageReading:
    """Return the likeliest of the other readings of a page, or the first if none is better."""
    ways: list[tuple[Pixels, int, bool]] = []  # the page, quarters of a turn, only the pen
    if is_photograph:
        ways.append((lighter, 0, True))
    if not first.is_good:  # 1s with flags are 6s upside down
        ways.append((lighter, 2, False))
    if first.mean < POOR:
        ways += [(darker, 0, False), (lighter, 1, False), (lighter, 3, False)]
        if is_photograph:
            ways.append((darker, 0, True))
    best = first
    for way in ways:
        reading = _read(*way)
        if way[1] and len(reading.probabilities) <= FEW:
            continue  # a digit or two do not tell which way is up
        if reading.is_better_than(first) and reading.worth > best.worth:
            best = reading
        if best.is_good and len(best.no_bars) > FEW:
            break
    return best


def _read(page: Pixels, quarters: int = 0, pen_only: bool = False) -> PageReading:
    """Read a page whose ink is lighter than its paper, turned to the left by quarters."""
    to_page = np.eye(3)
    for _ in range(quarters):
        to_page = to_page @ np.array([[0, -1, page.shape[1]], [1, 0, 0], [0, 0, 1]])
        page = np.rot90(page)
    inked = find_ink(np.ascontiguousarray(page), pen_only)
    if inked is None:
        return PageReading([], 0, to_page)
    ink, mask = inked
    angle = skew(mask)
    if angle:
        ink, mask, to_turned = turned(ink, mask, angle)
        to_page = to_page @ to_turned
    lines, cost = lines_of_digits(ink, mask)
    return PageReading(lines, cost, to_page)
