"""The data sources: what they read, what they download from a server on 127.0.0.1, and which files they refuse."""

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
from conftest import attempt, files_in
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from sklearn.datasets import load_digits

from mnist_lightning.data import torchvision as source
from mnist_lightning.data.kaggle import HOME, PIXELS, Kaggle
from mnist_lightning.data.torchvision import KMNIST, MNIST, FashionMNIST
from mnist_lightning.data.uci import UCIDigits
from mnist_lightning.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = MNIST.shapes
SHAPES = {TRAIN_IMAGES: (20, 28, 28), TRAIN_LABELS: (20,), TEST_IMAGES: (10, 28, 28), TEST_LABELS: (10,)}


def refusal(call: Callable[..., object], *args: object) -> str:
    """The message of the InputError that a call raises."""
    with pytest.raises(InputError) as error:
        call(*args)
    assert str(error.value).isprintable()
    return str(error.value)


# Files of MNIST's kind


def idx_file(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files of an MNIST, FashionMNIST or KMNIST with 20 training and 10 test images, for one test."""
    rng = np.random.default_rng(0)
    files = {name: idx_file(rng.integers(0, 10, shape, np.uint8)) for name, shape in SHAPES.items()}
    monkeypatch.setattr(MNIST, "shapes", SHAPES)
    monkeypatch.setattr(MNIST, "sha256", {name: hashlib.sha256(body).hexdigest() for name, body in files.items()})
    md5 = [(f"{name}.gz", hashlib.md5(gzip.compress(body, mtime=0)).hexdigest()) for name, body in files.items()]
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
    (train, digits), (test, _) = data.load("train"), data.load("test")
    assert (len(train), len(test), train.dtype, digits.dtype) == (60_000, 10_000, np.uint8, np.int64)
    assert (int(train.sum(dtype=np.int64)), int(test.sum(dtype=np.int64))) == (1_567_298_545, 264_923_200)
    assert np.bincount(digits).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    body = (real_mnist / "MNIST/raw" / TRAIN_IMAGES).read_bytes()
    np.testing.assert_array_equal(train, np.frombuffer(body, np.uint8, offset=16).reshape(-1, 28, 28))


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, KMNIST])
def test_download_and_load(kind: type[MNIST], tiny: dict[str, bytes], folder: Path) -> None:
    with mirror(tiny) as (address, requested):
        data = kind("data", mirrors=[address])
        data.prepare_data()
        data.prepare_data()  # valid files need no second request
    assert requested == list(SHAPES)
    assert files_in(folder) == {f"data/{kind.source}/raw/{name}" for name in SHAPES}
    assert contents(folder) == tiny
    how = "SHA-256" if kind is MNIST else "header and size"
    assert data.verify() == f"{kind.source} in {Path('data', kind.source, 'raw')}: four files, {how} as published"
    images, labels = data.load("test")
    assert images.tobytes() == tiny[TEST_IMAGES][16:]
    assert labels.tolist() == list(tiny[TEST_LABELS][8:])
    assert images.flags.writeable  # else torch.from_numpy warns


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:-1] + b"\xff", lambda b: b""])
def test_a_damaged_file_is_replaced(damage: Callable[[bytes], bytes], tiny: dict[str, bytes], folder: Path) -> None:
    write(folder, tiny | {TEST_IMAGES: damage(tiny[TEST_IMAGES])})
    assert "t10k-images-idx3-ubyte is damaged: expected " in refusal(MNIST(str(folder)).verify)
    with mirror(tiny) as (address, requested):
        MNIST(str(folder), mirrors=[address]).prepare_data()
    assert requested == [TEST_IMAGES]
    assert contents(folder) == tiny


@pytest.mark.parametrize(
    ("verb", "missing", "downloads"),
    [
        (TrainerFn.FITTING, [TEST_IMAGES], []),
        (TrainerFn.VALIDATING, [TEST_LABELS], []),
        (TrainerFn.TESTING, [TRAIN_IMAGES], []),
        (TrainerFn.FITTING, [TRAIN_LABELS, TEST_IMAGES], [TRAIN_LABELS, TEST_IMAGES]),
        (TrainerFn.PREDICTING, [TRAIN_IMAGES, TEST_IMAGES], [TRAIN_IMAGES, TEST_IMAGES]),
    ],
)
def test_a_verb_needs_its_own_files(
    verb: TrainerFn, missing: list[str], downloads: list[str], tiny: dict[str, bytes], folder: Path
) -> None:
    write(folder, {name: body for name, body in tiny.items() if name not in missing})
    with mirror(tiny) as (address, requested):
        data = MNIST(str(folder), mirrors=[address])
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=verb, status=TrainerStatus.RUNNING))
        data.prepare_data()
    assert requested == downloads


@pytest.mark.parametrize("status", [TrainerStatus.FINISHED, TrainerStatus.INTERRUPTED])
def test_a_trainer_that_has_ended_needs_no_files(status: TrainerStatus, tiny: dict[str, bytes], folder: Path) -> None:
    """After test, whoever reads the training files finds them checked."""
    write(folder, {name: body for name, body in tiny.items() if name != TRAIN_IMAGES})
    with mirror(tiny) as (address, requested):
        data = MNIST(str(folder), mirrors=[address])
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING, status=status))
        data.prepare_data()
    assert requested == [TRAIN_IMAGES]


FAULTS = {
    "404": r"HTTP Error 404: Not Found",
    "503": r"HTTP Error 503: Service Unavailable",
    "cut": r"[\d,]+ bytes, expected MD5 \w{32}, got \w{32}",
    "noise": r"\\x1b\[2J.*",
    "stall": r".*timed out.*",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_mirror(fault: str, tiny: dict[str, bytes], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "TIMEOUT_SECONDS", 0.3 if "stall" in fault else 5)
    with mirror(tiny, fault) as (bad, _), mirror(tiny | {TRAIN_IMAGES: b"wrong"}) as (wrong, _):
        message = refusal(MNIST("none", mirrors=[bad, wrong]).prepare_data)
        assert files_in(folder) == set()
        with mirror(tiny) as (good, _):
            MNIST("data", mirrors=[bad, good]).prepare_data()
    wrong_bytes = r"\d+ bytes, expected MD5 \w{32}, got \w{32}"
    assert re.fullmatch(
        rf".*{TRAIN_IMAGES} is missing or damaged, and no mirror sent a valid file: tried {bad} \({FAULTS[fault]}\), "
        rf"{wrong} \({wrong_bytes}\); put MNIST's four files into .* or use --data UCIDigits, which needs no download",
        message,
    )
    assert contents(folder) == tiny


def test_unusable_mirrors(tiny: dict[str, bytes], folder: Path) -> None:
    mirrors = ["http://[", "gopher://x", "nothing"]
    message = refusal(MNIST("data", mirrors=mirrors).prepare_data)
    assert all(f"{mirror} (" in message for mirror in mirrors)
    assert "tried none; put" in refusal(MNIST("data", mirrors=[]).prepare_data)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_processes_download_once(tiny: dict[str, bytes], folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    with mirror(tiny) as (address, requested):
        workers = [context.Process(target=MNIST("data", mirrors=[address]).prepare_data) for _ in range(4)]
        workers += [threading.Thread(target=MNIST("data", mirrors=[address]).prepare_data) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers[:4]] == [0] * 4
    assert requested == list(SHAPES)
    assert contents(folder) == tiny


def test_unusable_folders(tiny: dict[str, bytes], folder: Path) -> None:
    assert refusal(MNIST("none").load, "train").startswith(
        f"cannot read {Path('none/MNIST/raw') / TRAIN_IMAGES}: No such file or directory; put MNIST's four files into "
    )
    (folder / "file").touch()
    assert refusal(MNIST("file").prepare_data).startswith(f"cannot write to {Path('file/MNIST/raw')}: ")
    (folder / "closed").mkdir(mode=0o500)
    if not os.access("closed", os.W_OK):  # root and Windows can write there
        expected = f"cannot write to {Path('closed/MNIST/raw')}: Permission denied; choose another data_dir"
        assert refusal(MNIST("closed").prepare_data) == expected


@st.composite
def mutated(draw: st.DrawFn, body: bytes) -> bytes:
    """A file with bytes changed, removed or inserted."""
    content = bytearray(body)
    for _ in range(draw(st.integers(0, 3))):
        # Often at the start, where the header is.
        at = draw(st.integers(0, 20) | st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4) | st.sampled_from([b'"', b",", b"\n"]))
    return bytes(content)


@given(content=mutated(idx_file(np.full((2, 28, 28), 7, np.uint8))) | st.binary(max_size=80))
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
    "no label": (lambda b: re.sub(rb"(?m)^\w+,", b"", b), "expected the columns label to pixel783, got ['pixel0', "),
    "extra column": (lambda b: b.replace(b"\n", b",7\n"), "expected the columns label to pixel783, got ['label', "),
    "long row": (lambda b: b[:-1] + b",7\n", "found more fields than defined in 'Schema'"),
    "short row": (lambda b: b[: b.rindex(b",")], EMPTY.format(12, 1)),
    "empty cell": (lambda b: b[: b.rindex(b",") + 1] + b"\n", EMPTY.format(12, 1)),
    "not a number": (
        lambda b: b[: b.rindex(b",")] + b",abc\n",
        "could not parse `abc` as dtype `u8` at column 'pixel783'",
    ),
    "256": (lambda b: b[: b.rindex(b",")] + b",256\n", "could not parse `256` as dtype `u8` at column 'pixel783'"),
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
        expected = f"cannot read {split}.csv: file not found; download it from {HOME} or set data_dir"
        assert refusal(Kaggle(".").load, split) == expected


CELLS = st.sampled_from(
    ["0", "255", "256", "-1", "1.0", "nan", "", " 7", '"3"', '"', "'1'", '"\'"', "\0", "²", "1,2", "1\n2", "9" * 500]
)


@given(
    content=mutated(kaggle_file(2))
    | st.lists(CELLS, max_size=3).map(lambda cells: kaggle_file(2).replace(b"\n1,", f"\n1,{','.join(cells)},".encode()))
    | st.binary(max_size=80)
)
def test_fuzzed_csv_files(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    if loaded := attempt(Kaggle(str(tmp_path)).load, "train"):
        images, labels = loaded
        assert (images.dtype, images.shape, len(labels) > 0) == (np.uint8, (len(labels), 28, 28), True)
    assert capfd.readouterr() == ("", "")  # a panic of polars prints its stack


def test_uci_digits() -> None:
    data, digits = UCIDigits(), load_digits()
    (train, train_labels), (test, test_labels) = data.load("train"), data.load("test")
    assert (train.shape, test.shape, test.dtype) == ((1437, 28, 28), (360, 28, 28), np.uint8)
    np.testing.assert_array_equal(np.bincount(np.r_[train_labels, test_labels]), np.bincount(digits.target))
    assert np.abs(np.bincount(test_labels) - np.bincount(digits.target) / 5).max() <= 1
    images = np.concatenate([train, test])
    assert (images[:, :4].max(), images[:, :, 24:].max(), images.max()) == (0, 0, 255)
    # A corner of the 20x20 pixels has the value of the 8x8 image's corner.
    corners = np.sort(images[:, 4:24:19, 4:24:19].reshape(-1))
    np.testing.assert_array_equal(corners, np.sort((digits.images[:, ::7, ::7].reshape(-1) * 255 / 16).round()))


@pytest.mark.parametrize("names", [("cat", "dog", "owl"), ("cat",) * 10, tuple(range(10)), [*"0123456789", "ten"]])
def test_class_names_are_ten_different_texts(names: object) -> None:
    own = type("Own", (UCIDigits,), {"class_names": names})
    with pytest.raises(
        InputError, match="class_names must be ten different texts, one for each label 0-9, got "
    ) as error:
        own()
    assert str(names) in str(error.value)
    assert type("Own", (UCIDigits,), {"class_names": list("abcdefghij")})().class_names[3] == "d"


# Data modules of one's own


def own(images: Callable[[Any], Any] = np.asarray, labels: Callable[[Any], Any] = np.asarray) -> UCIDigits:
    """UCI's digits, whose images and labels are changed by functions."""

    class Own(UCIDigits):
        def load(self, split: Any) -> Any:
            pixels, digits = super().load(split)
            return images(pixels), labels(digits)

    return Own()


def spread(images: Any) -> Any:
    wide = np.zeros((len(images), 28, 56), np.uint8)
    wide[:, :, ::2] = images
    return wide[:, :, ::2]


@pytest.mark.parametrize("change", [np.asarray, lambda a: a[:, :, ::-1], lambda a: a[::-1], spread, np.asfortranarray])
@pytest.mark.parametrize("order", [lambda b: b.astype(">i8"), lambda b: b.astype(np.uint8), lambda b: b[::-1]])
def test_strides_and_byte_order_are_no_matter(change: Any, order: Any) -> None:
    data, plain = own(change, order), UCIDigits()
    data.setup("test")
    images, labels = data.test_set.arrays()  # type: ignore[union-attr]
    pixels, digits = plain.load("test")
    np.testing.assert_array_equal(images, change(pixels))
    np.testing.assert_array_equal(labels, order(digits).astype(int))
    batch, answers = next(iter(data.test_dataloader()))
    np.testing.assert_array_equal((batch[:, 0] * 255).round(), change(pixels))
    assert answers.tolist() == labels.tolist()


LABELS_ARE = r"labels must be a NumPy array, integers \(N,\), got {} for 360 images in the test split of Own"
IMAGES_ARE = r"images must be a NumPy array, uint8 \(N, 28, 28\), got {} in the test split of Own"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.asarray, lambda b: np.eye(10, dtype=int)[b], LABELS_ARE.format(r"int64 \(360, 10\)")),
        (np.asarray, lambda b: b[:, None], LABELS_ARE.format(r"int64 \(360, 1\)")),
        (np.asarray, lambda b: b[:-1], LABELS_ARE.format(r"int64 \(359,\)")),
        (np.asarray, lambda b: b + 0.5, LABELS_ARE.format(r"float64 \(360,\)")),
        (np.asarray, lambda b: b.astype(str), LABELS_ARE.format(r"<U21 \(360,\)")),
        (np.asarray, lambda b: b.tolist(), LABELS_ARE.format("list")),
        (np.asarray, torch.from_numpy, LABELS_ARE.format("Tensor")),
        (np.asarray, lambda b: b + 1, "labels must be 0-9, got 1 to 10 in the test split of Own"),
        (lambda a: a / 255, np.asarray, IMAGES_ARE.format(r"float64 \(360, 28, 28\)")),
        (lambda a: a[:, None], np.asarray, IMAGES_ARE.format(r"uint8 \(360, 1, 28, 28\)")),
        (torch.from_numpy, np.asarray, IMAGES_ARE.format("Tensor")),
        (list, np.asarray, IMAGES_ARE.format("list")),
        (lambda a: a[:0], lambda b: b[:0], "there are no images in the test split of Own"),
    ],
)
def test_unusable_data(images: Any, labels: Any, message: str) -> None:
    assert re.fullmatch(message, refusal(own(images, labels).setup, "test"))
