"""HEIC, AVIF and PDF, files of many pages, pictures that are in memory, and what is left out."""

import csv
import io
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import damaged, files_in, refusal
from hypothesis import given
from hypothesis import strategies as st
from painting import content, overlap, row, written
from PIL import Image, features
from torch import nn

from mnist_lightning import load_run
from mnist_lightning.cli.main import main
from mnist_lightning.errors import InputError
from mnist_lightning.pictures import pdf
from mnist_lightning.pictures import read as reader
from mnist_lightning.pictures.digits import find_digits
from mnist_lightning.pictures.read import picture_files, read_pages, read_picture
from mnist_lightning.pictures.recognize import recognize
from mnist_lightning.pictures.write import write_digits

TEXTS = ["314", "27", "592"]
MANY = {"TIFF": "tif", "GIF": "gif", "PNG": "png", "WEBP": "webp", "AVIF": "avif"}


def pictures() -> list[Image.Image]:
    """The pages of the tests; new ones, since Pillow notes in them how they were saved."""
    pages = []
    for text in TEXTS:
        page = np.full((90, 240), 250, np.uint8)
        line = row(text)
        page[:, : line.shape[1]] = line
        pages.append(Image.fromarray(page))
    return pages


def paged(kind: str, **settings: Any) -> bytes:
    """A file with three pages or frames."""
    first, *others = pictures()
    return content(first, kind, save_all=True, append_images=others, **settings)


def heic(*images: Image.Image, **settings: Any) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    pages = heif.HeifFile()
    for image in images:
        pages.add_from_pillow(image.convert("RGB"))
    file = io.BytesIO()
    pages.save(file, quality=95, **settings)
    return file.getvalue()


def paged_pdf() -> bytes:
    pytest.importorskip("pypdfium2")
    return paged("PDF", resolution=100)


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
KINDS = [pytest.param(kind, marks=needs_avif if kind == "AVIF" else ()) for kind in MANY]


def close(page: object, expected: Image.Image) -> None:
    """A page shows a picture, but for what compression loses, and for its size."""
    assert isinstance(page, np.ndarray)
    seen = Image.fromarray(page).convert("L").resize(expected.size)
    difference = np.abs(np.asarray(seen, int) - np.asarray(expected, int))
    assert difference.mean() < 5


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A network that says what OpenCV's font looks like: it knows the digits by their images."""
    images, labels = [], []
    for digit in range(10):
        (found,) = find_digits(row(str(digit)))
        images.append(found.pixels.ravel() / 255)
        labels.append(digit)
    means = torch.tensor(np.stack(images), dtype=torch.float32)
    layer = nn.Linear(784, 10)
    layer.weight.data = means
    layer.bias.data = -0.5 * (means**2).sum(dim=1)
    return nn.Sequential(nn.Flatten(), layer)


def digits_of(reading: list) -> str:
    return "".join(str(digit.digit) for digit in reading)


def numbered(net: nn.Module, source: object) -> list[tuple[int, int]]:
    """The page and the digit of each digit that is read."""
    return [(digit.page, digit.digit) for digit in recognize(source, net)]


ALL = [(page, int(digit)) for page, text in enumerate(TEXTS, 1) for digit in text]


@pytest.mark.parametrize("kind", KINDS)
def test_pages(kind: str, net: nn.Module) -> None:
    data = paged(kind)
    for page, expected in zip(read_pages(data), pictures(), strict=True):
        close(page, expected)
    assert numbered(net, data) == ALL
    close(read_picture(data), pictures()[0])


def test_pdf(net: nn.Module) -> None:
    data = paged_pdf()
    for page, expected in zip(read_pages(data), pictures(), strict=True):
        assert np.abs(np.array(page.shape) - (180, 480, 3)).max() <= 1  # 200 dpi
        close(page, expected)
    reading = recognize(data, net)
    assert [(digit.page, digit.digit) for digit in reading] == ALL
    assert reading.text.replace("?", "").replace(" ", "") == "314\n\n27\n\n592"
    for digit, found in zip(reading, find_digits(np.asarray(pictures()[0]))):  # noqa: B905
        assert overlap(digit.box, tuple(2 * side for side in found.box)) > 0.9
    (large,) = read_pages(content(Image.new("L", (3000, 1000)), "PDF", resolution=10))
    assert large.shape == (1167, 3500, 3)
    for small in read_pages(data, 1000):
        assert str(small) == "cannot be drawn: 481 x 181 pixels, more than 1,000"


