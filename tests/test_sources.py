"""The data sources: what they read, download from a server on 127.0.0.1, and refuse."""

import gzip
import hashlib
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import attempt, damaged, files_in, refusal
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from sklearn.datasets import load_digits

from mnist_lightning.data import mnist as source
from mnist_lightning.data.kaggle import HOME, PIXELS, Kaggle
from mnist_lightning.data.mnist import KMNIST, MNIST, FashionMNIST
from mnist_lightning.data.uci import UCIDigits

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = MNIST.shapes
SHAPES = {
    TRAIN_IMAGES: (20, 28, 28),
    TRAIN_LABELS: (20,),
    TEST_IMAGES: (10, 28, 28),
    TEST_LABELS: (10,),
}


# Files of MNIST's kind


def idx_file(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files of an MNIST, FashionMNIST or KMNIST with 20 training and 10 test images."""
    rng = np.random.default_rng(0)
    files, sha256, md5 = {}, {}, {}
    for name, shape in SHAPES.items():
        files[name] = idx_file(rng.integers(0, 10, shape, np.uint8))
        sha256[name] = hashlib.sha256(files[name]).hexdigest()
        md5[f"{name}.gz"] = hashlib.md5(gzip.compress(files[name], mtime=0)).hexdigest()
    monkeypatch.setattr(MNIST, "shapes", SHAPES)
    monkeypatch.setattr(MNIST, "sha256", sha256)
    for kind in (MNIST, FashionMNIST, KMNIST):
        monkeypatch.setattr(getattr(torchvision.datasets, kind.source), "resources", md5)
    monkeypatch.setattr(source, "TIMEOUT_SECONDS", 5)
    return files


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files into MNIST's folder in a data_dir."""
    (folder / "MNIST/raw").mkdir(parents=True)
    for name, body in files.items():
        (folder / "MNIST/raw" / name).write_bytes(body)


def contents(folder: Path) -> dict[str, bytes]:
    return {Path(name).name: (folder / name).read_bytes() for name in files_in(folder)}


@contextmanager
def mirror(files: dict[str, bytes], fault: str = "") -> Iterator[tuple[str, list[str]]]:
    """Serve files as .gz; give the address and the names that were requested.

    A fault is an HTTP status, ``cut`` or ``stall`` (half of the body), or ``noise`` (not HTTP).
    """
    requested: list[str] = []
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/").removesuffix(".gz")
            requested.append(name)
            body = gzip.compress(files[name], mtime=0)
            if fault == "noise":
                self.wfile.write(b"\x1b[2J\r\n\r\n")
            elif fault.isdigit():
                self.send_error(int(fault))
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if fault else body)
                if fault == "stall":
                    self.wfile.flush()
                    stopped.wait()

        def handle(self) -> None:
            with suppress(OSError):  # the client has left
                super().handle()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_real_mnist(real_mnist: Path) -> None:
    data = MNIST(str(real_mnist))
    data.prepare_data()
    assert data.verify() == f"MNIST in {real_mnist / 'MNIST/raw'}: four files, SHA-256 as published"
    for split, prefix, number in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        images, labels = data.load(split)
        assert (images.shape, images.dtype) == ((number, 28, 28), np.uint8)
        assert (labels.shape, labels.dtype) == ((number,), np.int64)
        raw = real_mnist / "MNIST/raw"
        assert images.tobytes() == (raw / f"{prefix}-images-idx3-ubyte").read_bytes()[16:]
        assert bytes(labels.tolist()) == (raw / f"{prefix}-labels-idx1-ubyte").read_bytes()[8:]


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, KMNIST])
def test_download_and_load(kind: type[MNIST], tiny: dict[str, bytes], folder: Path) -> None:
    with mirror(tiny) as (address, requested):
        data = kind("data", mirrors=[address])
        data.prepare_data()
        data.prepare_data()  # valid files need no second request
    assert requested == list(SHAPES)
    assert files_in(folder) == {f"data/{kind.source}/raw/{name}" for name in SHAPES}
    assert contents(folder) == tiny
    raw = Path("data", kind.source, "raw")
    how = "SHA-256" if kind is MNIST else "header and size"
    assert data.verify() == f"{kind.source} in {raw}: four files, {how} as published"
    images, labels = data.load("test")
    assert images.tobytes() == tiny[TEST_IMAGES][16:]
    assert labels.tolist() == list(tiny[TEST_LABELS][8:])
    assert images.flags.writeable  # else torch.from_numpy warns


