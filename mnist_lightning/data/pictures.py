"""Picture files: which ones are meant, and their pixels, of any format and mode, within bounds."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_lightning.data.preparation import MIN_CONTRAST
from mnist_lightning.errors import InputError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
WHITES = (1, 255, 4095, 65535)  # of floats, and of 8, 12 and 16 bits
MAX_PIXELS = 50_000_000  # the largest sensors of today's phones; decoded, 200 MB


def picture_files(paths: Sequence[str]) -> list[str]:
    """Return the pictures that files and folders mean.

    A file is meant whatever its name, also if it does not exist: reading it will say so. A folder means the pictures
    in it and below, by their suffix and in the order of their names; hidden ones and linked folders do not count.

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
            found += [
                os.path.join(folder, name)
                for name in names
                if name.lower().endswith(SUFFIXES) and not name.startswith(".")
            ]
        if not found:
            raise InputError(f"no picture in {path}: none of its files ends in {', '.join(SUFFIXES)}")
        files += sorted(found)
    return files


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture upright: turned as its EXIF orientation says, and of an animation the first frame.

    More than 8 bits per pixel are reduced to the 256 grey levels from the darkest pixel to the lightest, but for the
    little contrast of an empty page.

    Args:
        path: A PNG, JPEG, BMP, GIF, TIFF or WebP file of any mode.

    Returns:
        Grey ``(H, W)``, RGB ``(H, W, 3)``, or with transparency RGBA ``(H, W, 4)``.

    Raises:
        InputError: If it is no such picture, damaged, or larger than 50 million pixels. The reason does not name the
            file.
    """
    if not os.path.isfile(path):  # a pipe or a device would never end
        raise InputError("not a file" if os.path.lexists(path) else "no such file")
    try:
        # Opened here, since Pillow 13.0 maps a file it opens itself into memory, and then garbles turned TIFFs.
        with (
            warnings.catch_warnings(action="ignore"),
            open(path, "rb") as file,
            Image.open(file, formats=FORMATS) as picture,
        ):
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise InputError(f"too large: {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}")
            with _without_stderr() if picture.format == "TIFF" else nullcontext():
                picture.load()
            with suppress(Exception):  # damaged EXIF data, which are read in other places than the picture
                ImageOps.exif_transpose(picture, in_place=True)
            return _pixels(picture)
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow looks at the size too
        raise InputError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InputError("not a PNG, JPEG, BMP, GIF, TIFF or WebP picture") from error
    except Exception as error:  # a decoder that meets damaged bytes may raise whatever it likes
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"cannot be read: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"damaged: {reason[:200]}") from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep quiet what is written past Python: libtiff tells the process's stderr of each odd tag."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture).astype(np.float32), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        # How much of the file's range is in use it does not say: take the least usual one that has it all.
        white = next((white for white in WHITES if high <= white), high)
        is_empty = high - low < MIN_CONTRAST / 255 * white  # a page whose noise is not worth stretching
        scale = 255 / (white if is_empty else high - low)
        stretched: NDArray[np.uint8] = np.round((values - low) * scale).astype(np.uint8)
        return stretched
    if picture.has_transparency_data:
        return np.asarray(picture.convert("RGBA"))
    mode = "L" if picture.mode in ("1", "L") else "RGB"
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))


def surroundings(
    picture: NDArray[np.uint8], box: Sequence[int], largest: int = 112
) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
    """Return a small copy of the part of a picture around a box, and the box in its pixels.

    Args:
        picture: What ``read_picture`` returns.
        box: Left, top, right, bottom.
        largest: The longest side of the copy in pixels.
    """
    left, top, right, bottom = box
    margin = max(right - left, bottom - top) // 3 + 1
    x, y = max(0, left - margin), max(0, top - margin)
    part = Image.fromarray(picture[y : bottom + margin, x : right + margin])
    width, height = part.size
    part.thumbnail((largest, largest))
    across, down = part.width / width, part.height / height
    place = ((left - x) * across, (top - y) * down, (right - x) * across, (bottom - y) * down)
    return np.asarray(part), place
