"""From a page's ink to its digits: without lines, broken strokes joined, digits that touch apart, in reading order."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from mnist_lightning.pictures.ink import Pixels
from mnist_lightning.pictures.marks import Mark, connected, joined, judged, tight
from mnist_lightning.pictures.rules import SHORT, frames, is_long, thicker_than_lines, without_lines

MAX_DIGITS = 500  # in one picture
SURE = 0.95  # the judge's probability of a digit that stays as it is, even if it fills the page
SPECK = 0.15  # of the digits' height: a smaller mark is dirt
PIECE = 0.4  # a lower mark may be a piece of a digit, and is no digit of its own
BODY = 0.65  # a lower mark begins no line
GAP = 0.3  # between the pieces of a digit
MOST_PIECES = 10  # of a digit
SLANTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of the cuts between digits that touch, in pixels to the left for each one down
PER_DIGIT = 0.1  # cost: of two readings that are as likely, the one with fewer digits
PER_REJECT = 4.0  # cost: as much as a digit with a probability of 2%
PER_CUT = 1.0  # cost: of a cut through as much ink as a digit is high
PER_PIECE = 0.7  # cost of a piece that belongs to no digit


def read_lines(ink: Pixels, mask: Pixels) -> list[list[Mark]]:
    """Return the digits of each line of a page, in reading order.

    Args:
        ink: How strongly each pixel is inked ``(H, W)``, 0-255.
        mask: 1 where there is ink.
    """
    marks = judged(connected(ink, mask, least=max(3, max(ink.shape) // 160)))
    if len(marks) == 1 and marks[0].likeness >= SURE:
        return [marks]
    marks = _without_rules(marks, ink.shape)
    if not marks:
        return []
    height = _height(marks)
    if any(mark.likeness >= 0.5 for mark in marks):
        marks = [mark for mark in marks if not _is_cut_off(mark, ink.shape, height)]
    lines = _lines_of([mark for mark in marks if max(mark.ink.shape) >= SPECK * height], height)
    return [digits for line in lines if (digits := _digits_of(line, height))]


def _without_rules(marks: list[Mark], page: tuple[int, int]) -> list[Mark]:
    """Remove lines and frames from what is no digit."""
    # A digit has lines too, but they are shorter than it is high.
    least = 1.2 * _height(marks) if any(mark.likeness >= 0.5 for mark in marks) else SHORT
    rest = []
    for mark, is_frame in zip(marks, frames(marks), strict=True):
        parts, is_whole = [mark], is_long(mark, page)
        if is_frame or mark.likeness < 0.5 or (is_whole and mark.likeness < SURE):
            parts = judged(without_lines(mark, page, least))
        is_line = is_frame or (is_whole and mark.likeness < 0.5)
        is_better = max((part.likeness for part in parts), default=0) > mark.likeness
        rest += parts if is_line or is_better else [mark]
    return rest if len(rest) == len(marks) else thicker_than_lines(rest)


def _is_cut_off(mark: Mark, page: tuple[int, int], height: float) -> bool:
    """Return whether the page's edge cuts a mark off that is no digit: a table, a shadow, half a digit."""
    is_within = mark.left > 0 and mark.top > 0 and mark.right < page[1] and mark.bottom < page[0]
    return not is_within and (mark.likeness < 0.5 or len(mark.ink) >= 2 * height)


