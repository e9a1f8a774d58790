"""Pictures: list the files, and read the pixels of any page, format and mode within bounds."""

import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from mnist_lightning.errors import InputError, needs, printable
from mnist_lightning.pictures.pdf import drawn_pages

if TYPE_CHECKING:  # torch imports slowly, and only tensors need it
    from torch import Tensor

Pixels = NDArray[np.uint8]
Picture: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor"

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF")  # that Pillow reads
ALL_FORMATS = "PNG, JPEG, BMP, GIF, TIFF, WebP, HEIC, AVIF or PDF"
FIRST_ONLY = ("MPO", "HEIF")  # formats whose further pictures show the same: a burst, a depth map
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".heic", ".heif", ".avif", ".pdf"),
)
PICTURES, FOLDERS = "pictures", "folders"  # of what is in a folder
LEFT_OUT = OTHERS, HIDDEN, LINKED = "no pictures by their ending", "hidden", "linked folders"
SHOWN = 5  # names of files that were left out
MAX_PAGES = 1000  # of a file
HEAD = 64  # bytes at a file's start that say what it is
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


class PictureFiles(NamedTuple):
    """What ``picture_files`` found."""

    files: list[str]
    left_out: list[str]  # for each folder with other files a line that names them, and why


def picture_files(paths: Sequence[str]) -> PictureFiles:
    """List the pictures that files and folders stand for.

    A file stands for itself, even if it does not exist: reading it will report that. A folder
    stands for the pictures in it and in its subfolders, chosen by suffix and sorted by name,
    without hidden ones and without linked folders.

    Raises:
        InputError: If a folder has no picture, or cannot be read.
    """
    files, left_out = [], []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        places = defaultdict(list)
        for folder, folders, names in os.walk(path, onerror=_refuse):
            for name in [*folders, *names]:
                place = os.path.join(folder, name)
                places[_kind(place)].append(place)
            folders[:] = [name for name in folders if not name.startswith(".")]
        if not places[PICTURES]:
            suffixes = ", ".join(SUFFIXES)
            raise InputError(f"no picture in {path}: none of its files ends in {suffixes}")
        files += sorted(places[PICTURES])
        parts = [_named(path, places[kind], kind) for kind in LEFT_OUT if kind in places]
        if parts:
            left_out.append(f"Left out of {printable(path)}: {'; '.join(parts)}")
    return PictureFiles(files, left_out)


def _kind(place: str) -> str:
    """Return what a file or folder in a folder counts as."""
    name = os.path.basename(place)
    if name.startswith("."):
        return HIDDEN
    if os.path.isdir(place):
        return LINKED if os.path.islink(place) else FOLDERS
    return PICTURES if name.lower().endswith(SUFFIXES) else OTHERS


