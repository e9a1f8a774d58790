"""Picture files: list them, and read pixels of any format and mode within bounds."""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_lightning.errors import InputError

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
WHITES = (1, 255, 4095, 65535)  # of floats, and of 8, 12 and 16 bits
MAX_PIXELS = 50_000_000  # the largest sensors of today's phones; decoded, 200 MB
MAX_SCANS = 100  # of a JPEG: each takes as long as a picture; usual ones have up to 10
MAX_SEGMENTS = 10_000  # of a JPEG; one can hold 64 kB
BLOCK = 65536  # bytes of a JPEG that are looked through at once
# The start of a segment: its marker and length.
SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])(..)", re.DOTALL)
END = b"\xd9"  # the marker of a JPEG's end
SCAN = b"\xda"  # the marker of a scan
MIN_CONTRAST = 16  # of 255 grey levels between ink and paper; a page with less is empty
_stderr = threading.Lock()


def picture_files(paths: Sequence[str]) -> list[str]:
    """List the pictures that files and folders stand for.

    A file stands for itself, even if it does not exist: reading it will report that. A folder
    stands for the pictures in it and in its subfolders, chosen by suffix and sorted by name,
    without hidden ones and without linked folders.

    Raises:
        InputError: If a folder has no picture, or cannot be read.
    """
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        found: list[str] = []
        for folder, folders, names in os.walk(path, onerror=_refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    found.append(os.path.join(folder, name))
        if not found:
            suffixes = ", ".join(SUFFIXES)
            raise InputError(f"no picture in {path}: none of its files ends in {suffixes}")
        files += sorted(found)
    return files


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def read_picture(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Read a picture upright, as its EXIF orientation says, and the first frame of an animation.

    More than 8 bits per pixel are reduced to 256 grey levels from the darkest pixel to the
    lightest. The low contrast of an empty page is not stretched.

    Args:
        source: A PNG, JPEG, BMP, GIF, TIFF or WebP file of any mode, or the bytes of one.
        max_pixels: The largest width times height.

    Returns:
        Grey ``(H, W)``, RGB ``(H, W, 3)``, or with transparency RGBA ``(H, W, 4)``.

    Raises:
        InputError: If the file is missing, damaged, of another format, or too large. The message
            gives the reason without the file's name.
    """
    try:
        with _opened(source) as file, Image.open(_checked(file), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                size = f"{width:,} x {height:,} pixels"
                raise InputError(f"too large: {size}, more than {max_pixels:,}")
            with _without_stderr() if picture.format == "TIFF" else nullcontext():
                picture.load()
            with suppress(Exception):  # damaged EXIF data do not spoil the picture
                ImageOps.exif_transpose(picture, in_place=True)
            return _pixels(picture)
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow checks the size too
        raise InputError(f"too large: more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InputError("not a PNG, JPEG, BMP, GIF, TIFF or WebP picture") from error
    except Exception as error:  # decoders raise errors of any type for damaged bytes
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"cannot be read: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"damaged: {reason[:200]}") from error


def _opened(source: str | Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return BytesIO(source)
    if not os.path.isfile(source):  # a pipe or a device would never end
        raise InputError("not a file" if os.path.lexists(source) else "no such file")
    # Pillow 13.0 maps a file that it opens itself into memory, and then garbles turned TIFFs.
    return open(source, "rb")


def _checked(file: BinaryIO) -> BinaryIO:
    """Return a file at its start; refuse a JPEG that would take very long."""
    if file.read(2) == b"\xff\xd8":  # a JPEG, or an MPO: several JPEGs, of which the first is read
        markers = list(islice(_segments(file), MAX_SEGMENTS + 1))
        if markers.count(SCAN) > MAX_SCANS:
            raise InputError(f"damaged: more than {MAX_SCANS} scans")
        if len(markers) > MAX_SEGMENTS:
            raise InputError(f"damaged: more than {MAX_SEGMENTS:,} segments")
    file.seek(0)
    return file


def _segments(file: BinaryIO) -> Iterator[bytes]:
    """Yield the markers of a JPEG's segments until the picture ends.

    A thumbnail is inside a segment; a video may follow the end.
    """
    data, start = b"", 0
    while block := file.read(BLOCK):
        data += block
        while found := SEGMENT.search(data, start):
            if found[1] == END:
                return
            yield found[1]
            start = found.start() + 2 + max(2, int.from_bytes(found[2]))
        # The last three bytes may begin a segment that the next block completes.
        rest = max(start, len(data) - 3)
        data, start = data[rest:], max(0, start - len(data))


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Hide what libtiff prints about odd files, which can be 60 MB for a file of 2 MB.

    It writes to the process's stderr past Python. So one thread at a time may read a TIFF, and what
    other threads write to stderr meanwhile is lost.
    """
    with _stderr, open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _pixels(picture: Image.Image) -> Pixels:
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture).astype(np.float32), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        # The file does not say how much of its range it uses: take the smallest usual range that
        # holds its values.
        white = next((white for white in WHITES if high <= white), high)
        is_empty = high - low < MIN_CONTRAST / 255 * white
        scale = 255 / (white if is_empty else high - low)
        return np.asarray(np.round((values - low) * scale).astype(np.uint8))
    if picture.has_transparency_data:
        return np.asarray(picture.convert("RGBA"))
    mode = "L" if picture.mode in ("1", "L") else "RGB"
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))
