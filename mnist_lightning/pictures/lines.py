"""The lines of a page: which marks are digits, and how pieces make them."""

import math
from collections.abc import Sequence

import numpy as np

from mnist_lightning.pictures.detector import NO_DIGIT
from mnist_lightning.pictures.marks import (
    Mark,
    connected,
    cut_apart,
    detected,
    joined,
    touches_edge,
)
from mnist_lightning.pictures.read import Pixels
from mnist_lightning.pictures.ruled_lines import (
    SHORTEST,
    frames,
    is_long,
    thicker_than_lines,
    without_lines,
)

SURE = 0.95  # the detector's probability of a digit that stays as it is, even if it fills the page
THIN = 1 / 40  # the ink of a line across the page, as a share of its length's square
SPECK = 0.15  # of the digits' height: a smaller mark is dirt
PIECE = 0.4  # of the digits' height: a lower mark may be a piece of a digit, and is none of its own
BODY = 0.65  # of the digits' height: a lower mark begins no line
GAP = 0.3  # of the digits' height, between the pieces of a digit
MOST_PIECES = 10  # of a digit
PER_DIGIT = 0.1  # cost: of two readings that are as likely, the one with fewer digits
PER_REJECT = 4.0  # cost: as much as a digit with a probability of 2%
PER_CUT = 1.0  # cost: of a cut through as much ink as a digit is high
PER_PIECE = 0.7  # cost of a piece that belongs to no digit
PER_LOSS = 3.0  # cost of all the ink, if no digit has it


def cost_of(digit: Mark) -> float:
    """Return what a digit costs in a reading."""
    return PER_DIGIT - math.log(digit.probability + 1e-6)


def lines_of_digits(ink: Pixels, mask: Pixels) -> tuple[list[list[Mark]], float]:
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
        if is_digit or not touches_edge(mark, page):
            rest.append(mark)
        elif mark.height < 2 * usual:  # it may be a digit that hangs together with a comma
            digits, _ = _digits_of([mark], usual)
            rest.extend(digit for digit in digits if digit.probability >= SURE)
    return rest


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
            cost += min(most, cost_of(mark)) + PER_CUT * pieces[start].cut
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
