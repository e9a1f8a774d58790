"""Write what was read in pictures: a table, annotated copies, and a page of cards."""

import csv
import io
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from mnist_lightning.errors import printable
from mnist_lightning.files import open_atomic, write_atomic
from mnist_lightning.pictures.recognize import Copy, Digit, Reading, recognize_files
from mnist_lightning.report.blocks import Block, Picture
from mnist_lightning.report.pages import write_page

CARDS = 40  # digits on the page
COPIES = 100  # pictures that get a copy with what was read
TABLE, FOLDER = "pictures.csv", "pictures"
PLACE = ["page", "line", "number", "text"]
ANSWER = ["digit", "certain", "confidence", "runner_up", "runner_up_confidence"]
SIDES = ["left", "top", "right", "bottom"]
PROBABILITIES = [f"p{digit}" for digit in range(10)]
COLUMNS = ["file", *PLACE, *ANSWER, *SIDES, *PROBABILITIES, "error"]
SURE_COLOUR, DOUBT_COLOUR = "#0072B2", "#D55E00"  # blue and orange for any colour vision


class Written(NamedTuple):
    """What ``write_digits`` found and wrote."""

    pictures: int  # each page of a file counts
    digits: int
    doubtful: int  # of the digits
    failures: int  # pictures without a digit
    written: list[Path]


def write_digits(
    folder: Path, files: Sequence[str], net: nn.Module, single: bool = False
) -> Written:
    """Print and write the digits of picture files, as they come.

    ``pictures.csv`` has a row for each digit, and for each page without one and why. ``pictures/``
    has a copy of each of the first 100 pages with a box around each digit, and ``index.html``,
    which shows the first 40 digits: where they are, what the network saw, and its probabilities.

    Args:
        folder: The folder to write to; on an exception its tables stay as they were.
        files: Paths of pictures.
        net: As for ``recognize``.
        single: Whether each page is known to be one digit.
    """
    pages = digits = doubtful = failures = cards = 0
    copies: dict[str, bytes] = {}
    sections: dict[str, list[Block]] = {}
    width = min(60, max((len(printable(file)) for file in files), default=0))
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), open_atomic(folder / TABLE) as binary:
        warnings.filterwarnings("ignore", module="PIL")  # the table reports damaged files
        # A file name that is not UTF-8 keeps its bytes.
        text = io.TextIOWrapper(binary, "utf-8", "surrogateescape", newline="")
        table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        show(f"{'file':<{width}}  page  line  confidence  digits")
        for file, page, of_pages, reading, error, copy in recognize_files(
            net, files, COPIES, single
        ):
            pages += 1
            start = f"{printable(file):<{width}}  {page:>4}"
            if error:
                failures += 1
                show(f"{start}     -           -  {error}")
                table.writerow({"file": file, "page": page, "error": error})
                continue
            digits += len(reading)
            doubtful += sum(not digit.certain for digit in reading)
            table.writerows(_rows(file, reading))
            for number, line in enumerate(reading.text.split("\n"), 1):
                least = min(digit.confidence for digit in reading if digit.line == number)
                show(f"{start}  {number:>4}  {least:>10.1%}  {line}")
            if copy and len(copies) < COPIES:
                content = annotated(copy, reading)
                place = f"_page{page}" if of_pages > 1 else ""
                copies[f"{len(copies) + 1:03}_{Path(file).stem}{place}.jpg"] = content
                if cards < CARDS:
                    caption = reading.text.replace("\n", " / ")
                    picture = Picture(content, "The digits that were found", caption, wide=True)
                    gallery = reading.gallery(CARDS - cards)
                    where = f", page {page}" if of_pages > 1 else ""
                    sections[f"{len(copies)}. {printable(file)}{where}"] = [picture, gallery]
                    cards += len(gallery.cards)
        text.detach()  # writes what it holds
    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of an earlier run
    written = [folder / TABLE]
    done = pages, digits, doubtful, failures
    if copies:
        written += [folder / FOLDER, _write_page(folder / FOLDER, done, sections)]
        for name, content in copies.items():
            write_atomic(folder / FOLDER / name, content)
    return Written(*done, written)


def _rows(file: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield the row of each digit of a page of a file."""
    lines = reading.text.split("\n")
    for digit in reading:
        shares = [f"{share:.9g}" for share in digit.probabilities.tolist()]  # exact for a float32
        others = np.where(np.arange(10) == digit.digit, -1, digit.probabilities)
        second = int(others.argmax())
        place = file, digit.page, digit.line, digit.number, lines[digit.line - 1]
        answer = digit.digit, int(digit.certain), shares[digit.digit], second, shares[second]
        yield dict(zip(COLUMNS, [*place, *answer, *digit.box, *shares, ""], strict=True))


def _write_page(folder: Path, done: Sequence[int], sections: Mapping[str, Sequence[Block]]) -> Path:
    """Write the page of the first pictures and digits, and return its path."""
    lead = (
        "Where each digit was found, what the network saw of it, and how likely it finds the ten "
        "digits. Orange and a question mark mean doubtful."
    )
    names = "pictures", "digits", "doubtful digits", "pictures without a digit"
    headline = {name: f"{number:,}" for name, number in zip(names, done, strict=True)}
    return write_page(folder, "Digits in pictures", lead, headline, sections)


def show(line: str) -> None:
    """Print a line; characters that the terminal lacks become their codes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding))


def annotated(copy: Copy, digits: Sequence[Digit]) -> bytes:
    """Return a JPEG of a copy with each digit in a box, blue or, if it is doubtful, orange."""
    image = Image.open(io.BytesIO(copy.jpeg))
    draw, longest = ImageDraw.Draw(image), max(image.size)
    pen = max(2, longest // 500)
    for digit in digits:
        left, top, right, bottom = (round(side * copy.scale) for side in digit.box)
        colour = SURE_COLOUR if digit.certain else DOUBT_COLOUR
        outer = left - pen, top - pen, right + pen, bottom + pen
        draw.rectangle(outer, outline=colour, width=pen)
        height = min(max(14, (bottom - top) // 3), longest // 20)
        draw.text(
            (left, max(top - 2 * pen, height)),
            str(digit),
            fill=colour,
            font=ImageFont.load_default(height),
            anchor="ls",  # the left end of the text's base line
            stroke_width=pen // 2 + 1,
            stroke_fill="white",
        )
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()
