"""From a page's ink to its digits: remove lines, join broken strokes, separate digits that touch."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.pictures.judge import judge

Pixels = NDArray[np.uint8]

MAX_DIGITS = 500  # in one picture
MAX_MARKS = 5_000  # a texture has more
DIGIT_SIDE = 20  # MNIST: digits scaled into 20x20, their centre of mass at the centre of 28x28
SIDE = 28
THIN = 1.7  # pixels of 28: a stroke thinner than any of MNIST's is drawn as wide as
WIDE = 2.4  # most of them
SPECK = 0.15  # of the digits' height: a smaller mark is dirt
SHORT = 12  # pixels of the shortest line
PIECE = 0.4  # a lower mark may be a piece of a digit, and is no digit of its own
BODY = 0.65  # a lower mark begins no line
GAP = 0.3  # between the pieces of a digit
MOST_PIECES = 10  # of a digit
SLANTS = (-0.4, -0.2, 0.0, 0.2, 0.4)  # of the cuts between digits that touch, in pixels to the left for each one down
PER_DIGIT = 0.1  # cost: of two readings that are as likely, the one with fewer digits
PER_REJECT = 4.0  # cost: as much as a digit with a probability of 2%
PER_CUT = 1.0  # cost: of a cut through as much ink as a digit is high
PER_PIECE = 0.7  # cost of a piece that belongs to no digit


class Mark(NamedTuple):
    """Ink that hangs together: a digit, a piece of one, several, or something else."""

    left: int
    top: int
    ink: Pixels  # (h, w), 0 where it is not this mark's
    cut: float = 0.0  # how much ink was cut through at its left, as a share of the digits' height

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
    return _tight(Mark(0, 0, cv2.convertScaleAbs(crop, alpha=255 / max(1, crop.max())))).ink


def _tight(mark: Mark) -> Mark:
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


def _likeness(marks: Sequence[Mark]) -> NDArray[np.float32]:
    """Return the probability of each mark's likeliest digit ``(N,)``."""
    if not marks:
        return np.zeros(0, np.float32)
    return np.asarray(judge(np.stack([centred(mark.ink) for mark in marks]))[:, :10].max(axis=1))


def without_lines(mark: Mark, page: tuple[int, int], least: float) -> list[Mark]:
    """Take the lines and frames out of a mark: what goes on straight over most of its width, and is thin.

    Where a stroke crosses a line, the ink is thicker than the line and stays.

    Args:
        mark: What is no digit as it is.
        page: Height and width.
        least: The shortest line.
    """
    mask = cv2.threshold(mark.ink, 0, 1, cv2.THRESH_BINARY)[1]
    # A line across the page may be crooked, or broken.
    height_share, width_share = (
        0.25 if own > 0.9 * whole else 0.5 for own, whole in zip(mask.shape, page, strict=True)
    )
    height, width = mask.shape
    turned = np.ascontiguousarray(mask.T)
    level, upright = _lines(mask, round(0.75 * width)), _lines(turned, round(0.75 * height))
    sides = level[: height // 5], level[-height // 5 :], upright[: width // 5], upright[-width // 5 :]
    if min(height, width) > SHORT and mask.mean() < 0.5 and all(side.any() for side in sides):  # a frame
        least = SHORT
    lines = _lines(mask, round(max(least, width_share * width)))
    if width > height > least / 2:  # a digit on an underline, which may be as short as the digit
        lines[-height // 4 :] |= level[-height // 4 :]
    rows = np.flatnonzero(lines.any(axis=1))
    # A frame or a grid has upright lines too; those of a digit on a line are its strokes.
    if height_share < 0.5 or (len(rows) and np.ptp(rows) > 0.6 * height):
        lines |= _lines(turned, round(max(least, height_share * height))).T
    if not lines.any():
        return [mark]
    rest = mask & (1 - lines)
    near = cv2.dilate(lines, np.ones((5, 5), np.uint8))
    marks = connected(mark.ink, rest, mark.left, mark.top, 3)
    kept = []
    for part in marks:
        y, x = part.top - mark.top, part.left - mark.left
        own = part.ink > 0
        if (near[y : y + own.shape[0], x : x + own.shape[1]] & own).sum() < 0.5 * own.sum():
            kept.append(part)
    return kept


def _lines(mask: Pixels, length: int) -> Pixels:
    """Return the pixels of level lines of at least this length, where the ink is no thicker than a line."""
    # A line that is not quite level goes on in the rows above or below.
    wide = cv2.dilate(mask, np.ones((3 if mask.shape[1] < 100 else 5, 1), np.uint8))
    along = _opened(wide, (1, length)) & mask
    if not along.any():
        return along
    thickness = along.sum() / (along[0].sum() + (along[1:] > along[:-1]).sum())
    return np.asarray(along & (1 - _opened(mask, (round(thickness) + 3, 1))))


def _opened(mask: Pixels, kernel: tuple[int, int]) -> Pixels:
    """Return the ink that a rectangle of this height and width fits into; beyond the edges there is none."""
    ones = np.ones(kernel, np.uint8)
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, ones, borderType=cv2.BORDER_CONSTANT, borderValue=0))


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
    return [_tight(each) for each in pieces if each.ink.any()]


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