def _named(folder: str, places: list[str], why: str) -> str:
    """Return the first names of files that were left out, and the reason."""
    names = [printable(os.path.relpath(place, folder)) for place in sorted(places)]
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} ({why})"


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def read_picture(source: Picture, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return the first page that ``read_pages`` yields.

    Raises:
        InputError: If it cannot be read.
    """
    page = next(read_pages(source, max_pixels))
    if isinstance(page, InputError):
        raise page
    return page


def read_pages(source: Picture, max_pixels: int = MAX_PIXELS) -> Iterator[Pixels | InputError]:
    """Read the pages of a TIFF or PDF or the frames of an animation; other pictures have one page.

    Each is upright, as its EXIF orientation says. More than 8 bits per pixel are reduced to 256
    grey levels from the darkest pixel to the lightest. The low contrast of an empty page is not
    stretched. An MPO and a HEIC file count as their first picture.

    Args:
        source: One of
            a PNG, JPEG, BMP, GIF, TIFF, WebP, HEIC, AVIF or PDF file of any mode;
            the bytes of one, or a file that is open in binary mode;
            a PIL image, of which the current frame is read;
            an array, grey ``(H, W)``, grey with alpha ``(H, W, 2)``, RGB ``(H, W, 3)`` or RGBA
            ``(H, W, 4)``;
            a tensor ``(H, W)`` or ``(C, H, W)`` of the same channels.
            Arrays and tensors are uint8, or floats in [0, 1].
        max_pixels: The largest width times height of a page of a file.

    Yields:
        Of each page grey ``(H, W)``, RGB ``(H, W, 3)``, or with transparency RGBA ``(H, W, 4)``.
        For one that is missing, damaged, of another format, or too large, the reason, without the
        file's name. At most 1,000 pages are read.
    """
    try:
        for number, page in enumerate(_pages(source, max_pixels)):
            if number == MAX_PAGES:
                raise InputError(f"more than {MAX_PAGES:,} pages: the following ones are not read")
            yield page
    except Exception as error:
        yield _reason(error, max_pixels)


def _pages(source: Picture, max_pixels: int) -> Iterator[Pixels | InputError]:
    if hasattr(source, "permute"):
        yield _of_tensor(source)  # type: ignore[arg-type]
    elif isinstance(source, np.ndarray):
        yield _of_array(source)
    elif isinstance(source, Image.Image):
        yield _pixels(source)
    else:
        with _opened(source) as file:
            head = file.read(HEAD)
            file.seek(0)
            if head.lstrip().startswith(b"%PDF-"):
                yield from _pdf_pages(file.read(), max_pixels)
            else:
                yield from _frames(file, head, max_pixels)


def _of_tensor(tensor: "Tensor") -> Pixels:
    """Return a tensor in the layout of an array."""
    is_grey_or_coloured = tensor.ndim == 2 or (tensor.ndim == 3 and len(tensor) in (1, 2, 3, 4))
    if not is_grey_or_coloured:
        raise InputError(
            f"expected a tensor (H, W) or (1 to 4, H, W), got {tuple(tensor.shape)}; "
            "pass a batch (N, C, H, W) as list(batch)"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    if tensor.ndim == 3:
        tensor = tensor[0] if len(tensor) == 1 else tensor.permute(1, 2, 0)
    return _of_array(tensor.detach().cpu().numpy())


def _of_array(array: NDArray[Any]) -> Pixels:
    """Return an array whose floats in [0, 1] became 0-255."""
    if not np.issubdtype(array.dtype, np.floating) or not array.size:
        return array
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= 1:
        raise InputError(f"expected floats in [0, 1], got {low:.3g} to {high:.3g}")
    return np.asarray((array * 255).round().astype(np.uint8))


def _pdf_pages(data: bytes, max_pixels: int) -> Iterator[Pixels | InputError]:
    with needs("scans", "a PDF"):
        import pypdfium2  # noqa: F401
    for height, width, content in drawn_pages(data, max_pixels):
        if height:
            yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
        else:
            yield InputError(f"cannot be drawn: {content.decode()}")


def _frames(file: BinaryIO, head: bytes, max_pixels: int) -> Iterator[Pixels | InputError]:
    with _image(file, head) as picture:
        for number in count(1):
            try:
                width, height = picture.size
                if width * height > max_pixels:
                    size = f"{width:,} x {height:,} pixels"
                    raise InputError(f"too large: {size}, more than {max_pixels:,}")
                with _without_stderr() if picture.format == "TIFF" else nullcontext():
                    picture.load()
                page: Pixels | InputError = _pixels(picture)
            except Exception as error:  # the next page may be whole
                page = _reason(error, max_pixels)
            yield page
            if picture.format in FIRST_ONLY:
                return
            try:
                picture.seek(number)
            except EOFError:
                return


def _image(file: BinaryIO, head: bytes) -> Image.Image:
    brands = head[8:] if head[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        if not features.check("avif"):
            raise InputError("AVIF, which this Pillow was built without: pip install -U pillow")
    elif re.search(rb"hei[cfmsx]|hev[cmsx]|mi[af]1|msf1", brands):
        with needs("scans", "a HEIC picture"):
            # Without `register_heif_opener`: Pillow stays as it was for others.
            from pillow_heif import HeifImageFile
        return HeifImageFile(file)  # type: ignore[no-untyped-call]
    return Image.open(_checked(file), formats=FORMATS)


def _reason(error: Exception, max_pixels: int) -> InputError:
    """Return the reason why a page cannot be read, in one line."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # Pillow checks the size too
        return InputError(f"too large: more than {max_pixels:,} pixels")
    if isinstance(error, UnidentifiedImageError):
        return InputError(f"not a {ALL_FORMATS} file")
    # Decoders raise errors of any type for damaged bytes.
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"cannot be read: {error.strerror}")
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"damaged: {reason[:200]}")


def _opened(source: str | Path | bytes | BinaryIO) -> BinaryIO:
    if isinstance(source, bytes):
        return BytesIO(source)
    if hasattr(source, "read"):
        return BytesIO(source.read())  # the given file stays open
    if not isinstance(source, str | Path):
        got = type(source).__name__
        raise InputError(f"expected a file, bytes, a PIL image, an array or a tensor, got {got}")
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
    picture = picture.copy()  # the next frame builds on this one as it was
    with suppress(Exception):  # damaged EXIF data do not spoil the picture
        ImageOps.exif_transpose(picture, in_place=True)
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