def test_text_and_gallery_of_pages(net: nn.Module) -> None:
    first, _ = written(["12", "34"])
    second = np.full_like(first, 255)
    third, _ = written(["56", "78"])
    others = [Image.fromarray(page) for page in (second, third)]
    reading = recognize(content(first, "TIFF", save_all=True, append_images=others), net)
    assert {digit.page for digit in reading} == {1, 3}
    lines = reading.text.replace("?", "").replace(" ", "").split("\n")
    assert list(map(len, lines)) == [2, 2, 0, 2, 2]
    begins = [card.new_row for card in reading.gallery().cards]
    assert begins == [False, False, True, False, True, False, True, False]


def test_heic(net: nn.Module) -> None:
    first, second, _ = pictures()
    (page,) = read_pages(heic(first, thumbnails=[64]))
    close(page, first)
    for primary, expected in enumerate((first, second)):  # a burst: the chosen one alone
        (page,) = read_pages(heic(first, second, primary_index=primary))
        close(page, expected)
    assert numbered(net, heic(first)) == ALL[:3]
    exif = Image.Exif()
    exif[0x0112] = 6
    (page,) = read_pages(heic(first.rotate(90, expand=True), exif=exif.tobytes()))
    close(page, first)
    assert "HEIF" not in Image.OPEN  # Pillow is as it was
    assert refusal(read_picture, heic(first), 1000) == (
        "too large: 240 x 90 pixels, more than 1,000"
    )


@needs_avif
def test_avif(net: nn.Module) -> None:
    first = pictures()[0]
    close(read_picture(content(first, "AVIF")), first)
    assert numbered(net, content(first, "AVIF")) == ALL[:3]
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = first.rotate(90, expand=True)
    close(read_picture(content(turned, "AVIF", exif=exif.tobytes())), first)


def test_orientation_of_each_frame() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    first, *others = (image.rotate(90, expand=True) for image in pictures())
    data = content(first, "WEBP", save_all=True, append_images=others, exif=exif.tobytes())
    for page, expected in zip(read_pages(data), pictures(), strict=True):
        close(page, expected)


