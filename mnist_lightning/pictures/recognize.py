"""Recognize the digits in pictures with any network that takes MNIST's images."""

import csv
import io
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from mnist_lightning.errors import InputError, printable
from mnist_lightning.files import open_atomic, write_atomic
from mnist_lightning.models.classify import classify
from mnist_lightning.pictures.judge import judge
from mnist_lightning.pictures.prepare import Box, Found, find_digits
from mnist_lightning.pictures.read import read_picture, surroundings
from mnist_lightning.report.display import show_digits

FILES_AT_ONCE = 256
WORTH_A_PROCESS = 500  # files; for fewer, starting it takes longer than reading them
SHOWN = 40  # digits in pictures.png
ANNOTATED = 100  # pictures that get a copy with what was read
CERTAIN = 0.98  # the least confidence of the network for a certain digit
NO_DIGIT = 0.3  # the judge's probability of "no digit" from which a find is doubtful
SIZES = (0.7, 1.3)  # a find much lower or higher than the page's other digits is doubtful: a letter, a bracket
TABLE, CARDS, COPIES = "pictures.csv", "pictures.png", "pictures"
COLUMNS = ["file", "line", "number", "text", "digit", "certain", "confidence", "runner_up", "runner_up_confidence"]
COLUMNS += ["left", "top", "right", "bottom"]

Picture = str | Path | NDArray[np.uint8]


class Digit(NamedTuple):
    """One digit found in a picture, and what the network says of it."""

    digit: int
    confidence: float  # the probability of ``digit``
    probabilities: NDArray[np.float32]  # (10,)
    box: Box  # left, top, right, bottom in the picture's pixels; right and bottom are exclusive
    pixels: NDArray[np.uint8]  # (28, 28), what the network saw
    certain: bool  # the network is sure, the judge sees the same digit, and it is as high as the page's others
    line: int  # of the page, from 1
    number: int  # within the line, from 1: the digits without a wide gap between them

    def __str__(self) -> str:
        """Return the digit, with a question mark if it is doubtful."""
        return f"{self.digit}" if self.certain else f"{self.digit}?"

    def _repr_html_(self) -> str:
        return show_digits([self])


class Reading(list[Digit]):
    """The digits of one picture, in reading order."""

    @property
    def text(self) -> str:
        """Its lines; between two numbers is a blank, and after a doubtful digit a question mark."""
        return "\n".join(
            " ".join("".join(map(str, number)) for _, number in groupby(line, lambda digit: digit.number))
            for _, line in groupby(self, lambda digit: digit.line)
        )

    def _repr_html_(self) -> str:
        return show_digits(self, self.text or "no digit found")


class Written(NamedTuple):
    """What ``write_digits`` found and wrote."""

    pictures: int
    digits: int
    doubtful: int  # of the digits
    failures: int  # pictures without a digit
    written: list[Path]


@overload
def recognize(net: nn.Module, pictures: Picture) -> Reading: ...  # type: ignore[overload-overlap]  # str
@overload
def recognize(net: nn.Module, pictures: Sequence[Picture]) -> list[Reading]: ...
def recognize(net: nn.Module, pictures: Picture | Sequence[Picture]) -> Reading | list[Reading]:
    """Find and classify the digits of one picture or of several.

    Args:
        net: From ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``, on any device and in any floating dtype. It is
            in evaluation mode during the call.
        pictures: A picture, or a list of them: a file, or a uint8 array, grey ``(H, W)``, grey with alpha
            ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``.

    Returns:
        The digits of the picture in reading order, none for an empty page, and their ``text``; for a list of pictures a
        list of these.

    Raises:
        InputError: If a picture cannot be read; the message names its file.
    """
    if isinstance(pictures, str | Path | np.ndarray):
        return recognize(net, [pictures])[0]
    found = [_find(picture) for picture in pictures]
    for picture, reason in zip(pictures, found, strict=True):
        if isinstance(reason, str):
            raise InputError(reason if isinstance(picture, np.ndarray) else f"cannot read {picture}: {reason}")
    return _classify(net, found)


def _find(picture: Picture) -> list[Found] | str:
    """Return what is found in a picture, or why it cannot be read."""
    try:
        return find_digits(picture if isinstance(picture, np.ndarray) else read_picture(picture))
    except InputError as error:
        return str(error)


def _classify(net: nn.Module, pictures: Sequence[list[Found] | str]) -> list[Reading]:
    """Classify what is found in each picture; a picture that cannot be read has no digits."""
    lists = [[] if isinstance(found, str) else found for found in pictures]
    images = pixels_of(lists)
    return readings(lists, classify(net, images), judge(images))


def pixels_of(pictures: Sequence[Sequence[Found]]) -> NDArray[np.uint8]:
    """Return the images ``(N, 28, 28)`` of all digits that were found in pictures."""
    images = [digit.pixels for found in pictures for digit in found]
    return np.array(images, np.uint8).reshape(-1, 28, 28)


def readings(
    pictures: Sequence[Sequence[Found]], probabilities: NDArray[np.float32], opinions: NDArray[np.float32]
) -> list[Reading]:
    """Return the digits of each picture.

    Args:
        pictures: What was found in each.
        probabilities: The network's, for all ``pixels_of(pictures)``: ``(N, 10)``.
        opinions: The judge's, ``(N, 11)``.
    """
    rows = iter(zip(probabilities, opinions, strict=True))

    def digit(found: Found, row: NDArray[np.float32], opinion: NDArray[np.float32]) -> Digit:
        answer, confidence = int(row.argmax()), float(row.max())
        certain = confidence >= CERTAIN and opinion[10] < NO_DIGIT and opinion[:10].argmax() == answer
        certain &= SIZES[0] < found.size < SIZES[1]
        return Digit(answer, confidence, row, found.box, found.pixels, bool(certain), found.line, found.number)

    return [Reading(digit(found, *next(rows)) for found in each) for each in pictures]


