"""From a picture to its digits in reading order: the whole way, step by step."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError
from mnist_lightning.pictures.detector import NO_DIGIT
from mnist_lightning.pictures.ink import by_polarity, find_ink
from mnist_lightning.pictures.marks import Mark, connected, cut_apart, detected, joined, lone_mark
from mnist_lightning.pictures.paper import (
    PHOTOGRAPH,
    Transform,
    find_sheet,
    grey_levels,
    skew,
    turned,
)
from mnist_lightning.pictures.read import MIN_CONTRAST, Pixels
from mnist_lightning.pictures.ruled_lines import (
    SHORTEST,
    frames,
    is_long,
    thicker_than_lines,
    without_lines,
)

# Larger pictures are first shrunk to it; a digit of 1/80 of the page still has 20 pixels.
WORKING_SIDE = 1600
MAX_DIGITS = 500  # in one picture
SURE = 0.95  # the detector's probability of a digit that stays as it is, even if it fills the page
THIN = 1 / 40  # the ink of a line across the page, as a share of its length's square
SPECK = 0.15  # of the digits' height: a smaller mark is dirt
PIECE = 0.4  # of the digits' height: a lower mark may be a piece of a digit, and is none of its own
BODY = 0.65  # of the digits' height: a lower mark begins no line
GAP = 0.3  # of the digits' height, between the pieces of a digit
PLACE_WIDTH = 0.5  # of the digits' height: the least room that a digit takes
NUMBER_GAP = 0.6  # of the digits' height: a wider gap begins a new number
MOST_PIECES = 10  # of a digit
PER_DIGIT = 0.1  # cost: of two readings that are as likely, the one with fewer digits
PER_REJECT = 4.0  # cost: as much as a digit with a probability of 2%
PER_CUT = 1.0  # cost: of a cut through as much ink as a digit is high
PER_PIECE = 0.7  # cost of a piece that belongs to no digit
PER_LOSS = 3.0  # cost of all the ink, if no digit has it
LIKELY = 0.05  # the least probability of a lone digit that competes with a few digits
FEW = 2  # digits of a page that may be one digit after all
NEAR = 0.2  # of the longer side of all ink, between the pieces of a digit that is alone
ALONE, MOSTLY = 0.95, 0.8  # shares of the ink of a digit that is alone, or beside dirt
GOOD = 0.93  # the mean probability of the digits of a page that is read once
POOR = 0.7  # the same of a page that is also tried on its side and in the other polarity
CHEAP = 0.5  # the cost of each digit of a good page, and of two more for its lines
UNLIKELY = -0.5  # what a find counts that is no digit
BETTER = 0.5  # digits that a good reading must have, or may lack of another that is not good
MUCH_BETTER = 2.0  # digits that another reading must gain if it is not good either
SHARE_BETTER = 0.25  # the same as a share of the digits of the first reading

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive


class Found(NamedTuple):
    """One digit found in a picture."""

    pixels: Pixels  # (28, 28), white on black, as the network takes it
    probabilities: NDArray[np.float32]  # (11,), the detector's; the last is that of no digit
    box: Box  # in the picture's pixels
    line: int  # of the page, from 1
    number: int  # within the line, from 1
    size: float  # its height, as a share of the median of the picture's digits
    is_clear: bool  # whether the detector is sure of most digits of the page


def find_digits(picture: Pixels, single: bool = False) -> list[Found]:
    """Find the digits of a picture in reading order, and prepare each as MNIST's were.

    Several readings compete, and the likeliest wins: all ink is one digit; or it is a page of
    digits, dark on light or light on dark, in one of four positions. For a page, the function finds
    the sheet of paper and turns it upright, removes an uneven background, ruled lines and frames,
    joins broken strokes and separates digits that touch. It crops each digit, scales its longest
    side to 20 pixels, and puts its centre of mass at the centre of 28x28 (LeCun, Cortes and Burges,
    http://yann.lecun.com/exdb/mnist/). A picture and its negative give the same images.

    Args:
        picture: Grey ``(H, W)``, grey with alpha ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA ``(H, W,
            4)``, turned by 30 degrees at most from one of the four positions.
        single: Whether it is known that all ink is one digit.

    Returns:
        One entry per digit; an empty list for an empty page.

    Raises:
        InputError: If the array has another type or shape, or more than 500 digits.
    """
    has_pixels = picture.ndim > 1 and picture.size > 0
    is_picture = has_pixels and picture.shape[2:] in ((), (2,), (3,), (4,))
    if picture.dtype != np.uint8 or not is_picture:
        raise InputError(
            f"expected pixels, uint8 (H, W) or (H, W, 2 to 4), got {picture.dtype} {picture.shape}"
        )
    grey = grey_levels(picture)  # (H, W)
    height, width = grey.shape
    scale = WORKING_SIDE / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    to_picture = np.diag([width / grey.shape[1], height / grey.shape[0], 1])
    page, to_grey = find_sheet(grey)
    reading = _likeliest(page, single)
    transform = to_picture @ to_grey @ reading.to_page
    digits = [mark for line in reading.lines for mark in line]
    if len(digits) > MAX_DIGITS:
        raise InputError(f"expected at most {MAX_DIGITS} digits, found {len(digits):,}")
    usual = np.median([mark.height for mark in digits] or [1])
    found = []
    for line, marks in enumerate(reading.lines, 1):
        for mark, number in zip(marks, _numbers(marks), strict=True):
            box = _box(mark, transform, width, height)
            share = float(mark.height / usual)
            place = box, line, number, share
            found.append(Found(mark.image, mark.probabilities, *place, reading.mean >= POOR))
    return found


class _Reading(NamedTuple):
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

    def is_better_than(self, other: "_Reading") -> bool:
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


def _likeliest(page: Pixels, single: bool) -> _Reading:
    """Return the likeliest reading of a page."""
    if np.ptp(page) < MIN_CONTRAST:
        return _Reading([], 0)
    lighter, darker = by_polarity(page)
    is_photograph = min(page.shape) >= PHOTOGRAPH
    lone = []
    for work in (lighter, darker):
        mark, share = lone_mark(work, NEAR)
        detected([mark])
        if is_photograph and not single and _touches_edge(mark, page.shape):
            share = 0.0  # a table, a shadow, a finger
        if mark.probability >= SURE and share >= ALONE and not single:
            return _Reading([[mark]], _cost_of(mark))
        lone.append((_Reading([[mark]], _cost_of(mark) + PER_LOSS * (1 - share)), share))
    as_one, share = min(lone, key=lambda each: each[0].cost)
    mark = as_one.lines[0][0]
    if single:
        return as_one
    best = _read(lighter)
    is_one = share >= MOSTLY and mark.probability >= 0.5
    if not best.is_good and not is_one:
        best = _better(best, lighter, darker, is_photograph)
    is_clear = as_one is lone[0][0] and len(best.probabilities) <= FEW
    least = LIKELY if is_clear else 0.5
    may_be_one = share >= MOSTLY and mark.probability >= least
    return as_one if may_be_one and as_one.cost <= best.cost else best


def _better(first: _Reading, lighter: Pixels, darker: Pixels, is_photograph: bool) -> _Reading:
    """Return the likeliest of the other readings of a page, or the first if none is better."""
    ways: list[tuple[Pixels, int, bool]] = [(lighter, 2, False)]  # page, quarters, only the pen
    if is_photograph:
        ways.append((lighter, 0, True))
    if first.mean < POOR:
        ways += [(darker, 0, False), (lighter, 1, False), (lighter, 3, False)]
        if is_photograph:
            ways.append((darker, 0, True))
    best = first
    for way in ways:
        reading = _read(*way)
        if reading.is_better_than(first) and reading.worth > best.worth:
            best = reading
        if best.is_good and len(best.no_bars) > FEW:
            break
    return best


def _cost_of(digit: Mark) -> float:
    """Return what a digit costs in a reading."""
    return PER_DIGIT - math.log(digit.probability + 1e-6)


def _read(page: Pixels, quarters: int = 0, pen_only: bool = False) -> _Reading:
    """Read a page whose ink is lighter than its paper, turned to the left by quarters."""
    to_page = np.eye(3)
    for _ in range(quarters):
        to_page = to_page @ np.array([[0, -1, page.shape[1]], [1, 0, 0], [0, 0, 1]])
        page = np.rot90(page)
    inked = find_ink(np.ascontiguousarray(page), pen_only)
    if inked is None:
        return _Reading([], 0, to_page)
    ink, mask = inked
    angle = skew(mask)
    if angle:
        ink, mask, to_turned = turned(ink, mask, angle)
        to_page = to_page @ to_turned
    lines, cost = _lines_of_digits(ink, mask)
    return _Reading(lines, cost, to_page)


def _box(mark: Mark, transform: Transform, width: int, height: int) -> Box:
    """Return the box around a mark in the picture's pixels."""
    left, top, right, bottom = mark.left, mark.top, mark.right, mark.bottom
    corners = [(left, top, 1), (left, bottom, 1), (right, top, 1), (right, bottom, 1)]
    x, y, w = transform @ np.array(corners).T  # (4,) each
    x, y = (x / w).clip(0, width).round().astype(int), (y / w).clip(0, height).round().astype(int)
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())