@pytest.mark.parametrize(
    ("module", "make", "line"),
    [
        (
            "pillow_heif",
            lambda: heic(pictures()[0]),
            "a HEIC picture needs pillow_heif: pip install -e '.[scans]'",
        ),
        ("pypdfium2", paged_pdf, "a PDF needs pypdfium2: pip install -e '.[scans]'"),
    ],
)
def test_without_the_extra(
    module: str, make: Callable[[], bytes], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    monkeypatch.setitem(sys.modules, module, None)
    (error,) = read_pages(data)
    assert str(error) == line


@needs_avif
def test_without_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    data = content(pictures()[0], "AVIF")
    monkeypatch.setattr(features, "check", lambda name: False)
    assert refusal(read_picture, data).startswith("AVIF, which this Pillow was built without")


# Damaged and hostile files


def test_a_damaged_page(net: nn.Module, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(paged("TIFF", compression="tiff_adobe_deflate"))
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        (start,) = image.tag_v2[273]
    data[start : start + 20] = bytes(20)
    first, second, third = read_pages(bytes(data))
    close(first, pictures()[0])
    close(third, pictures()[2])
    assert str(second).startswith("damaged: ")
    assert refusal(recognize, bytes(data), net).startswith("cannot read picture 1, page 2: damaged")
    Path("scan.tif").write_bytes(data)
    assert refusal(recognize, "scan.tif", net).startswith("cannot read scan.tif, page 2: damaged")
    done = write_digits(Path(), ["scan.tif"], net)
    assert (done.pictures, done.digits, done.failures) == (3, 6, 1)
    with open("pictures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["page"] for row in rows] == list("1112333")
    assert "".join(row["digit"] for row in rows) == "314592"
    assert [bool(row["error"]) for row in rows] == [row["page"] == "2" for row in rows]
    names = {"001_scan_page1.jpg", "002_scan_page3.jpg", "index.html"}
    assert files_in(Path("pictures")) == names
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["file", "page", "line"],
        ["scan.tif", "1", "1"],
        ["scan.tif", "2", "-"],
        ["scan.tif", "3", "1"],
    ]


def test_cut_files() -> None:
    for kind in ("TIFF", "GIF", "PNG"):
        data = paged(kind)
        first, *_ = read_pages(data[: len(data) * 2 // 3])
        close(first, pictures()[0])


def test_too_many_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_PAGES", 2)
    kinds = [paged("TIFF"), paged("GIF"), paged_pdf()]
    for data in kinds:
        first, second, error = read_pages(data)
        assert first.shape == second.shape
        assert str(error) == "more than 2 pages: the following ones are not read"


def stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries, len(data), data)


def pdf_of(*objects: bytes) -> bytes:
    """A PDF whose page tree is its second object."""
    out = b"%PDF-1.7\n"
    places = []
    for number, each in enumerate([b"<</Type/Catalog/Pages 2 0 R>>", *objects], 1):
        places.append(b"%010d 00000 n \n" % len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(places) + 1, b"".join(places))
    end = b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n" % (len(places) + 1, len(out))
    return out + table + end + b"%%EOF"


PAGE = (
    b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %s]/Contents 4 0 R/Resources<</XObject<</A 5 0 R>>>>>>"
)
TREE = b"<</Type/Pages/Count 1/Kids[3 0 R]>>"


@pytest.mark.parametrize("size", [b"14400 14400", b"1e9 1e9", b"14400 1", b"0 0", b"-5 1e99"])
def test_pdf_pages_of_any_size(size: bytes) -> None:
    pytest.importorskip("pypdfium2")
    (page,) = read_pages(pdf_of(TREE, PAGE % size))
    assert max(page.shape) <= pdf.LONGEST
    assert page.min() == 255


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no memory")
def test_hostile_pdfs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    monkeypatch.setattr(pdf, "SECONDS", 2)
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 200 200]/Resources<</XObject<</A %d 0 R>>>>"
    laughs = [stream(b"/A Do " * 10)]  # each draws the next ten times: 10**20 in all
    laughs += [stream(b"/A Do " * 10, form % number) for number in range(6, 26)]
    packed = zlib.compress(b"0 0 1 1 re f\n" * 5_000_000, 9)
    bomb = stream(packed, b"/Filter/FlateDecode")
    for contents in (laughs, [bomb]):
        start = time.monotonic()
        (error,) = read_pages(pdf_of(TREE, PAGE % b"200 200", *contents))
        assert str(error).startswith("damaged: it needs more than 2 seconds or ")
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("kind", ["HEIC", "AVIF", "PDF"])
@given(data=st.data())
def test_any_damage(kind: str, data: st.DataObject) -> None:
    whole = WHOLE[kind]()
    for page in read_pages(data.draw(damaged(whole))):
        if isinstance(page, InputError):
            assert str(page).isprintable()
        else:
            assert page.dtype == np.uint8


WHOLE = {
    "HEIC": lambda: heic(pictures()[0]),
    "AVIF": lambda: content(pictures()[0], "AVIF"),
    "PDF": lambda: paged_pdf(),
}


# Pictures that are in memory


def test_what_is_one_picture(net: nn.Module, folder: Path) -> None:
    image = pictures()[0]
    array = np.asarray(image)
    path = Path("a.png")
    path.write_bytes(content(image))
    tensor = torch.from_numpy(array.copy())
    same = [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        image,
        image.convert("P"),
        array,
        array / 255,
        (array / 255).astype(np.float32),
        tensor,
        tensor[None],
        tensor.expand(3, -1, -1),
        tensor / 255,
        (tensor / 255)[None].requires_grad_(),
        (tensor / 255).expand(3, -1, -1),
    ]
    expected = [(digit.digit, digit.box, digit.page) for digit in recognize(array, net)]
    assert [digit for digit, _, _ in expected] == [3, 1, 4]
    for source in same:
        if hasattr(source, "seek"):
            source.seek(0)
        assert [
            (digit.digit, digit.box, digit.page) for digit in recognize(source, net)
        ] == expected
    with path.open("rb") as file:
        (read,) = recognize([file], net)
        assert not file.closed
    assert len(read) == 3
    batch = torch.stack([tensor, tensor])[:, None]
    assert list(map(digits_of, recognize(list(batch), net))) == ["314", "314"]
    assert digits_of(recognize((tensor / 255).bfloat16(), net)) == "314"


def test_a_pil_image_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pictures()[0].rotate(90, expand=True)
    with Image.open(io.BytesIO(content(turned, exif=exif))) as image:
        close(read_picture(image), pictures()[0])
        assert image.size == (90, 240)  # as it was
    with Image.open(io.BytesIO(paged("GIF"))) as image:
        image.seek(1)
        (page,) = read_pages(image)
        close(page, pictures()[1])


def test_refusals(net: nn.Module) -> None:
    page = pictures()[0]
    for picture, line in (
        (torch.zeros(2, 1, 28, 28), "pass a batch (N, C, H, W) as list(batch)"),
        (torch.zeros(28, 28, 3), "expected a tensor (H, W) or (1 to 4, H, W), got (28, 28, 3)"),
        (torch.zeros(28), "expected a tensor (H, W)"),
        (5, "expected a file, bytes, a PIL image, an array or a tensor, got int"),
        (torch.full((28, 28), 1.5), "expected floats in [0, 1], got 1.5 to 1.5"),
        (np.full((28, 28), -0.4), "expected floats in [0, 1], got -0.4 to -0.4"),
        (np.full((28, 28), np.nan), "expected floats in [0, 1], got nan to nan"),
        (np.zeros((28, 28), np.int64), "expected pixels, uint8 (H, W)"),
        (torch.zeros(28, 28, dtype=torch.int64), "expected pixels, uint8 (H, W)"),
        (5, "expected a file, bytes, a PIL image, an array or a tensor, got int"),
        (b"text", "not a PNG, JPEG, BMP, GIF, TIFF, WebP, HEIC, AVIF or PDF file"),
    ):
        said = refusal(recognize, [page, picture], net)
        assert said.startswith("cannot read picture 2: ")
        assert line in said
    assert "got (2, 1, 28, 28)" in refusal(recognize, torch.zeros(2, 1, 28, 28), net)
    assert "got float64 (0, 5)" in refusal(recognize, np.zeros((0, 5)), net)
    assert "got int" in refusal(recognize, 5, net)


# Folders


def test_left_out(folder: Path) -> None:
    Path("scans/sub").mkdir(parents=True)
    Path("scans/.cache").mkdir()
    names = ["A.HEIC", "b.JFIF", "c.jpe", "d.Pdf", "sub/e.AVIF", "f.heif"]
    others = ["movie.mp4", "notes.txt", "sub/notes.txt", ".DS_Store", ".cache/x.png"]
    for name in (*names, *others):
        Path("scans", name).touch()
    Path("other").mkdir()
    Path("scans/linked").symlink_to(folder / "other")
    found = picture_files(["scans"])
    assert found.files == sorted(str(Path("scans", name)) for name in names)
    sub = Path("sub/notes.txt")
    assert found.left_out == [
        f"Left out of scans: movie.mp4, notes.txt, {sub} (no pictures by their ending); "
        ".DS_Store, .cache (hidden); linked (linked folders)"
    ]
    for number in range(9):
        Path("scans", f"{number}.txt").touch()
    (line,) = picture_files(["scans"]).left_out
    assert "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 7 more (no pictures by their ending)" in line
    Path("plain").mkdir()
    Path("plain/a.png").touch()
    assert picture_files(["plain"]).left_out == []


def test_a_folder_of_all_formats(
    first: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    page = pictures()[0]
    files = {
        "a.HEIC": heic(page),
        "b.pdf": paged_pdf(),
        "c.TIFF": paged("TIFF"),
        "d.gif": paged("GIF"),
        "e.jfif": content(page, "JPEG"),
        "notes.txt": b"not read",
    }
    if features.check("avif"):
        files["f.avif"] = content(page, "AVIF")
    for name, data in files.items():
        Path("in", name).write_bytes(data)
    capsys.readouterr()
    assert main(["predict", "in"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Left out of in: notes.txt (no pictures by their ending)" in lines
    pages = {"a.HEIC": 1, "b.pdf": 3, "c.TIFF": 3, "d.gif": 3, "e.jfif": 1, "f.avif": 1}
    read = recognize(page, load_run().model.net)
    with open(first / "pictures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in files.keys() - {"notes.txt"}:
        own = [row for row in rows if Path(row["file"]).name == name]
        assert sorted({row["page"] for row in own}) == list("123"[: pages[name]])
        said = "".join(row["digit"] for row in own if row["page"] == "1")
        assert said == digits_of(read)
    copies = files_in(first / "pictures")
    assert {"001_a.jpg", "002_b_page1.jpg", "004_b_page3.jpg", "007_c_page3.jpg"} <= copies