def read_lines(ink: Pixels, mask: Pixels) -> list[list[Mark]]:
    """Return the digits of each line of a page, in reading order.

    Args:
        ink: How strongly each pixel is inked ``(H, W)``, 0-255.
        mask: 1 where there is ink.
    """
    marks = connected(ink, mask, least=max(3, max(ink.shape) // 160))
    if not marks:
        return []
    likeness = _likeness(marks)
    frames = _frames(marks, likeness)
    whole = np.array([_is_long(mark, ink.shape) for mark in marks])
    doubtful = frames | (likeness < 0.5) | (whole & (likeness < 0.95))
    if doubtful.any():
        # A digit has lines too, but they are shorter than it is high.
        least = 1.2 * _height(marks, likeness) if (likeness >= 0.5).any() else SHORT
        pieces = []
        is_line = frames | (whole & (likeness < 0.5))
        for mark, like, doubt, line in zip(marks, likeness, doubtful, is_line, strict=True):
            rest = without_lines(mark, ink.shape, least) if doubt else [mark]
            is_better = _likeness(rest).max(initial=0) > like
            pieces += rest if line or is_better else [mark]
        has_lines = len(pieces) != len(marks)
        marks, likeness = pieces, _likeness(pieces)
        if has_lines:
            kept = _thicker_than_lines(marks, likeness)
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


def _is_long(mark: Mark, page: tuple[int, int]) -> bool:
    """Return whether a mark is a bar, or goes from one edge of the page to the other."""
    (height, width), (page_height, page_width) = mark.ink.shape, page
    return bool(width > 2.5 * height or width > 0.9 * page_width or height > 0.9 * page_height)


def _thicker_than_lines(marks: Sequence[Mark], likeness: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which marks of a page with lines are not what is left of the lines, which are thinner than the pen."""
    pens = np.array([cv2.distanceTransform(np.pad(mark.ink, 1), cv2.DIST_C, 3).max() for mark in marks])
    slim = np.array([mark.ink.shape[1] / mark.ink.shape[0] for mark in marks])
    pen = pens[(slim > 0.3) & (likeness >= 0.5)].max(initial=0)
    return np.asarray(pens > pen * np.select([slim < 0.1, slim < 0.3], [0.6, 0.4], 0.3))


def _frames(marks: Sequence[Mark], likeness: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which marks have a digit within them."""
    boxes = np.array([(mark.left, mark.top, mark.right, mark.bottom) for mark in marks])
    within = (boxes[:, :2] > boxes[:, None, :2]).all(axis=2) & (boxes[:, 2:] < boxes[:, None, 2:]).all(axis=2)
    width = boxes[:, 2] - boxes[:, 0]
    return np.asarray((within & (likeness >= 0.5) & (width > 0.1 * width[:, None])).any(axis=1))


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
        likeness = _likeness(line)
        cut = [
            _cut(mark, height) if like < 0.8 and mark.ink.shape[1] > 0.7 * height else [mark]
            for mark, like in zip(line, likeness, strict=True)
        ]
        pieces.append([piece for each in cut for piece in each])
        whole.append([len(each) == 1 for each in cut for _ in each])
    groups = [(line, start, stop) for line, each in enumerate(pieces) for start, stop in _groups(each, height)]
    likeness = _likeness([joined(pieces[line][start:stop]) for line, start, stop in groups])
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