def test_files_are_read_once(
    tiny: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is loaded, and what is in memory is not checked again."""
    read: list[Path] = []
    from_file = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, *_: read.append(path) or from_file(path, "u1"))
    write(folder, tiny)
    data = MNIST(str(folder))
    for _ in range(2):
        data.prepare_data()
        data.setup()
    assert [path.name for path in read] == list(SHAPES)
    assert data.train_set is not None
    assert data.train_set.images.numpy().tobytes() == tiny[TRAIN_IMAGES][16:]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:-1] + b"\xff", lambda b: b""]
)
def test_a_damaged_file_is_replaced(
    damage: Callable[[bytes], bytes], tiny: dict[str, bytes], folder: Path
) -> None:
    write(folder, tiny | {TEST_IMAGES: damage(tiny[TEST_IMAGES])})
    assert "t10k-images-idx3-ubyte is damaged: expected " in refusal(MNIST(str(folder)).verify)
    with mirror(tiny) as (address, requested):
        MNIST(str(folder), mirrors=[address]).prepare_data()
    assert requested == [TEST_IMAGES]
    assert contents(folder) == tiny


RUNNING, ENDED = TrainerStatus.RUNNING, TrainerStatus.FINISHED


@pytest.mark.parametrize(
    ("verb", "status", "missing", "downloads"),
    [
        (TrainerFn.FITTING, RUNNING, [TEST_IMAGES], []),
        (TrainerFn.VALIDATING, RUNNING, [TEST_LABELS], []),
        (TrainerFn.TESTING, RUNNING, [TRAIN_IMAGES], []),
        (TrainerFn.FITTING, RUNNING, [TRAIN_LABELS, TEST_IMAGES], [TRAIN_LABELS, TEST_IMAGES]),
        (TrainerFn.PREDICTING, RUNNING, [TRAIN_IMAGES, TEST_IMAGES], [TRAIN_IMAGES, TEST_IMAGES]),
        # After a verb, whoever reads the other files finds them checked.
        (TrainerFn.TESTING, ENDED, [TRAIN_IMAGES], [TRAIN_IMAGES]),
        (TrainerFn.TESTING, TrainerStatus.INTERRUPTED, [TRAIN_IMAGES], [TRAIN_IMAGES]),
    ],
)
def test_a_verb_needs_its_own_files(
    verb: TrainerFn,
    status: TrainerStatus,
    missing: list[str],
    downloads: list[str],
    tiny: dict[str, bytes],
    folder: Path,
) -> None:
    write(folder, {name: body for name, body in tiny.items() if name not in missing})
    with mirror(tiny) as (address, requested):
        data = MNIST(str(folder), mirrors=[address])
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=verb, status=status))
        data.prepare_data()
    assert requested == downloads


FAULTS = {
    "404": r"HTTP Error 404: Not Found",
    "503": r"HTTP Error 503: Service Unavailable",
    "cut": r"[\d,]+ bytes, expected MD5 \w{32}, got \w{32}",
    "noise": r"\\x1b\[2J.*",
    "stall": r".*timed out.*",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_mirror(
    fault: str, tiny: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "TIMEOUT_SECONDS", 0.3 if "stall" in fault else 5)
    with mirror(tiny, fault) as (bad, _), mirror(tiny | {TRAIN_IMAGES: b"wrong"}) as (wrong, _):
        message = refusal(MNIST("none", mirrors=[bad, wrong]).prepare_data)
        assert files_in(folder) == set()
        with mirror(tiny) as (good, _):
            MNIST("data", mirrors=[bad, good]).prepare_data()
    tried = rf"{bad} \({FAULTS[fault]}\), {wrong} \({FAULTS['cut']}\)"
    assert re.fullmatch(
        rf".*{TRAIN_IMAGES} is missing or damaged, and no mirror sent a valid file: tried {tried}; "
        "put MNIST's four files into .* or use --data UCIDigits, which needs no download",
        message,
    )
    assert contents(folder) == tiny


def test_unusable_mirrors(tiny: dict[str, bytes], folder: Path) -> None:
    for mirrors in (["http://["], ["gopher://x"], ["nothing"], []):
        message = refusal(MNIST("data", mirrors=mirrors).prepare_data)
        assert f"tried {mirrors[0]} (" in message if mirrors else "tried none; put" in message


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_processes_download_once(tiny: dict[str, bytes], folder: Path) -> None:
    process = multiprocessing.get_context("fork").Process
    workers: list[Any] = []
    with mirror(tiny) as (address, requested):
        for kind in [process] * 4 + [threading.Thread] * 4:
            workers.append(kind(target=MNIST("data", mirrors=[address]).prepare_data))
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers[:4]] == [0] * 4
    assert requested == list(SHAPES)
    assert contents(folder) == tiny


def test_unusable_folders(tiny: dict[str, bytes], folder: Path) -> None:
    path = Path("none/MNIST/raw") / TRAIN_IMAGES
    assert refusal(MNIST("none").load, "train").startswith(
        f"cannot read {path}: No such file or directory; put MNIST's four files into "
    )
    (folder / "file").touch()
    (folder / "closed").mkdir(mode=0o500)
    places = ["file"]
    if not os.access("closed", os.W_OK):  # root and Windows can write there
        places.append("closed")
    for place in places:
        message = refusal(MNIST(place).prepare_data)
        assert message.startswith(f"cannot write to {Path(place, 'MNIST/raw')}: ")
        assert message.endswith("; choose another data_dir")


@given(content=damaged(idx_file(np.full((2, 28, 28), 7, np.uint8))) | st.binary(max_size=80))
def test_fuzzed_idx_files(content: bytes, tmp_path: Path) -> None:
    class Tiny(FashionMNIST):
        shapes = {TRAIN_IMAGES: (2, 28, 28), TRAIN_LABELS: (2,)}  # noqa: RUF012

    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / TRAIN_IMAGES).write_bytes(content)
    (raw / TRAIN_LABELS).write_bytes(idx_file(np.array([3, 9], np.uint8)))
    if loaded := attempt(Tiny(str(tmp_path)).load, "train"):
        assert (loaded[0].shape, loaded[0].tobytes()) == ((2, 28, 28), content[16:])
        assert loaded[1].tolist() == [3, 9]


# Kaggle's CSV files


def kaggle_arrays(rows: int = 12) -> tuple[np.ndarray, np.ndarray]:
    images = np.arange(rows * 784).reshape(rows, 28, 28).astype(np.uint8)
    return images, np.arange(rows) % 10


def kaggle_file(rows: int = 12) -> bytes:
    images, labels = kaggle_arrays(rows)
    table = [["label", *PIXELS], *np.column_stack([labels, images.reshape(rows, 784)]).astype(str)]
    return "".join(",".join(cells) + "\n" for cells in table).encode()


GOOD: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda b: b,
    "byte order mark": lambda b: b"\xef\xbb\xbf" + b,
    "CRLF": lambda b: b.replace(b"\n", b"\r\n"),
    "CRLF and a mark": lambda b: b"\xef\xbb\xbf" + b.replace(b"\n", b"\r\n"),
    "no last line end": lambda b: b[:-1],
    "blank lines": lambda b: b.replace(b"\n", b"\n\n", 3) + b"\n",
    "quotes": lambda b: b'"' + b[:-1].replace(b",", b'","').replace(b"\n", b'"\n"') + b'"\n',
}


@pytest.mark.parametrize("form", GOOD)
def test_kaggle(form: str, folder: Path) -> None:
    images, labels = kaggle_arrays()
    (folder / "train.csv").write_bytes(GOOD[form](kaggle_file()))
    test = b"\n".join(line.partition(b",")[2] for line in kaggle_file(1).splitlines())
    (folder / "test.csv").write_bytes(GOOD[form](test + b"\n"))
    data = Kaggle(".")
    assert data.verify() == "Kaggle in .: 12 images with labels, 1 without"
    found, found_labels = data.load("train")
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(found_labels, labels)
    assert (found.dtype, found_labels.dtype, found.flags.c_contiguous) == (np.uint8, np.int64, True)
    found, no_labels = data.load("test")
    np.testing.assert_array_equal(found, images[:1])
    assert no_labels is None


EMPTY = "expected numbers in all cells, got {} rows with {} empty cells"
BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda b: b"", "empty CSV"),
    "header only": (lambda b: b.partition(b"\n")[0], EMPTY.format(0, 0)),
    "no label": (
        lambda b: re.sub(rb"(?m)^\w+,", b"", b),
        "expected the columns label to pixel783, got ['pixel0', ",
    ),
    "extra column": (
        lambda b: b.replace(b"\n", b",7\n"),
        "expected the columns label to pixel783, got ['label', ",
    ),
    "long row": (lambda b: b[:-1] + b",7\n", "found more fields than defined in 'Schema'"),
    "short row": (lambda b: b[: b.rindex(b",")], EMPTY.format(12, 1)),
    "empty cell": (lambda b: b[: b.rindex(b",") + 1] + b"\n", EMPTY.format(12, 1)),
    "not a number": (
        lambda b: b[: b.rindex(b",")] + b",abc\n",
        "could not parse `abc` as dtype `u8` at column 'pixel783'",
    ),
    "256": (
        lambda b: b[: b.rindex(b",")] + b",256\n",
        "could not parse `256` as dtype `u8` at column 'pixel783'",
    ),
    "a quote": (lambda b: b[: b.rindex(b",")] + b',"\n', EMPTY.format(12, 1)),
    "web page": (lambda b: b"<html>\n", "expected the columns label to pixel783, got ['<html>']"),
    "damaged gzip": (lambda b: gzip.compress(b)[:99], ""),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_kaggle_file(fault: str, folder: Path) -> None:
    damage, reason = BAD[fault]
    (folder / "train.csv").write_bytes(damage(kaggle_file()))
    message = refusal(Kaggle(".").load, "train")
    assert message.startswith(f"cannot read train.csv: {reason}")
    assert message.endswith(f"; download it from {HOME} or set data_dir")


def test_no_kaggle_file(folder: Path) -> None:
    (folder / "test.csv").mkdir()
    for split in ("train", "test"):
        expected = (
            f"cannot read {split}.csv: file not found; download it from {HOME} or set data_dir"
        )
        assert refusal(Kaggle(".").load, split) == expected


CELLS = [
    "0",
    "255",
    "256",
    "-1",
    "1.0",
    "nan",
    "",
    " 7",
    '"3"',
    '"',
    "'1'",
    '"\'"',
    "\0",
    "²",
    "1,2",
]
CELLS += ["1\n2", "9" * 500]


def with_cells(cells: list[str]) -> bytes:
    return kaggle_file(2).replace(b"\n1,", f"\n1,{','.join(cells)},".encode())


@given(
    content=damaged(kaggle_file(2))
    | st.lists(st.sampled_from(CELLS), max_size=3).map(with_cells)
    | st.binary(max_size=80)
)
def test_fuzzed_csv_files(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    if loaded := attempt(Kaggle(str(tmp_path)).load, "train"):
        images, labels = loaded
        assert len(labels)
        assert (images.dtype, images.shape) == (np.uint8, (len(labels), 28, 28))
    assert capfd.readouterr() == ("", "")  # a panic of polars prints its stack


def test_uci_digits() -> None:
    digits = load_digits()
    (train, train_labels), (test, test_labels) = UCIDigits().load("train"), UCIDigits().load("test")
    assert (train.shape, test.shape, test.dtype) == ((1437, 28, 28), (360, 28, 28), np.uint8)
    wanted = np.bincount(digits.target)
    np.testing.assert_array_equal(np.bincount(train_labels) + np.bincount(test_labels), wanted)
    assert np.abs(np.bincount(test_labels) - wanted / 5).max() <= 1
    images = np.concatenate([train, test])
    assert (images[:, :4].max(), images[:, :, 24:].max(), images.max()) == (0, 0, 255)
    # A corner of the 20x20 pixels has the value of the 8x8 image's corner.
    corners = (digits.images[:, ::7, ::7].reshape(-1) * 255 / 16).round()
    np.testing.assert_array_equal(
        np.sort(images[:, 4:24:19, 4:24:19].reshape(-1)), np.sort(corners)
    )


@pytest.mark.parametrize(
    "names", [("cat", "dog", "owl"), ("cat",) * 10, tuple(range(10)), [*"0123456789", "ten"]]
)
def test_class_names_are_ten_different_texts(names: object) -> None:
    message = "class_names must be ten different texts, one for each label 0-9, got "
    assert refusal(type("Own", (UCIDigits,), {"class_names": names})) == message + str(names)
    assert type("Own", (UCIDigits,), {"class_names": list("abcdefghij")})().class_names[3] == "d"


# Data modules of one's own


def own(images: Any = None, labels: Any = None) -> UCIDigits:
    """UCI's digits, whose images or labels are changed by a function."""

    class Own(UCIDigits):
        def load(self, split: Any) -> Any:
            pixels, digits = super().load(split)
            return images(pixels) if images else pixels, labels(digits) if labels else digits

    return Own()


def spread(images: Any) -> Any:
    wide = np.zeros((len(images), 28, 56), np.uint8)
    wide[:, :, ::2] = images
    return wide[:, :, ::2]


@pytest.mark.parametrize(
    ("change", "order"),
    [
        (lambda a: a[:, :, ::-1], lambda b: b.astype(">i8")),
        (lambda a: a[::-1], lambda b: b[::-1]),
        (spread, lambda b: b.astype(np.uint8)),
        (np.asfortranarray, None),
    ],
)
def test_strides_and_byte_order_are_no_matter(change: Any, order: Any) -> None:
    data = own(change, order)
    data.setup("test")
    pixels, digits = data.load("test")
    images, labels = data.test_set.arrays()  # type: ignore[union-attr]
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(labels, digits)
    batch, answers = next(iter(data.test_dataloader()))
    np.testing.assert_array_equal((batch[:, 0] * 255).round(), pixels)
    assert answers.tolist() == digits.tolist()


LABELS: dict[str, Callable[[Any], Any]] = {
    "int64 (360, 10)": lambda b: np.eye(10, dtype=int)[b],
    "int64 (360, 1)": lambda b: b[:, None],
    "int64 (359,)": lambda b: b[:-1],
    "float64 (360,)": lambda b: b + 0.5,
    "<U21 (360,)": lambda b: b.astype(str),
    "list": lambda b: b.tolist(),
    "Tensor": torch.from_numpy,
}
IMAGES: dict[str, Callable[[Any], Any]] = {
    "float64 (360, 28, 28)": lambda a: a / 255,
    "uint8 (360, 1, 28, 28)": lambda a: a[:, None],
    "Tensor": torch.from_numpy,
    "list": list,
}
CASES = [
    (None, lambda b: b + 1, "labels must be 0-9, got 1 to 10"),
    (lambda a: a[:0], None, "there are no images"),
]
for got, change in LABELS.items():
    what = f"labels must be a NumPy array, integers (N,), got {got} for 360 images"
    CASES.append((None, change, what))
for got, change in IMAGES.items():
    CASES.append((change, None, f"images must be a NumPy array, uint8 (N, 28, 28), got {got}"))


@pytest.mark.parametrize(("images", "labels", "message"), CASES)
def test_unusable_data(images: Any, labels: Any, message: str) -> None:
    refused = refusal(own(images, labels).setup, "test")
    assert refused == f"{message} in the test split of Own"