def _numbers(line: Sequence[Mark]) -> list[int]:
    """Return for each digit of a line the number that it belongs to, from 1."""
    usual = np.median([mark.height for mark in line])
    numbers = [1]
    for before, mark in pairwise(line):
        # A 1 stands in the middle of a place as wide as other digits'.
        room = (max(0, PLACE_WIDTH * usual - each.width) / 2 for each in (before, mark))
        is_new = mark.left - before.right - sum(room) > NUMBER_GAP * usual
        numbers.append(numbers[-1] + 1 if is_new else numbers[-1])
    return numbers


def _lines_of_digits(ink: Pixels, mask: Pixels) -> tuple[list[list[Mark]], float]:
    """Return the digits of each line of a page, in reading order, and what this reading costs.

    Args:
        ink: How strongly each pixel is inked ``(H, W)``, 0-255.
        mask: 1 where there is ink ``(H, W)``.
    """
    height, width = ink.shape
    marks = detected(connected(ink, mask, least=max(3, max(height, width) // 160)))
    if not marks:
        return [], 0
    total = sum(mark.area for mark in marks)
    marks = _without_ruled_lines(marks, (height, width))
    usual = _usual_height(marks)
    if any(mark.probability >= 0.5 for mark in marks):
        marks = _without_cut_off(marks, (height, width), usual)
    marks = [mark for mark in marks if max(mark.height, mark.width) >= SPECK * usual]
    lines, cost = [], 0.0
    for line in _grouped(marks, usual):
        digits, line_cost = _digits_of(line, usual)
        cost += line_cost
        if digits:
            lines.append(digits)
    likely = [line for line in lines if any(mark.probability >= 0.5 for mark in line)]
    lines = likely or lines  # beside a line of digits, one without any is a picture or a text
    read = sum(mark.area for digits in lines for mark in digits)
    cost += PER_LOSS * max(0, 1 - read / total)
    return lines, cost


def _without_ruled_lines(marks: Sequence[Mark], page: tuple[int, int]) -> list[Mark]:
    """Remove lines and frames from what is no digit."""
    are_rules = [is_long(mark, page) and _is_thin(mark) for mark in marks]
    others = [mark for mark, is_rule in zip(marks, are_rules, strict=True) if not is_rule]
    has_digits = any(mark.probability >= 0.5 for mark in others)
    usual = _usual_height(others)
    rest: list[Mark] = []
    for mark, is_rule, is_frame in zip(marks, are_rules, frames(marks), strict=True):
        is_digit, is_bar = mark.probability >= 0.5, is_long(mark, page)
        is_sure = is_digit and (not is_bar or mark.probability >= SURE)
        if is_sure and not is_frame and not is_rule:
            rest.append(mark)
            continue
        # A digit has lines too, but they are shorter than it is high; so are those of a plus sign.
        least = 1.2 * (usual if has_digits else mark.height)
        parts = detected(
            without_lines(mark, page, SHORTEST if is_bar and not has_digits else least)
        )
        is_line = is_frame or (is_bar and not is_digit)
        is_better = any(part.probability > mark.probability for part in parts)
        if is_rule:
            rest.extend(part for part in parts if not _is_thin(part))
        else:
            rest.extend(parts if is_line or is_better else [mark])
    return rest if len(rest) == len(marks) else thicker_than_lines(rest)


def _is_thin(mark: Mark) -> bool:
    """Return whether a mark is as thin as a ruled line."""
    return mark.area < THIN * max(mark.height, mark.width) ** 2


def _without_cut_off(marks: Sequence[Mark], page: tuple[int, int], usual: float) -> list[Mark]:
    """Remove what the page's edge cuts off and is no digit: a table, half a digit."""
    rest: list[Mark] = []
    for mark in marks:
        is_digit = mark.probability >= 0.5 and mark.height < 2 * usual
        if is_digit or not _touches_edge(mark, page):
            rest.append(mark)
        elif mark.height < 2 * usual:  # it may be a digit that hangs together with a comma
            digits, _ = _digits_of([mark], usual)
            rest.extend(digit for digit in digits if digit.probability >= SURE)
    return rest


def _touches_edge(mark: Mark, page: tuple[int, ...]) -> bool:
    height, width = page
    return mark.left == 0 or mark.top == 0 or mark.right == width or mark.bottom == height


def _usual_height(marks: Sequence[Mark]) -> float:
    """Return the height of the page's digits: the one that the most digits nearly have."""
    heights = np.array([mark.height for mark in marks if mark.probability >= 0.5], float)
    if not len(heights):
        return float(max((mark.height for mark in marks), default=0))
    # are_alike[i, j]: digits i and j nearly have the same height
    are_alike = (heights <= 1.6 * heights[:, None]) & (heights >= heights[:, None] / 1.6)
    # A share below 1 is added, so that of equal counts the largest height is chosen.
    counts = are_alike.sum(axis=1) + heights / (heights.max() + 1)
    return float(np.quantile(heights[are_alike[counts.argmax()]], 0.75))


def _grouped(marks: Sequence[Mark], usual: float) -> list[list[Mark]]:
    """Group marks to lines from the top, each sorted from the left.

    A piece, lower than a digit, goes to the line that is nearest.
    """
    bodies = [mark for mark in marks if mark.height >= BODY * usual]
    pieces = [mark for mark in marks if mark.height < BODY * usual]
    lines: list[list[Mark]] = []
    for mark in sorted(bodies, key=lambda mark: mark.middle[1]):
        if not lines or mark.middle[1] >= np.median([each.bottom for each in lines[-1]]):
            lines.append([])
        lines[-1].append(mark)
    middles = np.array([np.median([mark.middle[1] for mark in line]) for line in lines])
    for mark in pieces if lines else []:
        nearest = int(np.abs(middles - mark.middle[1]).argmin())
        lines[nearest].append(mark)
    return [sorted(line, key=lambda mark: mark.middle[0]) for line in lines]


def _digits_of(line: Sequence[Mark], usual: float) -> tuple[list[Mark], float]:
    """Choose how the marks of a line make digits, so that these are the likeliest together.

    Returns:
        The digits, and what this choice costs.
    """
    pieces: list[Mark] = []
    owners: list[int] = []  # of each piece, the mark that it comes from
    losses: list[float] = []  # the cost of each piece if it belongs to no digit
    for owner, mark in enumerate(line):
        is_wide = mark.probability < 0.8 and mark.width > 0.7 * usual
        parts = cut_apart(mark, usual) if is_wide else [mark]
        pieces += parts
        owners += [owner] * len(parts)
        losses += [PER_PIECE if len(parts) == 1 else PER_REJECT] * len(parts)
    groups = _groups(pieces, usual)
    candidates = detected([joined(pieces[start:stop]) for start, stop in groups])
    # best[n]: the cost of the first n pieces, and the digits that they make
    best: list[tuple[float, list[Mark]]] = [(0.0, []), *[(math.inf, [])] * len(pieces)]
    for (start, stop), mark in zip(groups, candidates, strict=True):
        cost, digits = best[start]
        if _is_low(mark, usual):
            cost += sum(losses[start:stop])
        else:
            # Several marks are not rejected together: a sign does not take its neighbours along.
            most = PER_REJECT + PER_DIGIT if owners[start] == owners[stop - 1] else math.inf
            cost += min(most, _cost_of(mark)) + PER_CUT * pieces[start].cut
            digits = [*digits, mark]
        if cost < best[stop][0]:
            best[stop] = cost, digits
    cost, digits = best[-1]
    return digits, cost


def _is_low(mark: Mark, usual: float) -> bool:
    """Return whether a mark is too low for a digit; a low 1 is a comma."""
    least = BODY if mark.probabilities[:NO_DIGIT].argmax() == 1 else PIECE
    return mark.height < max(least * usual, 0.4 * mark.width)


def _groups(pieces: Sequence[Mark], usual: float) -> list[tuple[int, int]]:
    """Return which runs of pieces, from start to stop, may be one digit."""
    groups = []
    for start, first in enumerate(pieces):
        right, left, top, bottom = first.right, first.left, first.top, first.bottom
        groups.append((start, start + 1))
        for stop in range(start + 1, min(len(pieces), start + MOST_PIECES)):
            mark = pieces[stop]
            gap = max(mark.left - right, 0) + max(mark.top - bottom, top - mark.bottom, 0)
            right, left = max(right, mark.right), min(left, mark.left)
            top, bottom = min(top, mark.top), max(bottom, mark.bottom)
            if gap > GAP * usual or right - left > 1.5 * usual or bottom - top > 1.8 * usual:
                break
            groups.append((start, stop + 1))
    return groups
