"""Picture files of every format and mode, and those that are none, damaged or hostile."""

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mnist_lightning.data.pictures import MAX_PIXELS, SUFFIXES, picture_files, read_picture, surroundings
from mnist_lightning.data.preparation import find_digits
from mnist_lightning.errors import InputError

NO_PICTURE = "not a PNG, JPEG, BMP, GIF, TIFF or WebP picture"
FAITHFUL = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 97, "subsampling": 0}}
MODES = {
    "PNG": "1 L LA P RGB RGBA",
    "JPEG": "1 L RGB CMYK YCbCr",
    "BMP": "1 L P RGB",  # Pillow takes the alpha of a BMP for padding
    "GIF": "1 L P RGB RGBA",
    "TIFF": "1 L LA P RGB RGBA CMYK YCbCr",
    "WEBP": "L LA P RGB RGBA",
}
SAVED = [(format_, mode) for format_, modes in MODES.items() for mode in modes.split()]
FEW = np.array([[0, 0, 0], [255, 255, 255], [200, 30, 40], [20, 80, 220], [250, 240, 10], [128, 128, 128]], np.uint8)


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings(action="error"):
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file name; readers must not go by the suffix."""
    return tmp_path / "picture"


def in_blocks(values: np.ndarray, shape: tuple[int, int] = (3, 4)) -> np.ndarray:
    """Blocks of 8x8 of one value each, which JPEG keeps nearly and palettes exactly: (24, 32)."""
    chosen = values[np.random.default_rng(0).integers(0, len(values), shape)]
    return chosen.repeat(8, 0).repeat(8, 1)


def example(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture of a mode, and as RGBA what it shows."""
    grey, colour = in_blocks(np.array([0, 60, 130, 255], np.uint8)), in_blocks(FEW)
    alpha = in_blocks(np.array([255, 0], np.uint8))[::-1]
    opaque = np.full((24, 32), 255, np.uint8)
    if mode == "1":
        bits = grey > 100
        return Image.fromarray(bits), np.dstack([bits * np.uint8(255)] * 3 + [opaque])
    if mode == "L":
        return Image.fromarray(grey), np.dstack([grey] * 3 + [opaque])
    if mode == "LA":
        return Image.fromarray(np.dstack([grey, alpha])), np.dstack([grey] * 3 + [alpha])
    if mode == "P":
        index = in_blocks(np.arange(len(FEW), dtype=np.uint8))
        picture = Image.fromarray(index).copy()
        picture.putpalette(FEW.tobytes())
        return picture, np.dstack([FEW[index], opaque])
    if mode == "RGBA":
        return Image.fromarray(np.dstack([colour, alpha])), np.dstack([colour, alpha])
    if mode == "CMYK":
        cmyk = in_blocks(np.array([[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0], [10, 200, 90, 60]], np.uint8))
        ink = cmyk.astype(float)
        shown = ((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255).round().astype(np.uint8)
        return Image.frombytes("CMYK", (32, 24), cmyk.tobytes()), np.dstack([shown, opaque])
    return Image.fromarray(colour).convert(mode), np.dstack([colour, opaque])


def as_rgba(pixels: np.ndarray) -> np.ndarray:
    assert pixels.dtype == np.uint8
    if pixels.ndim == 2:
        pixels = np.dstack([pixels] * 3)
    assert pixels.shape[2] in (3, 4)
    return pixels if pixels.shape[2] == 4 else np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def content(picture: Image.Image, format_: str, **settings: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format_, **(FAITHFUL.get(format_, {}) | settings))
    return file.getvalue()


@pytest.mark.parametrize(("format_", "mode"), SAVED)
def test_every_format_and_mode_is_read(format_: str, mode: str, path: Path) -> None:
    picture, expected = example(mode)
    path.write_bytes(content(picture, format_))
    pixels = as_rgba(read_picture(path))
    np.testing.assert_array_equal(pixels[..., 3], expected[..., 3])
    seen = expected[..., 3] > 0
    tolerance = 6 if format_ == "JPEG" else 2 if mode in ("CMYK", "YCbCr") else 0
    np.testing.assert_allclose(pixels[seen, :3].astype(int), expected[seen, :3], atol=tolerance)


def test_grey_stays_grey(path: Path) -> None:
    for format_, mode in (("PNG", "1"), ("PNG", "L"), ("JPEG", "L"), ("TIFF", "L"), ("TIFF", "1")):
        path.write_bytes(content(example(mode)[0], format_))
        assert read_picture(path).shape == (24, 32)


@pytest.mark.parametrize(
    ("kind", "format_"),
    [("uint16", "PNG"), ("uint16", "TIFF"), (">u2", "TIFF"), ("int32", "TIFF"), ("float32", "TIFF")],
)
@pytest.mark.parametrize(
    ("low", "high", "span"),
    [
        (0, 60_000, 60_000),
        (1000, 1500, 500),
        (0, 255, 255),  # 8 bits in a file of 16
        (1000, 1100, 4095),  # an empty page of 12 bits
        (7, 7, 255),
    ],
)
def test_more_than_eight_bits_are_scaled_to_what_there_is(
    kind: str, format_: str, low: int, high: int, span: int, path: Path
) -> None:
    values = np.linspace(low, high, 20 * 30).reshape(20, 30).astype(kind)
    path.write_bytes(content(Image.fromarray(values), format_))
    expected = [[round((value - low) * 255 / span) for value in row] for row in values.astype(float).tolist()]
    np.testing.assert_allclose(read_picture(path).astype(int), expected, atol=1)


@pytest.mark.parametrize(("sign", "low"), [(1, 0), (-1, 0)])
def test_what_is_no_number_is_zero(sign: int, low: int, path: Path) -> None:
    path.write_bytes(content(Image.fromarray(np.array([[np.nan, 100], [sign * np.inf, 200]], np.float32)), "TIFF"))
    np.testing.assert_array_equal(read_picture(path), [[0, 128], [0, 255]])
    path.write_bytes(content(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))
    np.testing.assert_array_equal(read_picture(path), np.zeros((2, 2)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_colour_that_stands_for_nothing_is_transparent(mode: str, path: Path) -> None:
    picture, expected = example(mode)
    key = {"1": 0, "L": 0, "P": 0, "RGB": (0, 0, 0)}[mode]
    path.write_bytes(content(picture, "PNG", transparency=key))
    pixels = read_picture(path)
    np.testing.assert_array_equal(pixels[..., 3], np.where((expected[..., :3] == 0).all(axis=2), 0, 255))
    seen = pixels[..., 3] > 0
    np.testing.assert_array_equal(pixels[seen], expected[seen])


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "zstd"])
def test_compressed_tiff_is_read(compression: str, path: Path) -> None:
    picture, expected = example("RGB")
    path.write_bytes(content(picture, "TIFF", compression=compression))
    np.testing.assert_array_equal(read_picture(path), expected[..., :3])


def test_a_fax_is_read(path: Path) -> None:
    picture, expected = example("1")
    path.write_bytes(content(picture, "TIFF", compression="group4"))
    np.testing.assert_array_equal(read_picture(path), expected[..., 0])


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_read(format_: str, path: Path) -> None:
    frames = [Image.fromarray(np.full((24, 32), level, np.uint8)).convert("RGB") for level in (40, 140, 250)]
    path.write_bytes(content(frames[0], format_, save_all=True, append_images=frames[1:]))
    assert np.abs(as_rgba(read_picture(path)).astype(int) - [40, 40, 40, 255]).max() <= 2


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(format_: str, orientation: int, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = in_blocks(np.arange(0, 256, 15, dtype=np.uint8))
    path.write_bytes(content(Image.fromarray(stored), format_, exif=exif))
    pixels = as_rgba(read_picture(path))[..., 0]
    np.testing.assert_allclose(pixels.astype(int), UPRIGHT[orientation](stored), atol=4 if format_ == "JPEG" else 0)


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"MM\0*\xff\xff\xff\xff", b""])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_do_no_harm(format_: str, exif: bytes, path: Path) -> None:
    """PNG: 'not a TIFF file (header b'garbage' not valid)'."""
    stored = in_blocks(np.arange(0, 256, 15, dtype=np.uint8))
    path.write_bytes(content(Image.fromarray(stored), format_, exif=exif))
    np.testing.assert_allclose(as_rgba(read_picture(path))[..., 0].astype(int), stored, atol=4)


