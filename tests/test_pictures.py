"""Picture files of every format, damaged and hostile ones, and the digits read in them."""

import base64
import copy
import csv
import io
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import files_in
from hypothesis import given
from hypothesis import strategies as st
from painting import content, enlarged, row
from PIL import Image, ImageFile
from sklearn.datasets import load_digits
from torch import nn

from mnist_lightning.errors import InputError
from mnist_lightning.pictures import marks
from mnist_lightning.pictures import read as reader
from mnist_lightning.pictures import recognize as module
from mnist_lightning.pictures.detector import prepared
from mnist_lightning.pictures.digits import Found, find_digits
from mnist_lightning.pictures.read import SUFFIXES, picture_files, read_picture
from mnist_lightning.pictures.recognize import (
    Digit,
    Page,
    Reading,
    readings,
    recognize,
    recognize_files,
)
from mnist_lightning.pictures.write import COLUMNS, write_digits

IMAGE = np.zeros((28, 28), np.uint8)
NOT_A_PICTURE = "not a PNG, JPEG, BMP, GIF, TIFF, WebP, HEIC, AVIF or PDF file"
MODES = {
    "PNG": "1 L LA P RGB RGBA",
    "JPEG": "1 L RGB CMYK YCbCr",
    "BMP": "1 L P RGB",  # Pillow takes the alpha of a BMP for padding
    "GIF": "1 L P RGB RGBA",
    "TIFF": "1 L LA P RGB RGBA CMYK YCbCr",
    "WEBP": "L LA P RGB RGBA",
}
SAVED = [(kind, mode) for kind, modes in MODES.items() for mode in modes.split()]
COLOURS = np.array(
    [[0, 0, 0], [255, 255, 255], [200, 30, 40], [20, 80, 220], [250, 240, 10]], np.uint8
)


def read(data: bytes, path: Path = Path("picture")) -> np.ndarray:
    """Read a file without a suffix: the content decides."""
    path.write_bytes(data)
    return read_picture(path)


def blocks(values: np.ndarray) -> np.ndarray:
    """Blocks of 8x8 of one value each, which JPEG nearly keeps: (24, 32)."""
    return (
        values[np.random.default_rng(0).integers(0, len(values), (3, 4))].repeat(8, 0).repeat(8, 1)
    )


