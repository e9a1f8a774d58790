"""From a page's ink to its digits: without lines, broken strokes joined, digits that touch apart, in reading order."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.marks import Mark, Pixels, connected, joined, likeness_of, tight
from mnist_lightning.pictures.rules import SHORT, frames_of, is_long, thicker_than_lines, without_lines

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
    marks = connected(ink, mask, least=max(3, max(ink.shape) // 160))
    if not marks:
        return []
    likeness = likeness_of(marks)
    if len(marks) == 1 and likeness[0] >= SURE:
        return [marks]
    frames = frames_of(marks, likeness)
    whole = np.array([is_long(mark, ink.shape) for mark in marks])
    doubtful = frames | (likeness < 0.5) | (whole & (likeness < SURE))
    if doubtful.any():
        # A digit has lines too, but they are shorter than it is high.
        least = 1.2 * _height(marks, likeness) if (likeness >= 0.5).any() else SHORT
        pieces = []
        is_line = frames | (whole & (likeness < 0.5))
        for mark, like, doubt, line in zip(marks, likeness, doubtful, is_line, strict=True):
            rest = without_lines(mark, ink.shape, least) if doubt else [mark]
            is_better = likeness_of(rest).max(initial=0) > like
            pieces += rest if line or is_better else [mark]
        has_lines = len(pieces) != len(marks)
        marks, likeness = pieces, likeness_of(pieces)
        if has_lines:
            kept = thicker_than_lines(marks, likeness)
            marks, likeness = [mark for mark, keep in zip(marks, kept, strict=True) if keep], likeness[kept]
    if not marks:
        return []
    height = _height(marks, likeness)
    if (likeness >= 0.5).any():  # what the page's edge cuts off is no digit: a table, a shadow, half a digit
        bottom, right = ink.shape
        marks = [
            mark
            for mark, like in zip(marks, likeness, strict=True)
            if (like >= 0.5 and len(mark.ink) < 2 * height)
            or (mark.left > 0 and mark.top > 0 and mark.right < right and mark.bottom < bottom)
        ]
    lines = _lines_of([mark for mark in marks if max(mark.ink.shape) >= SPECK * height], height)
    return _chosen(lines, height)


def _cut(mark: Mark, height: float) -> list[Mark]:
    """Cut a mark where the least ink is in the way, into more pieces than it can have digits."""
    own_height, width = mark.ink.shape
    most = min(20, int(9 * width / height))
    mask = cv2.threshold(mark.ink, 0, 1, cv2.THRESH_BINARY)[1]
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


def _height(marks: Sequence[Mark], likeness: NDArray[np.float32]) -> float:
    """Return the usual height of the page's digits: the one that the most digits nearly have."""
    heights = np.array([mark.ink.shape[0] for mark in marks], float)
    sure = heights[likeness >= 0.5]
    if not len(sure):
        return float(heights.max())
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


def _chosen(lines: Sequence[Sequence[Mark]], height: float) -> list[list[Mark]]:
    """Choose how the marks of each line make digits: so that the product of their probabilities is the largest."""
    pieces: list[list[Mark]] = []
    whole: list[list[bool]] = []
    for line in lines:
        likeness = likeness_of(line)
        cut = [
            _cut(mark, height) if like < 0.8 and mark.ink.shape[1] > 0.7 * height else [mark]
            for mark, like in zip(line, likeness, strict=True)
        ]
        pieces.append([piece for each in cut for piece in each])
        whole.append([len(each) == 1 for each in cut for _ in each])
    groups = [(line, start, stop) for line, each in enumerate(pieces) for start, stop in _groups(each, height)]
    likeness = likeness_of([joined(pieces[line][start:stop]) for line, start, stop in groups])
    chosen = []
    for number, each in enumerate(pieces):
        # best[n]: the cost of the first n pieces, and the groups that they make
        best: list[tuple[float, list[Mark]]] = [(0.0, [])]
        own = [
            (start, stop, float(like))
            for (line, start, stop), like in zip(groups, likeness, strict=True)
            if line == number
        ]
        for end in range(1, len(each) + 1):
            options = []
            for start, stop, like in own:
                if stop == end:
                    mark = joined(each[start:stop])
                    cost, found = best[start]
                    if mark.ink.shape[0] < max(PIECE * height, 0.4 * mark.ink.shape[1]):
                        lost = sum(PER_PIECE if own_mark else PER_REJECT for own_mark in whole[number][start:stop])
                        options.append((cost + lost, found))
                    else:
                        unlikely = min(PER_REJECT, -float(np.log(like + 1e-6)))
                        options.append((cost + PER_DIGIT + unlikely + PER_CUT * each[start].cut, [*found, mark]))
            best.append(min(options, key=lambda option: option[0]))
        chosen.append(best[-1][1])
    return [line for line in chosen if line]


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