def png_claiming(width: int, height: int) -> bytes:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    chunks = [struct.pack(">I", len(data)) + name + data for name, data in [*parts, (b"IEND", b"")]]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk + struct.pack(">I", zlib.crc32(chunk[4:])) for chunk in chunks)


def claiming(format_: str, width: int, height: int) -> bytes:
    """A small file whose header promises a large picture."""
    if format_ == "PNG":
        return png_claiming(width, height)
    small = bytearray(content(Image.new("L", (8, 8)), format_))
    if format_ == "BMP":
        small[18:26] = struct.pack("<ii", width, height)
    elif format_ == "GIF":
        small[6:10] = struct.pack("<HH", width, height)
    elif format_ == "JPEG":
        start = small.index(b"\xff\xc0") + 5
        small[start : start + 4] = struct.pack(">HH", height, width)
    else:
        for tag, value in ((256, width), (257, height)):
            entry = next(i for i in range(len(small)) if small[i : i + 4] == struct.pack("<HH", tag, 4))
            small[entry + 8 : entry + 12] = struct.pack("<I", value)
    return bytes(small)


@pytest.mark.parametrize("format_", ["PNG", "BMP", "GIF", "JPEG", "TIFF"])
@pytest.mark.parametrize(("width", "height"), [(7072, 7072), (12_000, 12_000), (60_000, 60_000), (65_500, 1000)])
def test_a_huge_picture_is_refused_before_it_is_decoded(
    format_: str, width: int, height: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(picture: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    path.write_bytes(claiming(format_, width, height))
    with pytest.raises(InputError, match=r"^too large: .*more than 50,000,000") as error:
        read_picture(path)
    if width * height < 170_000_000:  # beyond, Pillow itself refuses it and we cannot know the size
        assert str(error.value) == f"too large: {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}"


def test_the_largest_picture_that_is_taken(path: Path) -> None:
    path.write_bytes(content(Image.new("1", (10_000, 5000)), "PNG"))
    assert read_picture(path).shape == (5000, 10_000)
    path.write_bytes(content(Image.new("1", (10_000, 5001)), "PNG"))
    with pytest.raises(InputError, match=re.escape("too large: 10,000 x 5,001 pixels, more than 50,000,000")):
        read_picture(path)


@pytest.mark.parametrize("format_", MODES)
@pytest.mark.parametrize("kept", [0, 1, 5, 20, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(format_: str, kept: float, path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    whole = content(noise, format_)
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=f"^({NO_PICTURE}|damaged: .+)$"):
        read_picture(path)


def test_what_is_no_picture_is_refused(path: Path) -> None:
    small = Image.new("RGB", (8, 8))
    others = [content(small, format_) for format_ in ("EPS", "PDF", "PPM", "ICO", "TGA", "JPEG2000")]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><text>7</text></svg>'
    for data in (*others, svg, b"digit,7\n", bytes(1000), np.random.default_rng(0).bytes(5000), b""):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"^{NO_PICTURE}$"):
            read_picture(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for path in (tmp_path, tmp_path / "pipe.png", tmp_path / "loop.png", "/dev/zero"):
        with pytest.raises(InputError, match=r"^not a file$"):
            read_picture(path)
    for name in (str(tmp_path / "missing.png"), "", "nul\0.png"):
        with pytest.raises(InputError, match=r"^no such file$"):
            read_picture(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused(path: Path) -> None:
    path.write_bytes(content(Image.new("L", (8, 8)), "PNG"))
    path.chmod(0)
    with pytest.raises(InputError, match=r"^cannot be read: Permission denied$"):
        read_picture(path)
    path.parent.chmod(0o300)
    try:
        with pytest.raises(InputError, match=r"^cannot read .*: Permission denied$"):
            picture_files([str(path.parent)])
    finally:
        path.parent.chmod(0o700)


def test_decoders_that_fail_in_any_way_refuse_the_picture(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(content(Image.new("L", (8, 8)), "PNG"))
    for error, reason in (
        (MemoryError(), "MemoryError"),
        (IndexError("list\nindex"), "list index"),
        (SyntaxError("broken PNG file (chunk b'x')"), "broken PNG file (chunk b'x')"),
        (ValueError("x" * 1000), "x" * 200),
    ):

        def load(picture: Image.Image, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
        with pytest.raises(InputError) as refusal:
            read_picture(path)
        assert str(refusal.value) == f"damaged: {reason}"


def test_an_error_of_the_disk_is_told_as_such(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(content(Image.new("L", (5, 5)), "PNG"))

    def load(picture: Image.Image) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(InputError, match=r"^cannot be read: Input/output error$"):
        read_picture(path)


@pytest.mark.parametrize(
    "name", [b"two\nlines.png", b"\xff\xfe.png", "Ziffer fünf 五.png".encode(), b"-x.png", b" .png"]
)
def test_any_name_is_read(name: bytes, tmp_path: Path) -> None:
    path = os.path.join(tmp_path, os.fsdecode(name))
    with open(path, "wb") as file:
        file.write(content(example("L")[0], "PNG"))
    assert picture_files([str(tmp_path)]) == [path]
    assert read_picture(path).shape == (24, 32)


MUTATIONS = 150


@pytest.mark.parametrize("format_", MODES)
def test_damaged_files_are_read_or_refused(format_: str, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(list(format_.encode()))
    for number in range(MUTATIONS):
        modes = MODES[format_].split()
        damaged = bytearray(content(example(modes[number % len(modes)])[0], format_))
        if number % 3 == 0:
            del damaged[rng.integers(0, len(damaged)) :]
        for _ in range(rng.integers(1, 6)):
            if damaged:
                place = rng.integers(0, min(len(damaged), rng.choice([60, 10_000])))
                damaged[place] = rng.choice([0, 1, 127, 128, 255, int(rng.integers(0, 256))])
        path.write_bytes(damaged)
        try:
            pixels = read_picture(path)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017  an answer as good as another
            continue
        assert pixels.dtype == np.uint8
        for digit in find_digits(pixels):
            assert digit.image.any()
    if format_ != "TIFF":  # libtiff writes to stderr by itself
        assert capfd.readouterr() == ("", "")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_means_its_pictures_in_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}{suffix}" for number, suffix in enumerate(SUFFIXES)))
    touch(tmp_path, "B.PNG", "a.JPeG", "sub/deep/1.png", "sub/2.png", "notes.txt", "png", "x.svg", "archive.png.gz")
    touch(tmp_path, ".hidden.png", ".thumbnails/3.png", "sub/.cache/4.png")
    (tmp_path / "folder.png").mkdir()
    names = [*(f"{number}{suffix}" for number, suffix in enumerate(SUFFIXES)), "B.PNG", "a.JPeG"]
    expected = [str(tmp_path / name) for name in (*names, "sub/2.png", "sub/deep/1.png")]
    assert picture_files([str(tmp_path)]) == expected


def test_files_and_folders_keep_the_order_they_are_given_in(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/1.png", "a.png", "z")
    given = [str(tmp_path / name) for name in ("z", "b", "missing.png", "a.png", "a.png")]
    names = ("z", "b/1.png", "b/2.png", "missing.png", "a.png", "a.png")
    assert picture_files(given) == [str(tmp_path / name) for name in names]
    assert picture_files([]) == []


def test_links_are_followed_to_files_only(tmp_path: Path) -> None:
    touch(tmp_path, "in/1.png", "out/2.png")
    (tmp_path / "in/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/out").symlink_to(tmp_path / "out")
    (tmp_path / "in/3.png").symlink_to(tmp_path / "out/2.png")
    assert picture_files([str(tmp_path / "in")]) == [str(tmp_path / "in" / name) for name in ("1.png", "3.png")]
    # A linked folder that is named itself is meant.
    assert picture_files([str(tmp_path / "in/out")]) == [str(tmp_path / "in/out/2.png")]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden.png")
    with pytest.raises(InputError) as error:
        picture_files([str(tmp_path)])
    assert str(error.value) == (
        f"no picture in {tmp_path}: none of its files ends in .png, .jpg, .jpeg, .bmp, .gif, .tif, .tiff, .webp"
    )


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_surroundings_are_the_box_and_a_third_more(channels: tuple[int, ...]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 90, *channels), np.uint8)
    part, place = surroundings(picture, (20, 30, 50, 60))
    np.testing.assert_array_equal(part, picture[19:71, 9:61])
    assert place == (11, 11, 41, 41)
    part, place = surroundings(picture, (0, 0, 90, 80))
    np.testing.assert_array_equal(part, picture)
    assert place == (0, 0, 90, 80)


def test_surroundings_are_small() -> None:
    picture = np.full((3000, 2000), 255, np.uint8)
    picture[600:1200, 400:700] = 0
    part, place = surroundings(picture, (400, 600, 700, 1200))
    assert max(part.shape) == 112
    left, top, right, bottom = (round(value) for value in place)
    assert part[top + 1 : bottom - 1, left + 1 : right - 1].max() <= 5
    assert part[: top - 1].min() == part[bottom + 1 :].min() == 255


def test_reading_loads_no_training_code() -> None:
    code = "import sys, mnist_lightning.data.pictures; print('cv2' in sys.modules, 'matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split()[1] == "False"


@pytest.mark.parametrize(
    ("depth", "low", "noise"), [(np.uint16, 60_000, 3), (np.float32, 0.8, 1e-4), (np.float32, 200, 0.2)]
)
def test_an_empty_page_of_many_grey_levels_stays_empty(depth: type, low: float, noise: float, path: Path) -> None:
    page = low + noise * np.random.default_rng(0).standard_normal((300, 400))
    path = path.with_suffix(".tiff")
    Image.fromarray(page.astype(depth)).save(path)
    assert read_picture(path).max() < 16
    assert find_digits(read_picture(path)) == []