def example(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture of a mode, and what it shows as RGBA."""
    rgba = np.dstack([blocks(COLOURS), np.full((24, 32), 255, np.uint8)])
    if mode in ("LA", "RGBA"):
        rgba[..., 3] = blocks(np.array([255, 0], np.uint8))[::-1]
    if mode in ("1", "L", "LA"):
        rgba[..., :3] = blocks(np.array([0, 255] if mode == "1" else [0, 60, 130, 255], np.uint8))[
            ..., None
        ]
    picture = Image.fromarray(rgba)
    return picture.convert("RGB").convert(mode) if mode in (
        "CMYK",
        "YCbCr",
        "P",
    ) else picture.convert(mode), rgba


@pytest.mark.parametrize(("kind", "mode"), SAVED)
def test_formats_and_modes(kind: str, mode: str, folder: Path) -> None:
    picture, expected = example(mode)
    pixels = read(content(picture, kind))
    assert (pixels.ndim == 2) == (mode in ("1", "L") and kind != "WEBP") or kind in ("BMP", "GIF")
    rgba = np.asarray(Image.fromarray(pixels).convert("RGBA")).astype(int)
    np.testing.assert_array_equal(rgba[..., 3], expected[..., 3])
    tolerance = 6 if kind == "JPEG" else 2 if mode in ("CMYK", "YCbCr") else 0
    if mode != "P":  # its palette is dithered
        seen = expected[..., 3] > 0
        np.testing.assert_allclose(rgba[seen], expected[seen], atol=tolerance)
    else:
        np.testing.assert_array_equal(rgba, np.asarray(picture.convert("RGBA")))


@pytest.mark.parametrize("compression", ["packbits", "tiff_lzw", "tiff_adobe_deflate", "group4"])
def test_compressed_tiff(compression: str, folder: Path) -> None:
    picture, expected = example("1" if compression == "group4" else "L")
    np.testing.assert_array_equal(
        read(content(picture, "TIFF", compression=compression)), expected[..., 0]
    )


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("uint16", "PNG"),
        ("uint16", "TIFF"),
        (">u2", "TIFF"),
        ("int32", "TIFF"),
        ("float32", "TIFF"),
    ],
)
def test_more_than_eight_bits(dtype: str, kind: str, folder: Path) -> None:
    for low, high, span in (
        (0, 60_000, 60_000),
        (1000, 1500, 500),
        (0, 255, 255),
        (1000, 1100, 4095),
        (7, 7, 255),
    ):
        values = np.linspace(low, high, 600).reshape(20, 30).astype(dtype)
        expected = (values.astype(float) - low) * 255 / span
        np.testing.assert_allclose(read(content(values, kind)), expected, atol=1)


def test_not_finite(folder: Path) -> None:
    values = np.array([[np.nan, 100], [np.inf, 200]], np.float32)
    np.testing.assert_array_equal(read(content(values, "TIFF")), [[0, 128], [0, 255]])


def test_transparent_colour(folder: Path) -> None:
    pixels = read(content(example("L")[0], transparency=0))
    np.testing.assert_array_equal(pixels[..., 3], np.where(pixels[..., 0] == 0, 0, 255))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_first_frame(kind: str, folder: Path) -> None:
    first, *others = (Image.new("RGB", (32, 24), (level,) * 3) for level in (40, 140, 250))
    pixels = read(content(first, kind, save_all=True, append_images=others))
    assert np.abs(pixels[..., :3].astype(int) - 40).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, folder: Path) -> None:
    stored = blocks(np.arange(0, 256, 15, dtype=np.uint8))
    turned = [
        stored,
        stored[:, ::-1],
        stored[::-1, ::-1],
        stored[::-1],
        stored.T,
        np.rot90(stored, -1),
    ]
    for orientation, expected in enumerate([*turned, stored[::-1, ::-1].T, np.rot90(stored)], 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = np.atleast_3d(read(content(stored, kind, exif=exif)))[..., 0]
        np.testing.assert_allclose(pixels.astype(int), expected, atol=4 if kind == "JPEG" else 0)
    for exif in (
        ()
        if kind == "TIFF"
        else (b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"MM\0*\xff\xff\xff\xff")
    ):
        pixels = np.atleast_3d(read(content(stored, kind, exif=exif)))[..., 0]
        np.testing.assert_allclose(pixels.astype(int), stored, atol=4)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims a large picture."""
    small = bytearray(content(Image.new("L", (8, 8)), kind))
    if kind == "PNG":
        small[16:24] = struct.pack(">II", width, height)
        small[29:33] = struct.pack(">I", zlib.crc32(small[12:29]))
    elif kind == "GIF":
        small[6:10] = struct.pack("<HH", width, height)
    else:
        start = small.index(b"\xff\xc0") + 5
        small[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(small)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
@pytest.mark.parametrize(("width", "height"), [(7072, 7072), (60_000, 60_000), (65_500, 1000)])
def test_too_large(
    kind: str, width: int, height: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ImageFile.ImageFile, "load")  # it is not decoded
    size = (
        f": {width:,} x {height:,} pixels," if width * height < 170_000_000 else ":"
    )  # Pillow refuses larger ones
    with pytest.raises(InputError, match=rf"^too large{size} more than 50,000,000( pixels)?$"):
        read(claiming(kind, width, height))


def test_largest(folder: Path) -> None:
    assert read(content(Image.new("1", (10_000, 5000)))).shape == (5000, 10_000)


def segment(marker: int, body: bytes) -> bytes:
    """A part of a JPEG: its marker, its length, and what it holds."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


NOISE = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
SCAN = b"\xff\xda\0\x08\1\1\0\1\x3f\x10"  # the start of a scan of a grey progressive JPEG
MANY = SCAN * 200
VIDEO = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes() + MANY
PLAIN, PROGRESSIVE = content(NOISE, "JPEG"), content(NOISE, "JPEG", progressive=True)
RESTARTED = content(NOISE, "JPEG", restart_marker_blocks=1)
TWO = content(
    NOISE,
    "MPO",
    save_all=True,
    append_images=[Image.new("L", (8, 8))],
    progressive=True,
    quality=97,
)


def scanned(jpeg: bytes, scans: int) -> bytes:
    """A progressive JPEG, or an MPO, whose first picture has so many scans."""
    end = jpeg.index(b"\xff\xd9")
    return jpeg[:end] + SCAN * (scans - jpeg[:end].count(b"\xff\xda")) + jpeg[end:]


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        PROGRESSIVE,
        PLAIN[:2] + segment(0xE1, b"Exif\0\0" + PLAIN + MANY) + PLAIN[2:],  # a thumbnail
        PLAIN[:2] + segment(0xFE, MANY * 32) * 5 + PLAIN[2:],  # 320 kB of comments
        PLAIN.replace(b"\xff\xda", b"\xff\xff\xff\xda", 1),  # fill bytes
        RESTARTED,
        TWO,
    ],
)
def test_what_follows_a_jpeg(data: bytes, folder: Path) -> None:
    assert RESTARTED.count(b"\xff\xd0") >= 3 <= PLAIN.count(b"\xff\x00")
    expected = read(PLAIN)
    for trailer in (b"", b"\xff", MANY, VIDEO):
        np.testing.assert_array_equal(read(data + trailer), expected)


def test_a_video_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            sizes.append(len(found))
            return found

    sizes: list[int] = []
    monkeypatch.setattr(reader, "BytesIO", Counting)
    np.testing.assert_array_equal(read_picture(PLAIN + VIDEO), read_picture(PLAIN))
    assert sum(sizes) < 300_000


def tiff(jpeg: bytes) -> bytes:
    """A TIFF that holds a JPEG of the size of NOISE."""
    values = {256: 50, 257: 40, 258: 8, 259: 7, 262: 1, 273: 8, 277: 1, 278: 40, 279: len(jpeg)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(jpeg))
        + jpeg
        + struct.pack("<H", 9)
        + b"".join(entries)
        + bytes(4)
    )


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 65536])
def test_scans(block: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BLOCK", block, raising=False)
    for data in (
        scanned(PROGRESSIVE, 101),
        scanned(TWO, 101),
        PLAIN[:2] + segment(0xE1, b"Exif\0\0" + PLAIN) + scanned(PROGRESSIVE, 101)[2:],
        PROGRESSIVE[:-2] + MANY,  # truncated
        PROGRESSIVE[:-2] + b"\xff\xfe\0\0" + MANY,  # a length of 0
        PROGRESSIVE[:-2]
        + b"\xff\x02\xff\xff"
        + MANY,  # FF 02 has no length: what seems one skips nothing
    ):
        with pytest.raises(InputError, match=r"^damaged: more than 100 scans$"):
            read(data)
    with pytest.raises(InputError, match=r"^damaged: more than 10,000 segments$"):
        read(PLAIN[:2] + segment(0xFE, b"") * 10_000 + PLAIN[2:])
    for data in (scanned(PROGRESSIVE, 100), scanned(TWO, 100), tiff(scanned(PROGRESSIVE, 90))):
        assert read(data + MANY).shape == (40, 50)
    with pytest.raises(InputError, match=r"^damaged: decoder error"):  # libtiff has the same bound
        read(tiff(scanned(PROGRESSIVE, 110)))


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("kept", [0, 1, 20, 0.3, 0.6, 0.95])
def test_truncated(kind: str, kept: float, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = content(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8), kind)
    with pytest.raises(InputError, match=f"^({NOT_A_PICTURE}|damaged: .+)$"):
        read(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert capfd.readouterr() == ("", "")


def test_other_files(folder: Path) -> None:
    others = [
        content(Image.new("RGB", (8, 8)), kind) for kind in ("EPS", "PPM", "ICO", "TGA", "JPEG2000")
    ]
    for data in (*others, b"<svg/>", bytes(1000), b""):
        with pytest.raises(InputError, match=f"^{NOT_A_PICTURE}$"):
            read(data)
    for name in ("missing.png", "", "nul\0.png"):
        with pytest.raises(InputError, match=r"^no such file$"):
            read_picture(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_and_loops(folder: Path) -> None:
    os.mkfifo("pipe.png")
    Path("loop.png").symlink_to("loop.png")
    for path in (folder, "pipe.png", "loop.png", "/dev/zero"):
        with pytest.raises(InputError, match=r"^not a file$"):
            read_picture(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(folder: Path) -> None:
    Path("a.png").touch(0)
    with pytest.raises(InputError, match=r"^cannot be read: Permission denied$"):
        read_picture("a.png")
    Path("closed").mkdir(0o300)
    with pytest.raises(InputError, match=r"^cannot read closed: Permission denied$"):
        picture_files(["closed"])


def test_errors_of_decoders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, reason in (
        (MemoryError(), "damaged: MemoryError"),
        (IndexError("list\nindex"), "damaged: list index"),
        (ValueError("x" * 1000), f"damaged: {'x' * 200}"),
        (OSError(5, "Input/output error"), "cannot be read: Input/output error"),
    ):
        monkeypatch.setattr(
            ImageFile.ImageFile, "load", lambda picture, error=error: (_ for _ in ()).throw(error)
        )
        with pytest.raises(InputError, match=f"^{reason}$"):
            read(content(np.zeros((8, 8), np.uint8), "BMP"))


@given(
    saved=st.sampled_from(SAVED),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5),
    length=st.integers(0, 5000),
)
def test_damaged_files(
    saved: tuple[str, str],
    changes: list,
    length: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = bytearray(content(example(saved[1])[0], saved[0]))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        picture = read(bytes(data[: length + 20]), tmp_path / "picture")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert picture.dtype == np.uint8
    assert all(found.pixels.any() for found in find_digits(picture))
    assert capfd.readouterr() == ("", "")


def test_picture_files(folder: Path) -> None:
    names = [
        *(f"in/{number:02}{suffix}" for number, suffix in enumerate(SUFFIXES)),
        "in/B.PNG",
        "in/a.JPeG",
    ]
    names += ["in/sub/2.png", "in/sub/deep/1.png"]
    for name in (
        *names,
        "in/notes.txt",
        "in/.hidden.png",
        "in/.cache/3.png",
        "out/4.png",
        "empty/x.svg",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    expected = [str(Path(name)) for name in names]
    listed = picture_files(["z", "in", "missing.png", "z"])
    assert listed.files == ["z", *expected, "missing.png", "z"]
    with pytest.raises(InputError) as error:
        picture_files(["empty"])
    assert (
        str(error.value) == f"no picture in empty: none of its files ends in {', '.join(SUFFIXES)}"
    )
    Path("in/out").symlink_to(folder / "out")  # a linked folder counts only if it is named
    assert picture_files(["in"]).files == expected
    assert picture_files(["in/out"]) == ([str(Path("in/out/4.png"))], [])


# Recognition


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Nearest class means of prepared digits, as one linear layer: it reads nine of ten of them."""
    digits = load_digits()
    found = [
        find_digits(np.pad((image * 15.9).astype(np.uint8), 2))[:1] for image in digits.images[:600]
    ]
    images = np.array([each[0].pixels.ravel() if each else np.zeros(784) for each in found]) / 255
    means = np.stack([images[digits.target[:600] == digit].mean(axis=0) for digit in range(10)])
    layer = nn.Linear(784, 10)
    layer.weight.data = torch.tensor(means, dtype=torch.float32)
    layer.bias.data = torch.tensor(-0.5 * (means**2).sum(axis=1), dtype=torch.float32)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), layer)


