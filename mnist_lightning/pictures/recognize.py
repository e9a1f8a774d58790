"""Recognize the digits in pictures with any network that takes MNIST's images."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mnist_lightning.checkpoints import read_network
from mnist_lightning.errors import InputError
from mnist_lightning.inference import classify
from mnist_lightning.pictures.detector import NO_DIGIT
from mnist_lightning.pictures.digits import Box, Found, find_digits
from mnist_lightning.pictures.marks import stacked
from mnist_lightning.pictures.read import MAX_PIXELS, Picture, Pixels, read_pages
from mnist_lightning.report.blocks import Card, Gallery

AT_ONCE = 64  # files whose digits are classified together; each may have many pages
COPIES_AT_ONCE = 8  # the same where copies are kept
CARDS = 60  # that a notebook shows of a picture
COPY_LEAST, COPY_MOST = 400, 1600  # pixels of the longer side of a copy
WORTH_A_PROCESS = 500  # files; for fewer, starting it takes longer than reading them
CERTAIN = 0.98  # the least confidence of the network for a certain digit
DOUBTFUL = 0.3  # the detector's probability of "no digit" from which a find is doubtful
# A find lower or higher than these shares of the page's other digits is doubtful: a letter, a
# bracket.
LOWEST, HIGHEST = 0.7, 1.3

ONE_PICTURE = str, Path, bytes, np.ndarray, Tensor, Image.Image


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
    page: int = 1  # of the file, from 1
    no_digit: float = 0.0  # the detector's probability that it is none: of a letter, a sign

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
    """The digits of one picture, in reading order, page by page."""

    @property
    def text(self) -> str:
        """Its lines; between two numbers is a blank, and after a doubtful digit a question mark.

        Between two pages is an empty line.
        """
        pages = []
        for _, page in groupby(self, lambda digit: digit.page):
            lines = []
            for _, line in groupby(page, lambda digit: digit.line):
                numbers = groupby(line, lambda digit: digit.number)
                lines.append(" ".join("".join(map(str, digits)) for _, digits in numbers))
            pages.append("\n".join(lines))
        return "\n\n".join(pages)

    def __repr__(self) -> str:
        """Return the text: a hundred digits with their pixels say nothing."""
        return f"Reading({self.text!r})"

    def gallery(self, most: int = CARDS) -> Gallery:
        """Return cards of the first digits, each line of the page in a row of its own."""
        cards: list[Card] = []
        line = None
        for digit in self[:most]:
            is_new = (digit.page, digit.line) != line
            cards.append(digit.card(new_row=is_new and line is not None))
            line = digit.page, digit.line
        is_whole = len(cards) == len(self)
        caption = "" if is_whole else f"The first {len(cards)} of {len(self):,} digits"
        return Gallery(cards, caption)

    def _repr_html_(self) -> str:
        from mnist_lightning.report.pages import notebook  # here, since Jinja takes a while

        return notebook([self.gallery()], self.text or "no digit found")


class Page(NamedTuple):
    """What was found on a page of a picture."""

    number: int  # from 1
    digits: list[Found]
    error: str = ""  # why it was not read
    copy: "Copy | None" = None


def find_pages(
    picture: Picture,
    single: bool = False,
    max_pixels: int = MAX_PIXELS,
    copies: int = 0,
) -> Iterator[Page]:
    """Find the digits on each page of a picture.

    Args:
        picture: As for ``read_pages``.
        single: Whether each page is known to be one digit.
        max_pixels: The largest width times height of a page.
        copies: Of how many pages, from the first, a copy is wanted.
    """
    for number, pixels in enumerate(read_pages(picture, max_pixels), 1):
        try:
            if isinstance(pixels, InputError):
                raise pixels
            digits = find_digits(pixels, single)
        except InputError as error:
            yield Page(number, [], str(error))
            continue
        has_copy = number <= copies and len(digits) > 0
        yield Page(number, digits, copy=_copy(pixels) if has_copy else None)


@overload
def recognize(  # type: ignore[overload-overlap]  # str
    pictures: Picture, net: nn.Module | None = ..., single: bool = ...
) -> Reading: ...
@overload
def recognize(
    pictures: Sequence[Picture], net: nn.Module | None = ..., single: bool = ...
) -> list[Reading]: ...
def recognize(
    pictures: "Picture | Sequence[Picture]", net: nn.Module | None = None, single: bool = False
) -> Reading | list[Reading]:
    """Find and classify the digits of one picture or of several.

    Args:
        pictures: A picture, or a list of them: a file's path, its bytes, or the file open in binary
            mode; a PIL image; an array ``(H, W)`` or ``(H, W, C)``; or a tensor ``(H, W)`` or
            ``(C, H, W)``. Arrays and tensors are uint8, or floats in [0, 1], of 1 to 4 channels:
            grey, grey with alpha, RGB or RGBA.
        net: From ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``, on any device and in any
            floating dtype. It is in evaluation mode during the call. By default the network that
            comes with this package.
        single: Whether each page is known to be one digit.

    Returns:
        The digits of the picture, of all its pages, in reading order, none for an empty page, and
        their ``text``; for a list of pictures a list of these.

    Raises:
        InputError: If a page cannot be read; the message names its file.
    """
    net = net or read_network()
    is_one = isinstance(pictures, ONE_PICTURE) or hasattr(pictures, "read")
    if is_one or not isinstance(pictures, Iterable):
        return recognize([pictures], net, single)[0]  # type: ignore[list-item]
    found = []
    for number, picture in enumerate(pictures, 1):
        pages = list(find_pages(picture, single))
        for page in pages:
            if page.error:
                name = picture if isinstance(picture, str | Path) else f"picture {number}"
                place = f", page {page.number}" if len(pages) > 1 else ""
                raise InputError(f"cannot read {name}{place}: {page.error}")
        found.append(pages)
    return readings(found, classify(net, images_of(found)))


def images_of(pictures: Sequence[Sequence[Page]]) -> Pixels:
    """Return the images ``(N, 28, 28)`` of all digits that were found on the pages of pictures."""
    images = []
    for pages in pictures:
        for page in pages:
            images += [digit.pixels for digit in page.digits]
    return stacked(images)


def readings(
    pictures: Sequence[Sequence[Page]], probabilities: NDArray[np.float32]
) -> list[Reading]:
    """Return the digits of each picture.

    Args:
        pictures: What was found on the pages of each.
        probabilities: The network's, for all ``images_of(pictures)``: ``(N, 10)``.
    """
    rows = iter(probabilities)
    return [_reading(pages, rows) for pages in pictures]


def _reading(pages: Sequence[Page], rows: Iterator[NDArray[np.float32]]) -> Reading:
    reading = Reading()
    for page in pages:
        reading += [_digit(found, next(rows), page.number) for found in page.digits]
    return reading


def _digit(found: Found, probabilities: NDArray[np.float32], page: int) -> Digit:
    opinion = found.probabilities[:NO_DIGIT]  # the detector's
    digit = int((probabilities + opinion).argmax())
    confidence, second_opinion = float(probabilities[digit]), int(opinion.argmax())
    is_digit = found.is_clear and bool(found.probabilities[NO_DIGIT] < DOUBTFUL)
    is_sized = LOWEST < found.size < HIGHEST
    certain = confidence >= CERTAIN and is_digit and second_opinion == digit and is_sized
    no_digit = float(found.probabilities[NO_DIGIT])
    place = found.box, found.pixels, certain, found.line, found.number, page, no_digit
    return Digit(digit, confidence, probabilities, *place)


class Copy(NamedTuple):
    """A copy of a picture to draw on."""

    jpeg: bytes  # on white paper; a file can have a hundred, which as pixels would have 600 MB
    scale: float  # the copy's pixels for each pixel of the picture


class PageRead(NamedTuple):
    """What was read on a page of a file."""

    file: str
    page: int  # from 1
    pages: int  # of the file
    reading: Reading
    error: str  # why there is no digit
    copy: Copy | None


def recognize_files(
    net: nn.Module, files: Sequence[str], copies: int = 0, single: bool = False
) -> Iterator[PageRead]:
    """Find and classify the digits of many files.

    On Linux, one process per core reads on while the network works. Memory does not grow with
    the number of files.

    Args:
        net: As for ``recognize``.
        files: Paths of pictures.
        copies: Of how many files, from the first, copies of so many pages are wanted.
        single: Whether each page is known to be one digit.

    Yields:
        Each page of each file in order.
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
        collate_fn=partial(_find_in_files, single, copies),
        **settings,
    )
    threads = cv2.getNumThreads()
    if workers:  # a process forked while OpenCV has threads waits for them forever
        cv2.setNumThreads(1)
    results = iter(loader)
    cv2.setNumThreads(threads)
    for (names, _), found in zip(batches, results, strict=True):
        rows = iter(classify(net, images_of(found)))
        for name, pages in zip(names, found, strict=True):
            for page in pages:
                error = page.error if page.error or page.digits else "no digit found"
                reading = _reading([page], rows)
                yield PageRead(name, page.number, len(pages), reading, error, page.copy)


def _batches(files: Sequence[str], size: int) -> list[Sequence[str]]:
    return [files[start : start + size] for start in range(0, len(files), size)]


def _find_in_files(
    single: bool, copies: int, batch: tuple[Sequence[str], bool]
) -> list[list[Page]]:
    files, keeps_copies = batch
    wanted = copies if keeps_copies else 0
    return [list(find_pages(file, single, copies=wanted)) for file in files]


def _copy(picture: Pixels) -> Copy:
    """Return a copy whose longer side has 400 to 1,600 pixels, so that it can be drawn on."""
    image = Image.fromarray(picture)
    scale = min(-(-COPY_LEAST // max(image.size)), COPY_MOST / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, reducing_gap=2)
    paper = Image.new("RGB", size, "white")
    paper.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    file = BytesIO()
    paper.save(file, "JPEG", quality=95)
    return Copy(file.getvalue(), scale)
