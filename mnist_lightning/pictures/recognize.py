"""Recognize the digits in pictures with any network that takes MNIST's images."""

import csv
import io
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
from mnist_lightning.files import open_atomic
from mnist_lightning.models.classify import classify
from mnist_lightning.pictures.prepare import Box, Found, find_digits
from mnist_lightning.pictures.read import read_picture, surroundings

FILES_AT_ONCE = 256
WORTH_A_PROCESS = 500  # files; for fewer, starting it takes longer than reading them
SHOWN = 40  # digits in pictures.png
TABLE, CARDS = "pictures.csv", "pictures.png"
COLUMNS = ["file", "digit", "confidence", "runner_up", "runner_up_confidence", "left", "top", "right", "bottom"]

Picture = str | Path | NDArray[np.uint8]


class Digit(NamedTuple):
    """One digit found in a picture, and what the network says of it."""

    digit: int
    confidence: float  # the probability of ``digit``
    probabilities: NDArray[np.float32]  # (10,)
    box: Box  # left, top, right, bottom in the picture's pixels; right and bottom are exclusive
    pixels: NDArray[np.uint8]  # (28, 28), what the network saw


class Written(NamedTuple):
    """What ``write_digits`` found and wrote."""

    pictures: int
    digits: int
    failures: int  # pictures without a digit
    written: list[Path]


@overload
def recognize(net: nn.Module, pictures: Picture) -> list[Digit]: ...  # type: ignore[overload-overlap]  # str
@overload
def recognize(net: nn.Module, pictures: Sequence[Picture]) -> list[list[Digit]]: ...
def recognize(net: nn.Module, pictures: Picture | Sequence[Picture]) -> list[Digit] | list[list[Digit]]:
    """Find and classify the digits of one picture or of several.

    Args:
        net: From ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``, on any device and in any floating dtype. It is
            in evaluation mode during the call.
        pictures: A picture, or a list of them: a file, or a uint8 array, grey ``(H, W)``, grey with alpha
            ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``.

    Returns:
        The digits of the picture in reading order, none for an empty page; for a list of pictures a list of these.

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


def _classify(net: nn.Module, pictures: Sequence[list[Found] | str]) -> list[list[Digit]]:
    """Classify what is found in each picture; a picture that cannot be read has no digits."""
    lists = [[] if isinstance(found, str) else found for found in pictures]
    images = np.array([digit.pixels for found in lists for digit in found])
    rows: Iterator[NDArray[np.float32]] = iter(classify(net, images) if len(images) else ())

    def digit(found: Found, row: NDArray[np.float32]) -> Digit:
        return Digit(int(row.argmax()), float(row.max()), row, found.box, found.pixels)

    return [[digit(found, next(rows)) for found in each] for each in lists]


def recognize_files(net: nn.Module, files: Sequence[str]) -> Iterator[tuple[str, list[Digit] | str]]:
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
    40 digits: where each was found, what the network saw, and the three likeliest digits.

    Args:
        folder: The folder to write to; on an exception its files stay as they were.
        files: Paths of pictures.
        net: As for ``recognize``.
    """
    shown: list[tuple[str, Digit]] = []
    digits = failures = 0
    width = min(60, max((len(printable(file)) for file in files), default=0))
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), open_atomic(folder / TABLE) as file:
        warnings.filterwarnings("ignore", module="PIL")  # the table reports damaged files
        # A file name that is not UTF-8 keeps its bytes.
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*COLUMNS, *(f"p{digit}" for digit in range(10)), "error"])
        _print(f"{'file':<{width}}  digit  confidence  runner-up  box")
        for name, found in recognize_files(net, files):
            start = f"{printable(name):<{width}}"
            if isinstance(found, str):
                failures += 1
                _print(f"{start}      -  {found}")
                table.writerow([name, *[""] * 18, found])
                continue
            digits += len(found)
            shown += [(name, digit) for digit in found[: SHOWN - len(shown)]]
            for digit in found:
                second = int(np.argsort(-digit.probabilities, kind="stable")[1])
                shares = digit.confidence, float(digit.probabilities[second]), *digit.probabilities.tolist()
                sure, less, *each = (f"{share:.9g}" for share in shares)  # nine digits keep a float32 exactly
                table.writerow([name, digit.digit, sure, second, less, *digit.box, *each, ""])
                box = "{},{} to {},{}".format(*digit.box)
                _print(f"{start}  {digit.digit:>5}  {shares[0]:>10.1%}  {second} ({shares[1]:>5.1%})  {box}")
        text.detach()  # writes what it holds
    return Written(len(files), digits, failures, [folder / TABLE, *_write_cards(folder / CARDS, shown, digits)])


def _print(line: str) -> None:
    """Print a line; characters that the terminal lacks become their codes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def _write_cards(path: Path, shown: Sequence[tuple[str, Digit]], total: int) -> list[Path]:
    from mnist_lightning.report import figures, figures_pictures  # matplotlib takes a while to import

    path.unlink(missing_ok=True)
    cards = []
    for file, group in groupby(shown, key=lambda pair: pair[0]):
        with suppress(InputError):  # the file is read again rather than kept in memory, and may be gone
            picture = read_picture(file)
            for _, digit in group:
                part, box = surroundings(picture, digit.box)
                cards.append(figures_pictures.FoundDigit(file, part, box, digit.pixels, digit.probabilities))
    if not cards:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a name in a script that the font lacks
        figures.save(figures_pictures.found_digits(cards, total), path)
    return [path]