def _cut(mark: Mark, height: float) -> list[Mark]:
    """Cut a mark where the least ink is in the way, into more pieces than it can have digits."""
    own_height, width = mark.ink.shape
    most = min(20, int(9 * width / height))
    mask = mark.mask
    y, x = np.mgrid[:own_height, :width]
    y = y - own_height / 2
    profiles = []
    for slant in SLANTS:
        moved = cv2.warpAffine(mask, np.array([[1, slant, -slant * own_height / 2], [0, 1, 0]]), (width, own_height))
        profiles.append(moved.sum(axis=0))
    costs = np.array(profiles)
    least, margin = costs.min(axis=0).astype(np.float64), max(2, round(0.05 * height))
    least[:margin] = least[width - margin :] = np.inf
    cuts: list[tuple[int, float]] = []
    while len(cuts) < most and np.isfinite(least).any():
        place = int(least.argmin())
        cuts.append((place, SLANTS[int(costs[:, place].argmin())]))
        least[max(0, place - margin) : place + margin + 1] = np.inf
    if not cuts:
        return [mark]
    piece = np.zeros(mask.shape, np.int32)
    for place, slant in cuts:
        piece += x + slant * y >= place
    through = [0.0, *(float(costs[:, place].min()) / height for place, _ in sorted(cuts))]
    pieces = [Mark(mark.left, mark.top, mark.ink * (piece == number), cut) for number, cut in enumerate(through)]
    return [tight(each) for each in pieces if each.ink.any()]


def _height(marks: Sequence[Mark]) -> float:
    """Return the usual height of the page's digits: the one that the most digits nearly have."""
    sure = np.array([len(mark.ink) for mark in marks if mark.likeness >= 0.5], float)
    if not len(sure):
        return float(max((len(mark.ink) for mark in marks), default=0))
    alike = (sure <= 1.6 * sure[:, None]) & (sure >= sure[:, None] / 1.6)
    counts = alike.sum(axis=1) + sure / (sure.max() + 1)  # of equal ones the largest
    return float(np.quantile(sure[alike[counts.argmax()]], 0.75))


def _lines_of(marks: Sequence[Mark], height: float) -> list[list[Mark]]:
    """Group marks to lines from the top, each sorted from the left; pieces go to the line that is nearest."""
    bodies = sorted((mark for mark in marks if mark.ink.shape[0] >= BODY * height), key=lambda mark: mark.middle[1])
    lines: list[list[Mark]] = []
    for mark in bodies:
        if not lines or mark.middle[1] >= np.median([each.bottom for each in lines[-1]]):
            lines.append([])
        lines[-1].append(mark)
    middles = [np.median([each.middle[1] for each in line]) for line in lines]
    for mark in marks:
        if mark.ink.shape[0] < BODY * height and lines:
            nearest = int(np.argmin([abs(middle - mark.middle[1]) for middle in middles]))
            lines[nearest].append(mark)
    return [sorted(line, key=lambda mark: mark.middle[0]) for line in lines]


def _digits_of(line: Sequence[Mark], height: float) -> list[Mark]:
    """Choose how the marks of a line make digits: so that the product of their probabilities is the largest."""
    pieces: list[Mark] = []
    losses: list[float] = []  # the cost of each piece if it belongs to no digit
    for mark in line:
        is_wide = mark.likeness < 0.8 and mark.ink.shape[1] > 0.7 * height
        cut = _cut(mark, height) if is_wide else [mark]
        pieces += cut
        losses += [PER_PIECE if len(cut) == 1 else PER_REJECT] * len(cut)
    groups = _groups(pieces, height)
    # best[n]: the cost of the first n pieces, and the digits that they make
    best: list[tuple[float, list[Mark]]] = [(0.0, []), *[(math.inf, [])] * len(pieces)]
    for (start, stop), mark in zip(groups, judged([joined(pieces[a:b]) for a, b in groups]), strict=True):
        cost, digits = best[start]
        if len(mark.ink) < max(PIECE * height, 0.4 * mark.ink.shape[1]):
            cost += sum(losses[start:stop])
        else:
            cost += PER_DIGIT + min(PER_REJECT, -math.log(mark.likeness + 1e-6)) + PER_CUT * pieces[start].cut
            digits = [*digits, mark]
        if cost < best[stop][0]:
            best[stop] = cost, digits
    return best[-1][1]


def _groups(pieces: Sequence[Mark], height: float) -> list[tuple[int, int]]:
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
            if gap > GAP * height or right - left > 1.5 * height or bottom - top > 1.8 * height:
                break
            groups.append((start, stop + 1))
    return groups