def recognize_files(net: nn.Module, files: Sequence[str]) -> Iterator[tuple[str, Reading | str]]:
    """Find and classify the digits of many files; on Linux one process per core reads on while the network works.

    Memory does not grow with the number of files.

    Args:
        net: As for ``recognize``.
        files: Paths of pictures.

    Yields:
        Each file in order, with its digits, or with the reason why it has none.
    """
    # Threads took three times as long for small files: Python's lock is held for most of the 300 us that each needs.
    workers = torch.get_num_threads() if len(files) >= WORTH_A_PROCESS and sys.platform == "linux" else 0
    fork, own = "fork" if workers else None, torch.Generator()  # torch's global generator keeps its state
    settings: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": fork, "generator": own}
    loader: DataLoader[Any] = DataLoader(files, FILES_AT_ONCE, collate_fn=_find_all, **settings)  # type: ignore[arg-type]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1 if workers else threads)  # a process forked while OpenCV has threads waits for them forever
    batches = iter(loader)
    cv2.setNumThreads(threads)
    for start, found in zip(range(0, len(files), FILES_AT_ONCE), batches, strict=True):
        classified = _classify(net, found)
        for file, reason, digits in zip(files[start : start + FILES_AT_ONCE], found, classified, strict=True):
            yield file, reason if isinstance(reason, str) else digits or "no digit found"


def _find_all(files: Sequence[str]) -> list[list[Found] | str]:
    return [_find(file) for file in files]


def write_digits(folder: Path, files: Sequence[str], net: nn.Module) -> Written:
    """Print and write the digits of picture files, as they come.

    ``pictures.csv`` has a row for each digit, and for each file without one and why. ``pictures.png`` shows the first
    40 digits: where each was found, what the network saw, and the three likeliest digits. ``pictures/`` has a copy of
    each of the first 100 pictures with a box around each digit.

    Args:
        folder: The folder to write to; on an exception its tables stay as they were.
        files: Paths of pictures.
        net: As for ``recognize``.
    """
    shown: list[tuple[str, Reading]] = []
    digits = doubtful = failures = 0
    width = min(60, max((len(printable(file)) for file in files), default=0))
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), open_atomic(folder / TABLE) as file:
        warnings.filterwarnings("ignore", module="PIL")  # the table reports damaged files
        # A file name that is not UTF-8 keeps its bytes.
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*COLUMNS, *(f"p{digit}" for digit in range(10)), "error"])
        _print(f"{'file':<{width}}  line  confidence  digits")
        for name, found in recognize_files(net, files):
            start = f"{printable(name):<{width}}"
            if isinstance(found, str):
                failures += 1
                _print(f"{start}     -           -  {found}")
                table.writerow([name, *[""] * (len(COLUMNS) + 9), found])
                continue
            digits += len(found)
            doubtful += sum(not digit.certain for digit in found)
            if len(shown) < ANNOTATED:
                shown.append((name, found))
            lines = found.text.split("\n")
            for digit in found:
                second = int(np.argsort(-digit.probabilities, kind="stable")[1])
                shares = digit.confidence, float(digit.probabilities[second]), *digit.probabilities.tolist()
                sure, less, *each = (f"{share:.9g}" for share in shares)  # nine digits keep a float32 exactly
                place = digit.line, digit.number, lines[digit.line - 1]
                table.writerow(
                    [name, *place, digit.digit, int(digit.certain), sure, second, less, *digit.box, *each, ""]
                )
            for number, line in enumerate(lines, 1):
                least = min(digit.confidence for digit in found if digit.line == number)
                _print(f"{start}  {number:>4}  {least:>10.1%}  {line}")
        text.detach()  # writes what it holds
    drawn = [*_write_cards(folder / CARDS, shown, digits), *_write_copies(folder / COPIES, shown)]
    return Written(len(files), digits, doubtful, failures, [folder / TABLE, *drawn])


def _print(line: str) -> None:
    """Print a line; characters that the terminal lacks become their codes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def _write_cards(path: Path, shown: Sequence[tuple[str, Reading]], total: int) -> list[Path]:
    from mnist_lightning.report import figures, figures_pictures  # matplotlib takes a while to import

    path.unlink(missing_ok=True)
    cards: list[figures_pictures.FoundDigit] = []
    for file, digits in shown[:SHOWN]:
        with suppress(InputError):  # the file is read again rather than kept in memory, and may be gone
            picture = read_picture(file)
            for digit in digits[: SHOWN - len(cards)]:
                part, box = surroundings(picture, digit.box)
                cards.append(
                    figures_pictures.FoundDigit(file, part, box, digit.pixels, digit.probabilities, digit.certain)
                )
    if not cards:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a name in a script that the font lacks
        figures.save(figures_pictures.found_digits(cards, total), path)
    return [path]


def _write_copies(folder: Path, shown: Sequence[tuple[str, Reading]]) -> list[Path]:
    from mnist_lightning.report.figures_pictures import annotated

    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    for number, (file, digits) in enumerate(shown, 1):
        with suppress(InputError):
            copy = annotated(read_picture(file), [(digit.box, str(digit), digit.certain) for digit in digits])
            folder.mkdir(exist_ok=True)
            write_atomic(folder / f"{number:03}_{Path(file).stem}.jpg", copy)
    return [folder] if folder.exists() else []
