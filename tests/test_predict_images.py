"""``predict --images``: from the user's files to the table, the rows, the cards and the exit code."""

import contextlib
import csv
import io
import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import snapshot
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from PIL import Image

from mnist_lightning import MLP
from mnist_lightning.cli import main
from mnist_lightning.data import picture_loader
from mnist_lightning.data.pictures import read_picture
from mnist_lightning.data.preparation import find_digits
from mnist_lightning.evaluation.figures import png
from mnist_lightning.evaluation.picture_figures import FoundDigit, found_digits

RUN = Path("lightning_logs/version_0")
PREDICT = ["predict", "--trainer.accelerator", "cpu", "--images"]
HEADER = [
    *("file", "digit", "confidence", "runner_up", "runner_up_confidence", "left", "top", "right", "bottom"),
    *(f"p{digit}" for digit in range(10)),
    "error",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        fit = ["fit", "--data", "UCIDigits", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "3"]
        assert main([*fit, "--data.batch_size", "64"]) == 0
    return folder


@pytest.fixture(autouse=True)
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with one trained run."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return RUN


def page(digits: str) -> np.ndarray:
    array = np.full((90, 70 * len(digits) + 20), 250, np.uint8)
    for place, digit in enumerate(digits):
        cv2.putText(array, digit, (20 + 70 * place, 70), cv2.FONT_HERSHEY_SIMPLEX, 2, 20, 6, cv2.LINE_AA)
    return array


def save(digits: str, name: str | bytes, folder: Path = Path("digits")) -> str:
    folder.mkdir(exist_ok=True)
    path = os.path.join(folder, os.fsdecode(name))
    with open(path, "wb") as file:
        Image.fromarray(page(digits)).save(file, "PNG")
    return path


def rows_of(run: Path = RUN) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == HEADER
    return [dict(zip(header, row, strict=True)) for row in rows]


def network() -> MLP:
    state = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    net = MLP().eval()
    net.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
    return net


def check_rows(rows: list[dict[str, str]], files: list[str]) -> None:
    """The rows are what the network alone makes, one by one, of what is found in the files."""
    net = network()
    expected = [(file, digit) for file in files for digit in find_digits(read_picture(file))]
    assert len(rows) == len(expected)
    for row, (file, (image, box)) in zip(rows, expected, strict=True):
        with torch.no_grad():
            probabilities = net(torch.from_numpy(image)[None, None] / 255).softmax(dim=1)[0].numpy()
        likeliest = np.argsort(-probabilities)
        assert (row["file"], row["error"]) == (file, "")
        assert [int(row["digit"]), int(row["runner_up"])] == likeliest[:2].tolist()
        assert tuple(int(row[side]) for side in ("left", "top", "right", "bottom")) == box
        found = [float(row[f"p{digit}"]) for digit in range(10)]
        np.testing.assert_allclose(found, probabilities, rtol=1e-4, atol=1e-9)
        assert float(row["confidence"]) == max(found)
        assert float(row["runner_up_confidence"]) == sorted(found)[-2]


def test_every_digit_of_a_folder_has_its_row_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    files = [save("7", "a.png"), save("314", "b.png"), save("0", "c.png")]
    assert main([*PREDICT, "digits"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = rows_of()
    assert len(rows) == 5
    check_rows(rows, files)
    lines = out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("file "))
    assert lines[begin] == "file          digit  confidence  runner-up  box"
    for line, row in zip(lines[begin + 1 : begin + 6], rows, strict=True):
        sure, less = f"{float(row['confidence']):.1%}", f"({float(row['runner_up_confidence']):>5.1%})"
        box = f"{row['left']},{row['top']} to {row['right']},{row['bottom']}"
        assert re.split(r"\s{2,}", line) == [row["file"], row["digit"], sure, f"{row['runner_up']} {less}", box]
    assert lines[begin + 6 :] == [
        "",
        "Digits: 5   pictures: 3   without an answer: 0",
        f"Written: {RUN}/predictions.csv, {RUN}/predictions.png",
    ]


def test_real_digits_are_read_right(real_mnist: Path) -> None:
    """From a page of training digits, by a network that saw a little of the UCI's only: 30."""
    content = np.fromfile(real_mnist / "MNIST/raw/train-images-idx3-ubyte", np.uint8, 16 + 60 * 784)
    labels = np.fromfile(real_mnist / "MNIST/raw/train-labels-idx1-ubyte", np.uint8, 8 + 60)[8:]
    images = np.pad(content[16:].reshape(60, 28, 28), ((0, 0), (6, 6), (6, 6)))
    sheet = 255 - images.reshape(6, 10, 40, 40).swapaxes(1, 2).reshape(240, 400)
    Image.fromarray(sheet.repeat(3, 0).repeat(3, 1)).save("sheet.jpg")
    assert main([*PREDICT, "sheet.jpg"]) == 0
    rows = rows_of()
    assert len(rows) == 60
    assert sum(int(row["digit"]) == label for row, label in zip(rows, labels, strict=True)) >= 24  # by chance 6


def test_what_cannot_be_read_has_its_row_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    good = [save("1", "1.png"), save("2", "9.png")]
    Path("digits/2.png").write_bytes(b"no picture")
    Path("digits/3.png").write_bytes(Path(good[0]).read_bytes()[:200])
    Image.new("L", (50, 50), 255).save("digits/4.png")
    (Path("digits") / "5.png").symlink_to("nowhere")
    assert main([*PREDICT, "digits", "missing.png"]) == 1
    rows = rows_of()
    assert [row["file"] for row in rows] == [*(f"digits/{name}.png" for name in "123459"), "missing.png"]
    check_rows([rows[0], rows[5]], good)
    reasons = {
        "digits/2.png": "not a PNG, JPEG, BMP, GIF, TIFF or WebP picture",
        "digits/3.png": "damaged: image file is truncated",
        "digits/4.png": "no digit found",
        "digits/5.png": "not a file",
        "missing.png": "no such file",
    }
    assert {row["file"]: row["error"].partition(" (")[0] for row in rows if row["error"]} == reasons
    for row in rows:
        if row["error"]:
            assert {row[name] for name in HEADER[1:-1]} == {""}
    out = capsys.readouterr().out
    for file, reason in reasons.items():
        assert f"\n{file:<12}      -  {reason}" in out
    assert "\nDigits: 2   pictures: 7   without an answer: 5\n" in out


def test_without_any_digit_there_is_a_table_but_no_picture(run: Path) -> None:
    before = set(snapshot(run))
    assert main([*PREDICT, "missing.png"]) == 1
    assert set(snapshot(run)) - before == {"predictions.csv"}
    assert [row["error"] for row in rows_of()] == ["no such file"]


def test_a_folder_without_pictures_is_refused_and_nothing_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    before = snapshot(Path())
    assert main([*PREDICT, "empty"]) == 2
    assert "error: no picture in empty: none of its files ends in .png, .jpg" in capsys.readouterr().err
    assert snapshot(Path()) == before


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [save("7", f"{number}.png") for number in range(5)]
    assert main([*PREDICT, files[0]]) == 0
    before = snapshot(Path())

    def find(picture: np.ndarray) -> list:
        calls.append(picture)
        if len(calls) == 4:
            raise error
        return find_digits(picture)

    calls: list[np.ndarray] = []
    monkeypatch.setattr(picture_loader, "FILES_PER_BATCH", 2)
    monkeypatch.setattr(picture_loader, "find_digits", find)
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        main([*PREDICT, *files])
    assert snapshot(Path()) == before


@pytest.mark.parametrize("workers", [False, True])
def test_batches_and_processes_change_no_row(workers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes forked from one with OpenCV's threads waited for them for ever."""
    files = [save(str(number), f"{number:02}.png") for number in range(23)]
    Path("digits/10.png").write_bytes(b"no picture")  # a batch without any digit, too
    Path("digits/11.png").write_bytes(b"no picture")
    monkeypatch.setattr(picture_loader, "FILES_PER_BATCH", 2)
    monkeypatch.setattr(picture_loader, "WORTH_A_PROCESS", 5 if workers else 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    find_digits(np.random.default_rng(0).integers(0, 256, (500, 500), np.uint8))  # OpenCV starts its threads here
    assert (picture_loader.picture_loader(files).num_workers > 0) == workers
    assert main([*PREDICT, "digits"]) == 1
    rows = rows_of()
    assert [row["file"] for row in rows if row["error"]] == files[10:12]
    check_rows([row for row in rows if not row["error"]], files[:10] + files[12:])


def test_strange_names_are_kept_in_the_file_and_printed_safely(capfd: pytest.CaptureFixture[str]) -> None:
    names = [b"\xff\xfe.png", b'a,"b".png', b"esc\x1b[31m.png", b"two\nlines.png", "fünf 五.png".encode()]
    files = sorted(save("5", name) for name in names)
    assert main([*PREDICT, "digits"]) == 0
    assert [row["file"] for row in rows_of()] == files
    out, err = capfd.readouterr()
    assert err == ""
    assert "\x1b" not in out
    for shown in (r"'digits/two\nlines.png'  ", r"'digits/\udcff\udcfe.png'  ", r"'digits/esc\x1b[31m.png'  "):
        assert f"\n{shown}" in out
    assert "\ndigits/fünf 五.png  " in out


def test_a_terminal_that_lacks_a_character_gets_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    file = save("5", "fünf 五.png".encode())
    assert main([*PREDICT, file]) == 0
    assert [row["file"] for row in rows_of()] == [file]
    terminal.flush()
    assert b"\ndigits/f\\xfcnf \\u4e94.png  " in terminal.buffer.getvalue()


def test_the_run_without_images_writes_the_test_images_again(run: Path) -> None:
    assert main([*PREDICT, save("5", "5.png")]) == 0
    assert main(["predict", "--trainer.accelerator", "cpu"]) == 0
    with (run / "predictions.csv").open() as file:
        assert next(csv.reader(file))[0] == "index"


def test_the_picture_shows_what_was_found_and_seen(run: Path) -> None:
    save("314", "pi.png")
    assert main([*PREDICT, "digits"]) == 0
    with Image.open(run / "predictions.png") as picture:
        width, height = picture.size
    assert width > 1000  # three cards beside each other
    assert width > 3 * height


def cards(number: int) -> list[FoundDigit]:
    rng = np.random.default_rng(0)
    shapes = [(40, 40), (60, 30, 3), (20, 50, 4)]
    return [
        FoundDigit(
            f"folder/{place}.png",
            rng.integers(0, 256, shapes[place % 3], np.uint8),
            (5.0, 4.0, 15.0, 16.0),
            rng.integers(0, 256, (28, 28), np.uint8),
            rng.dirichlet(np.ones(10)).astype(np.float32),
        )
        for place in range(number)
    ]


def test_a_card_has_the_pictures_the_box_and_the_three_likeliest() -> None:
    digits = cards(6)
    axis = found_digits(digits, 6).axes[0]
    texts = [text.get_text() for text in axis.texts]
    assert texts.pop() == "6 digits: where it was found, what the network saw, the three likeliest"
    for place, digit in enumerate(digits):
        np.testing.assert_array_equal(axis.images[2 * place].get_array(), digit.surroundings)
        np.testing.assert_array_equal(axis.images[2 * place + 1].get_array(), digit.image)
        likeliest = sorted(range(10), key=lambda label: -digit.probabilities[label])[:3]
        expected = [part for label in likeliest for part in (str(label), f"{digit.probabilities[label]:.0%}")]
        assert texts[7 * place : 7 * place + 7] == [digit.name, *expected]
        # The box lies on the picture as in its pixels, four cards to a row.
        left, right, bottom, top = axis.images[2 * place].get_extent()
        scale = (right - left) / digit.surroundings.shape[1]
        patches = axis.patches[5 * place : 5 * place + 5]
        backdrop, box, *bars = [patch for patch in patches if isinstance(patch, Rectangle)]
        assert [*backdrop.get_extents().get_points()[:, 0]] == pytest.approx(
            axis.transData.transform([(left, top), (right, bottom)])[:, 0]
        )
        assert backdrop.get_zorder() < axis.images[2 * place].get_zorder() < box.get_zorder()
        assert scale == pytest.approx((bottom - top) / digit.surroundings.shape[0])
        assert scale * max(digit.surroundings.shape[:2]) == pytest.approx(1)
        assert box.get_xy() == pytest.approx((left + 5 * scale, top + 4 * scale))
        assert (box.get_width(), box.get_height()) == pytest.approx((10 * scale, 12 * scale))
        lengths = [bar.get_width() for bar in bars]
        np.testing.assert_allclose(lengths, 0.38 * digit.probabilities[likeliest], rtol=1e-5)
    assert [round(axis.images[2 * place + 1].get_extent()[3], 2) for place in range(6)] == [0.8] * 4 + [2.3] * 2


def test_the_title_counts() -> None:
    titles = [found_digits(cards(shown), total).axes[0].texts[-1].get_text() for shown, total in ((1, 1), (3, 1234))]
    assert titles[0].startswith("1 digit: ")
    assert titles[1].startswith("The first 3 of 1,234 digits: ")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.png", "a.png"),
        ("f" * 40 + ".png", "…" + "f" * 29 + ".png"),
        ("two\nlines", r"'two\nlines'"),
        ("\udcff.png", r"'\udcff.png'"),
        ("$x^2$_{.png", "$x^2$_{.png"),
    ],
)
def test_names_on_cards_fit_and_are_no_markup(name: str, shown: str) -> None:
    digit = cards(1)[0]._replace(name=name)
    figure = found_digits([digit], 1)
    assert figure.axes[0].texts[0].get_text() == shown
    figure.savefig(io.BytesIO())


def test_a_dry_run_with_pictures_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite("seven.png", page("7"))
    assert main([*PREDICT, "seven.png", "--trainer.fast_dev_run", "true"]) == 2
    assert "--images would have no answer: leave one out" in capsys.readouterr().err


def test_a_progress_bar_of_the_users_is_theirs() -> None:
    cv2.imwrite("seven.png", page("7"))
    assert main([*PREDICT, "seven.png", "--trainer.callbacks", "TQDMProgressBar"]) == 0


def test_a_card_shows_its_picture_not_what_is_under_it() -> None:
    grey = np.full((60, 60), 230, np.uint8)
    digit = FoundDigit("a.png", grey, (10, 10, 50, 50), np.zeros((28, 28), np.uint8), np.eye(10)[3])
    drawn = imread(io.BytesIO(png(found_digits([digit], 1))))[..., :3]
    assert (np.abs(drawn - 230 / 255).max(axis=2) < 0.01).sum() > 3000