def save(digits: str, name: str | bytes) -> str:
    Path("in").mkdir(exist_ok=True)
    path = os.path.join("in", os.fsdecode(name))
    with open(path, "wb") as file:
        file.write(content(row(digits)))
    return path


def test_recognize_uci_digits(net: nn.Module) -> None:
    digits = load_digits()
    pictures = [enlarged(image, 9) for image in digits.images[600:800]]
    answers = recognize([np.pad(picture, 20, constant_values=255) for picture in pictures], net)
    read = [[digit.digit for digit in found] for found in answers]
    assert (
        sum(each == [label] for each, label in zip(read, digits.target[600:800], strict=True)) > 160
    )


def test_recognize(net: nn.Module, folder: Path) -> None:
    path = save("314", "pi.png")
    found = recognize(path, net)
    images = find_digits(row("314"))
    assert len(found) == 3
    for digit, image in zip(found, images, strict=True):
        with torch.no_grad():
            expected = (
                copy.deepcopy(net)
                .eval()(torch.from_numpy(image.pixels)[None, None] / 255)
                .softmax(1)[0]
            )
        both = expected.numpy() + image.probabilities[:10]
        assert (digit.digit, digit.box) == (int(both.argmax()), image.box)
        np.testing.assert_allclose(digit.probabilities, expected, rtol=1e-4)
        assert digit.confidence == digit.probabilities[digit.digit]
        np.testing.assert_array_equal(digit.pixels, image.pixels)
    lists = recognize([row("27"), Path(path), np.full((50, 50), 255, np.uint8)], net)
    assert [len(each) for each in lists] == [2, 3, 0]
    assert recognize([], net) == recognize(np.zeros((9, 9), np.uint8), net) == []
    with pytest.raises(InputError, match=r"^cannot read missing\.png: no such file$"):
        recognize([row("7"), "missing.png"], net)


