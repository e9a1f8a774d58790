"""What was not read in a picture, and why: for people who look at what was."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from mnist_lightning.pictures.digits import WORKING_SIDE, Box, Found, box_of
from mnist_lightning.pictures.ink import by_polarity, find_ink
from mnist_lightning.pictures.lines import SPECK, THIN
from mnist_lightning.pictures.marks import Mark, connected, touches_edge
from mnist_lightning.pictures.paper import find_sheet, grey_levels
from mnist_lightning.pictures.read import Pixels

MOST = 100  # marks
SMALLEST = 0.05  # of the page's shorter side: a smaller mark is dirt if there is no digit
PALE = 0.5  # of the ink's strength
COVERED = 0.5  # of a mark: as much in a digit's box makes it a part of the digit


class Ignored(NamedTuple):
    """A mark that is part of no digit."""

    box: Box  # in the picture's pixels
    reason: str  # why, in a few words


def find_ignored(picture: Pixels, digits: Sequence[Found]) -> list[Ignored]:
    """Return the marks of a picture that are part of no digit, the largest first.

    It looks at the picture anew, so that ``find_digits`` need not keep what it leaves out.

    Args:
        picture: As for ``find_digits``.
        digits: What that found.
    """
    grey = grey_levels(picture)  # (H, W)
    height, width = grey.shape
    scale = min(1, WORKING_SIDE / max(grey.shape))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    page, to_grey = find_sheet(grey)
    to_picture = np.diag([width / size[0], height / size[1], 1]) @ to_grey
    inked = find_ink(by_polarity(page)[0])
    if inked is None:
        return []
    marks = connected(*inked, least=max(3, max(page.shape) // 160))
    marks.sort(key=lambda mark: -mark.area)
    heights = [digit.box[3] - digit.box[1] for digit in digits]
    usual = float(np.median(heights)) * scale if heights else SMALLEST / SPECK * min(page.shape)
    ignored = []
    for mark in marks:
        box = box_of(mark, to_picture, width, height)
        area = max(1, _overlap(box, box))
        if all(_overlap(box, digit.box) < COVERED * area for digit in digits):
            ignored.append(Ignored(box, _reason(mark, page.shape, usual)))
    return ignored[:MOST]


def _reason(mark: Mark, page: tuple[int, ...], usual: float) -> str:
    longer = max(mark.height, mark.width)
    if touches_edge(mark, page):
        return "touches the edge"
    if longer < SPECK * usual:
        return "too small"
    if np.quantile(mark.ink[mark.mask == 1], 0.9) < PALE * 255:
        return "too pale"
    if mark.area < THIN * longer**2:
        return "a line"
    if longer < usual / 2:
        return "too small"
    return "not like a digit"


def _overlap(one: Box, other: Box) -> int:
    """Return how many pixels two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)
