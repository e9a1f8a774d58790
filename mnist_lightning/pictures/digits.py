"""From a picture to its digits in reading order: the whole way, step by step."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnist_lightning.errors import InputError
from mnist_lightning.pictures.marks import Mark
from mnist_lightning.pictures.paper import Transform, find_sheet, grey_levels
from mnist_lightning.pictures.read import Pixels
from mnist_lightning.pictures.readings import POOR, likeliest

# Larger pictures are first shrunk to it; a digit of 1/80 of the page still has 20 pixels.
WORKING_SIDE = 1600
MAX_DIGITS = 500  # in one picture
PLACE_WIDTH = 0.5  # of the digits' height: the least room that a digit takes
NUMBER_GAP = 0.6  # of the digits' height: a wider gap begins a new number

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive


class Found(NamedTuple):
    """One digit found in a picture."""

    pixels: Pixels  # (28, 28), white on black, as the network takes it
    probabilities: NDArray[np.float32]  # (11,), the detector's; the last is that of no digit
    box: Box  # in the picture's pixels
    line: int  # of the page, from 1
    number: int  # within the line, from 1
    size: float  # its height, as a share of the median of the picture's digits
    # Whether the detector is sure of most digits of the page, and this is no bar cut out of a mark:
    # letters have bars too.
    is_clear: bool


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
    reading = likeliest(page, single)
    transform = to_picture @ to_grey @ reading.to_page
    digits = [mark for line in reading.lines for mark in line]
    if len(digits) > MAX_DIGITS:
        raise InputError(f"expected at most {MAX_DIGITS} digits, found {len(digits):,}")
    usual = np.median([mark.height for mark in digits] or [1])
    is_sound = reading.mean >= POOR
    found = []
    for line, marks in enumerate(reading.lines, 1):
        for mark, number in zip(marks, _numbers(marks), strict=True):
            box = box_of(mark, transform, width, height)
            share = float(mark.height / usual)
            place = box, line, number, share
            is_cut_bar = mark.is_piece and mark.probabilities.argmax() == 1
            is_clear = is_sound and not is_cut_bar
            found.append(Found(mark.image, mark.probabilities, *place, is_clear))
    return found


def box_of(mark: Mark, transform: Transform, width: int, height: int) -> Box:
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