def test_network_is_left_as_it_was(net: nn.Module) -> None:
    assert net.training
    net[1].eval()
    state = torch.random.get_rng_state()
    bare = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))  # without weights
    answers = [
        recognize(row("5"), network)[0] for network in (net, copy.deepcopy(net).bfloat16(), bare)
    ]
    assert [layer.training for layer in net] == [True, False, True]
    net[1].train()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.is_grad_enabled()
    np.testing.assert_allclose(answers[1].probabilities, answers[0].probabilities, atol=0.1)
    assert {answer.probabilities.dtype for answer in answers} == {np.dtype(np.float32)}


def test_threads(net: nn.Module, folder: Path) -> None:
    files = [save(str(number), f"{number}.png") for number in range(4)]
    Path("in/0.tif").write_bytes(content(row("0"), "TIFF", compression="tiff_lzw"))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda file: recognize(file, net.eval()), [*files, "in/0.tif"] * 8))
    net.train()
    for answer, file in zip(answers, [*files, "in/0.tif"] * 8, strict=True):
        assert [digit.box for digit in answer] == [
            found.box for found in find_digits(read_picture(file))
        ]
    assert threading.active_count() < 20


@pytest.mark.parametrize("processes", [False, True])
def test_recognize_files(
    processes: bool, net: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [save(str(number), f"{number:02}.png") for number in range(23)]
    for file in files[10:12]:
        Path(file).write_bytes(b"no picture")  # a batch without any digit
    Path(files[20]).write_bytes(content(np.full((50, 50), 255, np.uint8)))
    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "COPIES_AT_ONCE", 3)
    monkeypatch.setattr(module, "WORTH_A_PROCESS", 5 if processes else 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    threads, state = cv2.getNumThreads(), torch.random.get_rng_state()
    answers = list(recognize_files(net, files, copies=4))
    assert cv2.getNumThreads() == threads
    assert torch.equal(state, torch.random.get_rng_state())
    reasons = dict.fromkeys(files[10:12], NOT_A_PICTURE) | {files[20]: "no digit found"}
    for file, answer in zip(files, answers, strict=True):
        assert answer[:3] == (file, 1, 1)
        assert (answer.copy is not None) == (file in files[:4])
        assert answer.error == reasons.get(file, "")
        if not answer.error:
            boxes = [digit.box for digit in recognize(file, net)]
            assert [digit.box for digit in answer.reading] == boxes
    stream = recognize_files(net, files)
    assert next(stream).file == files[0]
    stream.close()  # early


def test_a_picture_is_read_once(
    net: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("read_pages", "find_digits"):
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, c=call: calls.append(c) or c(*given))
    monkeypatch.setattr(marks, "prepared", lambda ink: calls.append("prepared") or prepared(ink))
    write_digits(Path(), [save("7", "a.png")], net)
    assert calls == [reader.read_pages, find_digits, "prepared"]


def test_write_digits(net: nn.Module, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [save("7", "a.png"), save("314", "b.png"), "missing.png"]
    done = write_digits(Path(), files, net)
    first, second = (recognize(file, net) for file in files[:2])
    digits = [*first, *second]
    page = Path("pictures/index.html")
    doubtful = sum(not digit.certain for digit in digits)
    assert done == (3, 4, doubtful, 1, [Path("pictures.csv"), Path("pictures"), page])
    names = {"001_a.jpg", "002_b.jpg", "index.html"}
    assert files_in(Path("pictures")) == names
    least = [f"{min(digit.confidence for digit in reading):>10.1%}" for reading in (first, second)]
    assert capsys.readouterr().out.splitlines() == [
        "file         page  line  confidence  digits",
        f"in/a.png        1     1  {least[0]}  {first.text}",
        f"in/b.png        1     1  {least[1]}  {second.text}",
        "missing.png     1     -           -  no such file",
    ]
    with open("pictures.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS
    assert rows.pop() == ["missing.png", "1", *[""] * 22, "no such file"]
    expected = [(files[0], first, first[0]), *((files[1], second, digit) for digit in second)]
    for cells, (name, reading, digit) in zip(rows, expected, strict=True):
        runner_up = max(set(range(10)) - {digit.digit}, key=digit.probabilities.__getitem__)
        answer = str(digit.digit), str(int(digit.certain)), str(runner_up)
        place = name, "1", "1", str(digit.number), reading.text
        assert (*cells[:7], cells[8]) == (*place, *answer)
        assert tuple(map(int, cells[10:14])) == digit.box
        shares = cells[14:24]
        np.testing.assert_allclose(np.array(shares, np.float32), digit.probabilities, rtol=1e-4)
        assert (cells[7], cells[9], cells[24]) == (shares[digit.digit], shares[runner_up], "")
    html = page.read_text()
    images = [base64.b64decode(png) for png in re.findall(r"image/png;base64,([^\"]*)", html)]
    for image, digit in zip(images, digits, strict=True):
        np.testing.assert_array_equal(Image.open(io.BytesIO(image)), digit.pixels)
    assert re.findall(r"<b>(.*?)</b>", html) == [str(digit) for digit in digits]
    pictures = [base64.b64decode(jpeg) for jpeg in re.findall(r"image/jpeg;base64,([^\"]*)", html)]
    assert pictures == [Path("pictures", name).read_bytes() for name in ("001_a.jpg", "002_b.jpg")]
    with Image.open("pictures/001_a.jpg") as picture:  # a box around the digit, blue or orange
        assert max(picture.size) >= 400
        colours = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
        assert len(set(colours.tobytes())) > 2
    assert write_digits(Path(), ["missing.png"], net) == (1, 0, 0, 1, [Path("pictures.csv")])
    assert files_in(folder) == {*files[:2], "pictures.csv"}  # nothing of the earlier ones


@pytest.mark.parametrize(
    ("confidence", "second", "size", "certain"),
    [
        (0.99, 7, 1, True),
        (0.97, 7, 1, False),
        (0.99, 10, 1, False),
        (0.99, 1, 1, False),
        (0.99, 7, 0.6, False),
        (0.99, 7, 1.4, False),
    ],
)
def test_doubt(confidence: float, second: int, size: float, certain: bool) -> None:
    """The network is unsure, the detector sees no digit or another one, or the size is odd."""
    row = np.full((1, 10), (1 - confidence) / 9, np.float32)
    row[0, 7] = confidence
    opinion = np.zeros(11, np.float32)
    opinion[second] = 0.6
    found = Found(IMAGE, opinion, (0, 0, 1, 1), 1, 1, size, True)
    (reading,) = readings([[Page(1, [found])]], row)
    assert reading.text == ("7" if certain else "7?")


@pytest.mark.parametrize(("confidence", "opinion", "text"), [(0.9, 0.7, "7?"), (0.6, 0.7, "1?")])
def test_the_surer_of_two_is_believed(confidence: float, opinion: float, text: str) -> None:
    """The network says 7, the detector 1; the table has the network's probabilities."""
    row = np.full((1, 10), (1 - confidence) / 9, np.float32)
    row[0, 7] = confidence
    second = np.eye(11, dtype=np.float32)[1] * opinion
    found = Found(IMAGE, second, (0, 0, 1, 1), 1, 1, 1, True)
    (reading,) = readings([[Page(1, [found])]], row)
    assert reading.text == text
    assert reading[0].confidence == row[0, int(text[0])]
    np.testing.assert_array_equal(reading[0].probabilities, row[0])


def test_text() -> None:
    places = [(4, True, 1, 1), (2, False, 1, 1), (1, True, 1, 2), (8, True, 2, 1)]
    digits = [
        Digit(digit, 1.0, np.zeros(10, np.float32), (0, 0, 1, 1), IMAGE, *place)
        for digit, *place in places
    ]
    assert Reading(digits).text == "42? 1\n8"


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_nothing_half_written(
    error: BaseException, net: nn.Module, folder: Path, monkeypatch
) -> None:
    files = [save("7", f"{number}.png") for number in range(5)]
    Path("pictures.csv").write_text("old")
    calls = iter(range(99))

    def find(picture: np.ndarray, single: bool) -> list:
        if next(calls) == 3:
            raise error
        return find_digits(picture)

    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "find_digits", find)
    with pytest.raises(type(error)):
        write_digits(Path(), files, net)
    assert Path("pictures.csv").read_text() == "old"
    assert files_in(folder) == {*files, "pictures.csv"}


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_strange_names(net: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        b"\xff\xfe.png",
        b'a,"b".png',
        b"esc\x1b[31m.png",
        b"two\nlines.png",
        "fünf 五.png".encode(),
    ]
    files = sorted(save("5", name) for name in names)
    assert picture_files(["in"]).files == files
    for encoding, five in (("utf-8", "fünf 五"), ("ascii", r"f\xfcnf \u4e94")):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", terminal)
        write_digits(Path(), files, net)
        with open("pictures.csv", newline="", encoding="utf-8", errors="surrogateescape") as table:
            assert [row[0] for row in csv.reader(table)][1:] == files
        terminal.flush()
        lines = terminal.buffer.getvalue().decode().split("\n")
        assert len(lines) == 7
        for shown in (
            r"in/two\nlines.png ",
            r"in/\udcff\udcfe.png ",
            r"in/esc\x1b[31m.png ",
            f"in/{five}.png ",
        ):
            assert sum(line.startswith(shown) for line in lines) == 1


def test_recognize_needs_neither_lightning_nor_matplotlib() -> None:
    code = "import sys, mnist_lightning.pictures.recognize; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {"lightning", "pytorch_lightning", "matplotlib"}.isdisjoint(loaded)
