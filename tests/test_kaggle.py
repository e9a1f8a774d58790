"""Kaggle's CSV files: read exactly, and every fault told with its place; and a test split without labels."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import polars
import pytest
import torch
from conftest import ROOT, snapshot

from mnist_lightning import MLP, MNIST, DigitClassifier, Kaggle
from mnist_lightning.data import kaggle
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError

PIXELS = [f"pixel{i}" for i in range(784)]
REMEDY = f"; mend it, or download it again from {kaggle.HOME}"
TRAIN, TEST = 50, 30


def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images, their labels, and test images, with every value that there is."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (TRAIN + TEST, 28, 28), np.uint8)
    images[0].flat[:256] = np.arange(256)
    return images[:TRAIN], rng.permutation(np.arange(TRAIN) % 10), images[TRAIN:]


def lines(images: np.ndarray, labels: np.ndarray | None = None) -> list[list[str]]:
    """The cells of Kaggle's file, line by line."""
    table = images.reshape(len(images), 784).astype(int)
    if labels is None:
        return [PIXELS, *(list(map(str, row)) for row in table)]
    return [["label", *PIXELS], *(list(map(str, row)) for row in np.column_stack([labels, table]))]


def joined(cells: list[list[str]]) -> bytes:
    return "".join(",".join(line) + "\n" for line in cells).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ``data_dir`` with a small train.csv and test.csv."""
    images, labels, test_images = arrays()
    folder = tmp_path / "kaggle"
    folder.mkdir()
    (folder / "train.csv").write_bytes(joined(lines(images, labels)))
    (folder / "test.csv").write_bytes(joined(lines(test_images)))
    return folder


def refused(path: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as error:
        Kaggle(str(path.parent)).load(split)
    message = str(error.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


def test_what_was_written_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kaggle, "_read_exactly", None)  # files as Kaggle's are take the fast way
    images, labels, test_images = arrays()
    data = Kaggle(str(folder))
    read, read_labels = data.load("train")
    assert (read.dtype, read_labels.dtype) == (np.uint8, np.int64)
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(read_labels, labels)
    read, no_labels = data.load("test")
    assert no_labels is None
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, test_images)


def test_mnist_as_kaggle_has_it(real_mnist: Path, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "benchmarks/kaggle_csv.py"), "--data_dir", str(real_mnist), str(tmp_path)]
    printed = subprocess.run(program, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert printed.split() == [str(tmp_path / "train.csv"), str(tmp_path / "test.csv")]
    assert (tmp_path / "train.csv").read_bytes()[:13] == b"label,pixel0,"
    data = Kaggle(str(tmp_path))
    (images, labels), (test_images, no_labels) = data.load("train"), data.load("test")
    (all_images, all_labels), (mnist_test, _) = (MNIST(str(real_mnist)).load(split) for split in ("train", "test"))
    assert (len(images), len(test_images), no_labels) == (42_000, 28_000, None)
    np.testing.assert_array_equal(images, all_images[:42_000])
    np.testing.assert_array_equal(labels, all_labels[:42_000])
    np.testing.assert_array_equal(test_images[:18_000], all_images[42_000:])
    np.testing.assert_array_equal(test_images[18_000:], mnist_test)


def quoted(content: bytes) -> bytes:
    return re.sub(rb"([^,\n]+)", rb'"\1"', content)


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda content: content,
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "windows": lambda content: content.replace(b"\n", b"\r\n"),
    "windows and a mark": lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") + b"\r\n",
    "no last line end": lambda content: content[:-1],
    "blank lines": lambda content: content.replace(b"\n", b"\n\n", 3) + b"\n  \n\n",
    "quotes": quoted,
    "quotes and a mark": lambda content: b"\xef\xbb\xbf" + quoted(content),
    "spaces": lambda content: content.replace(b",", b" , "),
    "leading spaces": lambda content: content.replace(b",", b", "),
    "leading zeros": lambda content: re.sub(rb"\b(\d+)\b", rb"00\1", content),
    "plus signs": lambda content: re.sub(rb"\b(\d+)\b", rb"+\1", content),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("way", ["either", "exact"])
def test_harmless_variants_are_read_alike_on_both_ways(
    folder: Path, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "exact":
        monkeypatch.setattr(kaggle, "_read_fast", lambda path, columns: None)
    for split, content in [(split, folder / f"{split}.csv") for split in ("train", "test")]:
        content.write_bytes(HARMLESS[name](content.read_bytes()))
        images, labels = Kaggle(str(folder)).load(split)
        expected, expected_labels, expected_test = arrays()
        np.testing.assert_array_equal(images, expected if split == "train" else expected_test)
        if split == "train":
            np.testing.assert_array_equal(labels, expected_labels)


def test_any_number_of_rows_will_do(folder: Path) -> None:
    content = (folder / "train.csv").read_bytes().split(b"\n")
    (folder / "train.csv").write_bytes(b"\n".join(content[:2]))
    images, labels = Kaggle(str(folder)).load("train")
    assert (images.shape, labels.shape) == ((1, 28, 28), (1,))


CELLS = {
    "decimal": ("3.5", "'3.5'"),
    "whole decimal": ("3.0", "'3.0'"),
    "exponent": ("1e1", "'1e1'"),
    "word": ("abc", "'abc'"),
    "missing value": ("NaN", "'NaN'"),
    "empty": ("", "''"),
    "spaces": ("  ", "''"),
    "empty in quotes": ('""', "''"),
    "too large": ("256", "'256'"),
    "far too large": ("9" * 5000, "'" + "9" * 36 + "..."),
    "negative": ("-1", "'-1'"),
    "minus zero": ("-0", "'-0'"),
    "underscore": ("1_0", "'1_0'"),
    "two signs": ("++1", "'++1'"),
    "Arabic digit": ("٣", "'٣'"),
    "NUL byte": ("1\0", r"'1\x00'"),
    "a quote alone": ('"\'"', '"\'"'),
    "a double quote alone": ('"', "''"),
    "semicolons": ("1;2;3", "'1;2;3'"),
    "long": ("x" * 500, "'" + "x" * 36 + "..."),
    "escape codes": ("\x1b[31m", r"'\x1b[31m'"),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("row", "column"), [(2, 0), (7, 3), (TEST + 1, 783)])
def test_a_cell_that_is_no_whole_number_is_named(folder: Path, name: str, row: int, column: int) -> None:
    cell, shown = CELLS[name]
    cells = lines(arrays()[2])
    cells[row - 1][column] = cell
    cells[TEST][783] = cells[TEST][783] if row == TEST + 1 else "x"  # a later fault is not the one that is told
    path = folder / "test.csv"
    path.write_bytes(joined(cells))
    expected = f"{path}, row {row}, column pixel{column}: must be a whole number in 0-255, got {shown}"
    assert refused(path, "test") == expected + REMEDY


@pytest.mark.parametrize("label", ["10", "255", "256", "-1", "1.0", "", "seven"])
def test_a_label_that_is_no_digit_is_named(folder: Path, label: str) -> None:
    images, labels, _ = arrays()
    cells = lines(images, labels)
    cells[4][0] = label
    cells[9][0] = "11"
    path = folder / "train.csv"
    path.write_bytes(joined(cells))
    assert refused(path) == f"{path}, row 5, column label: must be a whole number in 0-9, got {label!r}{REMEDY}"


def test_invalid_utf8_is_named_and_lines_count_as_in_an_editor(folder: Path) -> None:
    content = (folder / "train.csv").read_bytes().split(b"\n")
    cells = content[5].split(b",")
    cells[11] = b"\xff1"
    path = folder / "train.csv"
    path.write_bytes(b"\r\n".join([*content[:2], b"", b"", *content[2:5], b",".join(cells), *content[6:]]))
    assert refused(path) == f"{path}, row 8, column pixel10: must be a whole number in 0-255, got '\ufffd1'{REMEDY}"


LENGTHS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "one too few": (
        lambda cells: [*cells[:783], "5"],
        "row 4: column pixel783 is missing, got 784 of 785 cells, the last '5'",
    ),
    "one cell": (lambda cells: ["5"], "row 4: column pixel0 is missing, got 1 of 785 cells, the last '5'"),
    "one too many": (
        lambda cells: [*cells, "7"],
        "row 4: must end with column pixel783, got more than 785 cells, the next '7'",
    ),
    "a comma at the end": (
        lambda cells: [*cells, ""],
        "row 4: must end with column pixel783, got more than 785 cells, the next ''",
    ),
    "many too many": (
        lambda cells: cells * 3,
        "row 4: must end with column pixel783, got more than 785 cells, the next '",
    ),
    "commas alone": (lambda cells: [""] * 785, "row 4, column label: must be a whole number in 0-9, got ''"),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_row_that_is_too_short_or_too_long_is_named(folder: Path, name: str) -> None:
    change, expected = LENGTHS[name]
    images, labels, _ = arrays()
    cells = lines(images, labels)
    cells[3] = change(cells[3])
    path = folder / "train.csv"
    path.write_bytes(joined(cells))
    message = refused(path)
    assert message.startswith(f"{path}, {expected}")
    assert message.endswith(REMEDY)


HEADERS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "no label": (lambda names: names[1:], "row 1: column 1 must be named label, got 'pixel0'"),
    "a column left out": (
        lambda names: names[:5] + names[6:],
        "row 1: column 6 must be named pixel4, got 'pixel5'",
    ),
    "the last left out": (
        lambda names: names[:-1],
        "row 1: column pixel783 is missing, got 784 of 785 cells, the last 'pixel782'",
    ),
    "an index first": (lambda names: ["", *names], "row 1: column 1 must be named label, got ''"),
    "one more": (
        lambda names: [*names, "pixel784"],
        "row 1: must end with column pixel783, got more than 785 cells, the next 'pixel784'",
    ),
    "swapped": (
        lambda names: [names[0], names[2], names[1], *names[3:]],
        "row 1: column 2 must be named pixel0, got 'pixel1'",
    ),
    "label last": (lambda names: [*names[1:], "label"], "row 1: column 1 must be named label, got 'pixel0'"),
    "another name": (lambda names: ["digit", *names[1:]], "row 1: column 1 must be named label, got 'digit'"),
    "capitals": (lambda names: [name.upper() for name in names], "row 1: column 1 must be named label, got 'LABEL'"),
    "no header": (lambda names: ["5"] * 785, "row 1: column 1 must be named label, got '5'"),
    "semicolons": (
        lambda names: [";".join(names)],
        "row 1: column 1 must be named label, got 'label;pixel0;pixel1;pixel2;pixel3;pi...",
    ),
    "a blank line": (lambda names: [""], "row 1: column 1 must be named label, got ''"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_another_header_is_refused(folder: Path, name: str) -> None:
    change, expected = HEADERS[name]
    images, labels, _ = arrays()
    header, *cells = lines(images, labels)
    path = folder / "train.csv"
    path.write_bytes(joined([change(header), *cells]))
    assert refused(path) == f"{path}, {expected}{REMEDY}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", " is empty"),
        (b"\xef\xbb\xbf", ", row 1: column 1 must be named label, got ''"),
        (b"\n", ", row 1: column 1 must be named label, got ''"),
        (joined([["label", *PIXELS]]), " has a header and no rows"),
        (joined([["label", *PIXELS]])[:-1], " has a header and no rows"),
        (joined([["label", *PIXELS]]) + b"\n \n", " has a header and no rows"),
        (b"PK\x03\x04\x14\0\0\0", r", row 1: column 1 must be named label, got 'PK\x03\x04\x14\x00\x00\x00'"),
        (b"\x1f\x8b\x08\0", r", row 1: column 1 must be named label, got '\x1f�\x08\x00'"),
        (b"\0" * 1_000_000, r", row 1: column 1 must be named label, got '\x00\x00\x00\x00\x00\x00\x00\x00\x00..."),
        (
            "label,pixel0\n".encode("utf-16"),
            r", row 1: column 1 must be named label, got '��l\x00a\x00b\x00e\x00l\x00'",
        ),
        (bytes(range(256)), r", row 1: column 1 must be named label, got '\x00\x01\x02\x03\x04\x05\x06\x07\x08'"),
        (b"<html>\n", ", row 1: column 1 must be named label, got '<html>'"),
    ],
    ids=["empty", "mark", "line", "header", "header-", "header+", "zip", "gzip", "zeros", "utf-16", "binary", "html"],
)
def test_what_is_no_such_file_is_refused(folder: Path, content: bytes, expected: str) -> None:
    path = folder / "train.csv"
    path.write_bytes(content)
    assert refused(path) == f"{path}{expected}{REMEDY}"


def test_a_comma_at_the_very_end_is_a_cell_too_many(folder: Path) -> None:
    path = folder / "test.csv"
    path.write_bytes(path.read_bytes()[:-1] + b",")
    expected = f"row {TEST + 1}: must end with column pixel783, got more than 784 cells, the next ''"
    assert refused(path, "test") == f"{path}, {expected}{REMEDY}"


def test_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    remedy = f": download it from {kaggle.HOME}, or name the data_dir that has it"
    none = tmp_path / "none/test.csv"
    assert refused(none, "test") == f"{none} is missing{remedy}"
    for path in (folder / "train.csv", folder / "test.csv"):
        path.unlink()
    os.mkfifo(folder / "train.csv")  # nobody writes to it, so reading would wait for ever
    assert refused(folder / "train.csv") == f"{folder}/train.csv is not a file{remedy}"
    (folder / "test.csv").mkdir()
    assert refused(folder / "test.csv", "test") == f"{folder}/test.csv is not a file{remedy}"
    long = tmp_path / ("x" * 300) / "train.csv"
    assert refused(long).startswith((f"cannot read {long}: File name too long; check data_dir", f"{long} is missing"))


def test_a_link_to_a_file_will_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "links [*]").mkdir()
    (tmp_path / "links [*]/train.csv").symlink_to(folder / "train.csv")
    np.testing.assert_array_equal(Kaggle(str(tmp_path / "links [*]")).load("train")[0], arrays()[0])


@pytest.mark.parametrize("name", ["ComputeError", "PanicException"])
def test_a_file_that_polars_refuses_for_no_reason_is_read(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise getattr(polars.exceptions, name)("no")

    monkeypatch.setattr(polars, "read_csv", refuse)
    np.testing.assert_array_equal(Kaggle(str(folder)).load("train")[0], arrays()[0])


def trainer() -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)


def test_fit_validate_and_predict_read_what_they_need_and_write_nothing(folder: Path) -> None:
    model = DigitClassifier(MLP((8,)))
    before = snapshot(folder)
    (folder / "test.csv").rename(folder / "away")
    data = Kaggle(str(folder), batch_size=8, eval_batch_size=7)
    trainer().fit(model, data)
    trainer().validate(model, data, verbose=False)
    assert (len(data.train_set), len(data.val_set)) == (40, 10)
    assert sorted(data.train_set.rows.tolist() + data.val_set.rows.tolist()) == list(range(TRAIN))
    np.testing.assert_array_equal(data.train_set.tensors[1].numpy(), arrays()[1])
    (folder / "away").rename(folder / "test.csv")
    (folder / "train.csv").rename(folder / "away")
    data = Kaggle(str(folder), eval_batch_size=7)
    predictions = trainer().predict(model, data)
    assert sum(len(batch["digit"] if isinstance(batch, dict) else batch) for batch in predictions) == TEST
    images = torch.cat([batch[0] for batch in data.predict_dataloader()])
    np.testing.assert_array_equal(images.numpy(), arrays()[2])
    (folder / "away").rename(folder / "train.csv")
    assert snapshot(folder) == before


def test_there_is_no_test_without_labels(folder: Path) -> None:
    message = "Kaggle has no labelled test set to measure on: use validate or predict"
    data = Kaggle(str(folder))
    for _ in range(2):  # also when the images have been read
        with pytest.raises(InputError) as error:
            trainer().test(DigitClassifier(MLP((8,))), data, verbose=False)
        assert str(error.value) == message
    data = Kaggle(str(folder))
    data.setup()
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (40, 10, TEST)
    assert [len(batch) for batch in data.predict_dataloader()] == [1]


@pytest.mark.parametrize(
    ("images", "stage", "message"),
    [
        (np.zeros((5, 28, 28), np.uint8), "fit", "images need labels, got None in the train split of Source"),
        (
            np.zeros((5, 784), np.uint8),
            "predict",
            "images must be uint8 (N, 28, 28), got uint8 (5, 784) in the test split of Source",
        ),
        (
            np.zeros((5, 28, 28)),
            "predict",
            "images must be uint8 (N, 28, 28), got float64 (5, 28, 28) in the test split of Source",
        ),
    ],
)
def test_a_source_without_labels_that_loads_something_else(images: np.ndarray, stage: str, message: str) -> None:
    class Source(DigitDataModule):
        has_test_labels = False

        def load(self, split: str) -> tuple[np.ndarray, None]:
            return images, None

    with pytest.raises(InputError) as error:
        Source().setup(stage)
    assert str(error.value) == message


def test_a_source_must_say_that_its_test_images_have_no_labels() -> None:
    class Source(DigitDataModule):
        def load(self, split: str) -> tuple[np.ndarray, None]:
            return np.zeros((5, 28, 28), np.uint8), None

    with pytest.raises(InputError) as error:
        Source().setup("predict")
    assert str(error.value) == (
        "images need labels, got None in the test split of Source; set has_test_labels to False if there are none"
    )


def test_the_command_line_does_not_import_polars() -> None:
    program = "import sys, mnist_lightning.cli; print('polars' in sys.modules, mnist_lightning.Kaggle.__name__)"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["False", "Kaggle"]
