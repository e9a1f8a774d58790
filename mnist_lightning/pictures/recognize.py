"""Recognize the digits in pictures with any network that takes MNIST's images."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from mnist_lightning.errors import InputError
from mnist_lightning.inference import classify
from mnist_lightning.pictures.detector import NO_DIGIT
from mnist_lightning.pictures.digits import Box, Found, find_digits
from mnist_lightning.pictures.marks import stacked
from mnist_lightning.pictures.read import Pixels, read_picture
from mnist_lightning.report.blocks import Card, Gallery

AT_ONCE = 256  # files whose digits are classified together
COPIES_AT_ONCE = 8  # the same where pictures are kept for copies: each may have 8 MB
CARDS = 60  # that a notebook shows of a picture
COPY_LEAST, COPY_MOST = 400, 1600  # pixels of the longer side of a copy
WORTH_A_PROCESS = 500  # files; for fewer, starting it takes longer than reading them
CERTAIN = 0.98  # the least confidence of the network for a certain digit
DOUBTFUL = 0.3  # the detector's probability of "no digit" from which a find is doubtful
# A find lower or higher than these shares of the page's other digits is doubtful: a letter, a
# bracket.
LOWEST, HIGHEST = 0.7, 1.3

Picture = str | Path | NDArray[np.uint8]


class Digit(NamedTuple):
    """One digit found in a picture, and what the network says of it."""

    digit: int  # the likeliest, by the sum of the network's probability and the detector's
    confidence: float  # the network's probability of ``digit``
    probabilities: NDArray[np.float32]  # (10,), the network's
    box: Box  # left, top, right, bottom in the picture's pixels; right and bottom are exclusive
    pixels: Pixels  # (28, 28), what the network saw
    certain: bool  # the network is sure, the detector agrees, and it is as high as the others
    line: int  # of the page, from 1
    number: int  # within the line, from 1: the digits without a wide gap between them

    def __str__(self) -> str:
        """Return the digit, with a question mark if it is doubtful."""
        return f"{self.digit}" if self.certain else f"{self.digit}?"

    def card(self, new_row: bool = False) -> Card:
        """Return what a page or a notebook shows of the digit."""
        return Card(
            self.pixels,
            str(self),
            f"{self.confidence:.1%}",
            flagged=not self.certain,
            probabilities=self.probabilities,
            new_row=new_row,
        )

    def _repr_html_(self) -> str:
        return Gallery([self.card()])._repr_html_()


class Reading(list[Digit]):
    """The digits of one picture, in reading order."""

    @property
    def text(self) -> str:
        """Its lines; between two numbers is a blank, and after a doubtful digit a question mark."""
        lines = []
        for _, line in groupby(self, lambda digit: digit.line):
            numbers = groupby(line, lambda digit: digit.number)
            lines.append(" ".join("".join(map(str, digits)) for _, digits in numbers))
        return "\n".join(lines)

    def gallery(self, most: int = CARDS) -> Gallery:
        """Return cards of the first digits, each line of the page in a row of its own."""
        cards, line = [], 1
        for digit in self[:most]:
            cards.append(digit.card(new_row=digit.line > line))
            line = digit.line
        is_whole = len(cards) == len(self)
        caption = "" if is_whole else f"The first {len(cards)} of {len(self):,} digits"
        return Gallery(cards, caption)

    def _repr_html_(self) -> str:
        from mnist_lightning.report.pages import notebook  # here, since Jinja takes a while

        return notebook([self.gallery()], self.text or "no digit found")


@overload
def recognize(net: nn.Module, pictures: Picture, single: bool = ...) -> Reading: ...  # type: ignore[overload-overlap]  # str
@overload
def recognize(net: nn.Module, pictures: Sequence[Picture], single: bool = ...) -> list[Reading]: ...
def recognize(
    net: nn.Module, pictures: Picture | Sequence[Picture], single: bool = False
) -> Reading | list[Reading]:
    """Find and classify the digits of one picture or of several.

    Args:
        net: From ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``, on any device and in any
            floating dtype. It is in evaluation mode during the call.
        pictures: A picture, or a list of them: a file, or a uint8 array, grey ``(H, W)``, grey with
            alpha ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``.
        single: Whether each picture is known to be one digit.

    Returns:
        The digits of the picture in reading order, none for an empty page, and their ``text``; for
        a list of pictures a list of these.

    Raises:
        InputError: If a picture cannot be read; the message names its file.
    """
    if isinstance(pictures, str | Path | np.ndarray):
        return recognize(net, [pictures], single)[0]
    found = []
    for picture in pictures:
        if isinstance(picture, np.ndarray):
            found.append(find_digits(picture, single))
            continue
        try:
            found.append(find_digits(read_picture(picture), single))
        except InputError as error:
            raise InputError(f"cannot read {picture}: {error}") from error
    return readings(found, classify(net, images_of(found)))


def images_of(pictures: Sequence[Sequence[Found]]) -> Pixels:
    """Return the images ``(N, 28, 28)`` of all digits that were found in pictures."""
    return stacked([digit.pixels for found in pictures for digit in found])


def readings(
    pictures: Sequence[Sequence[Found]], probabilities: NDArray[np.float32]
) -> list[Reading]:
    """Return the digits of each picture.

    Args:
        pictures: What was found in each.
        probabilities: The network's, for all ``images_of(pictures)``: ``(N, 10)``.
    """
    rows = iter(probabilities)
    return [Reading(_digit(found, next(rows)) for found in picture) for picture in pictures]


def _digit(found: Found, probabilities: NDArray[np.float32]) -> Digit:
    opinion = found.probabilities[:NO_DIGIT]  # the detector's
    digit = int((probabilities + opinion).argmax())
    confidence, second_opinion = float(probabilities[digit]), int(opinion.argmax())
    is_digit = bool(found.probabilities[NO_DIGIT] < DOUBTFUL)
    is_sized = LOWEST < found.size < HIGHEST
    certain = confidence >= CERTAIN and is_digit and second_opinion == digit and is_sized
    place = found.box, found.pixels, certain, found.line, found.number
    return Digit(digit, confidence, probabilities, *place)


class Copy(NamedTuple):
    """A copy of a picture to draw on."""

    image: Image.Image  # RGB, on white paper
    scale: float  # the copy's pixels for each pixel of the picture


class FileFound(NamedTuple):
    """What was found in a picture file."""

    digits: list[Found]
    reason: str = ""  # why there is no digit
    copy: Copy | None = None


def recognize_files(
    net: nn.Module, files: Sequence[str], copies: int = 0, single: bool = False
) -> Iterator[tuple[str, Reading | str, Copy | None]]:
    """Find and classify the digits of many files.

    On Linux, one process per core reads on while the network works. Memory does not grow with
    the number of files.

    Args:
        net: As for ``recognize``.
        files: Paths of pictures.
        copies: Of how many files, from the first, a copy is wanted.
        single: Whether each picture is known to be one digit.

    Yields:
        Each file in order; its digits, or the reason why it has none; and its copy, if one is
        wanted and it has digits.
    """
    # Threads took three times as long for small files: Python's lock is held for most of the 300 us
    # that each needs.
    is_worth_it = len(files) >= WORTH_A_PROCESS and sys.platform == "linux"
    workers = torch.get_num_threads() if is_worth_it else 0
    settings: dict[str, Any] = {
        "batch_size": None,  # the batches are made here
        "num_workers": workers,
        "multiprocessing_context": "fork" if workers else None,
        "generator": torch.Generator(),  # torch's global generator keeps its state
    }
    with_copies = [(names, True) for names in _batches(files[:copies], COPIES_AT_ONCE)]
    batches = with_copies + [(names, False) for names in _batches(files[copies:], AT_ONCE)]
    loader: DataLoader[Any] = DataLoader(
        batches,  # type: ignore[arg-type]
        collate_fn=partial(_find_in_files, single),
        **settings,
    )
    threads = cv2.getNumThreads()
    if workers:  # a process forked while OpenCV has threads waits for them forever
        cv2.setNumThreads(1)
    results = iter(loader)
    cv2.setNumThreads(threads)
    for (names, _), found in zip(batches, results, strict=True):
        lists = [each.digits for each in found]
        read = readings(lists, classify(net, images_of(lists)))
        for name, each, digits in zip(names, found, read, strict=True):
            yield name, digits or each.reason, each.copy


def _batches(files: Sequence[str], size: int) -> list[Sequence[str]]:
    return [files[start : start + size] for start in range(0, len(files), size)]


def _find_in_files(single: bool, batch: tuple[Sequence[str], bool]) -> list[FileFound]:
    files, keeps_copies = batch
    return [_find_in_file(file, keeps_copies, single) for file in files]


def _find_in_file(file: str, keeps_copy: bool, single: bool) -> FileFound:
    try:
        picture = read_picture(file)
        digits = find_digits(picture, single)
    except InputError as error:
        return FileFound([], str(error))
    if not digits:
        return FileFound([], "no digit found")
    return FileFound(digits, copy=_copy(picture) if keeps_copy else None)


def _copy(picture: Pixels) -> Copy:
    """Return a copy whose longer side has 400 to 1,600 pixels, so that it can be drawn on."""
    image = Image.fromarray(picture)
    scale = min(-(-COPY_LEAST // max(image.size)), COPY_MOST / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, reducing_gap=2)
    paper = Image.new("RGB", size, "white")
    paper.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    return Copy(paper, scale)
