"""The network that comes with the package: where it is used, and that its card is true."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal, refused_line
from PIL import Image
from safetensors import safe_open

from mnist_lightning import MNIST, UCIDigits, load_run, recognize
from mnist_lightning.checkpoints import PRETRAINED, read_network
from mnist_lightning.cli.main import main
from mnist_lightning.inference import classify

NEWEST = "Checkpoint: lightning_logs/first/checkpoints/best.ckpt (the best of the newest run)"


@pytest.fixture
def page(folder: Path) -> tuple[str, str]:
    """A picture of five digits, dark on white, and what they are."""
    data = UCIDigits()
    data.setup("test")
    assert data.test_set
    images, labels = data.test_set.arrays(slice(5))
    row = np.hstack([np.pad(image, 6) for image in images])
    Image.fromarray(255 - row).resize((800, 160)).save("page.png")
    return "page.png", "".join(map(str, labels))


def first_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_where_there_is_no_run(page: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    file, digits = page
    line = first_line(capsys, "predict", file)
    assert line.endswith("pretrained, which comes with this package; no run in lightning_logs yet")
    written = Path("lightning_logs/pretrained.results/pictures.csv").read_text().splitlines()[1:]
    assert "".join(row.split(",")[5] for row in written) == digits
    Path("lightning_logs/empty").mkdir()
    assert "pretrained" in first_line(capsys, "predict", file, "--log_dir", "lightning_logs/empty")


def test_a_run_comes_first(
    first: Path, page: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert first_line(capsys, "predict", page[0]) == NEWEST
    named = first_line(capsys, "predict", page[0], "--ckpt_path", "pretrained")
    assert named == "Checkpoint: pretrained"
    assert load_run("pretrained").checkpoint == PRETRAINED


def test_only_pictures_take_it_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["test"], ["validate"], ["predict"], ["export"], ["fit", "--init_from", "best"]):
        line = refused_line(capsys, *words, "--data", "UCIDigits")
        assert "no run with best.ckpt in lightning_logs: train one first" in line
        assert line.endswith("pretrained")
    assert "pretrained" in refusal(load_run)
    assert "got pretrained" in refused_line(capsys, "fit", "--ckpt_path", "pretrained")


def test_in_python(page: tuple[str, str]) -> None:
    file, digits = page
    assert recognize(file).text.replace("?", "").replace(" ", "") == digits
    answers = [load_run("pretrained").recognize(file), recognize(file, read_network())]
    for answer in answers:
        assert answer.text == recognize(file).text


def test_fit_and_test_take_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--data", "UCIDigits"]
    start = ["--net", "FastCNN", "--init_from", "pretrained", "--lr", "0", "--epochs", "1"]
    assert main(["fit", *shared, *start, "--name", "more"]) == 0
    weights, net = load_run("lightning_logs/more").model.net.state_dict(), read_network()
    for name, value in net.named_parameters():
        assert weights[name].equal(value), name
    line = first_line(capsys, "test", "--ckpt_path", "pretrained", *shared)
    assert line == "Checkpoint: pretrained"
    folder = Path("lightning_logs/pretrained.results")
    assert json.loads((folder / "report/metrics.json").read_text())["accuracy"] > 0.9


def test_its_file_is_small_and_says_what_it_is() -> None:
    assert PRETRAINED.stat().st_size < 1_300_000
    with safe_open(PRETRAINED, "pt") as file:
        texts = file.metadata()
    assert json.loads(texts["network"])["class_path"] == "mnist_lightning.FastCNN"
    (learnt,) = json.loads(texts["trained_on"])
    assert (learnt["dataset"], learnt["val_fraction"]) == ("MNIST", 0)


def test_its_card_is_true(real_mnist: Path) -> None:
    data = MNIST(str(real_mnist))
    data.setup("test")
    assert data.test_set
    images, labels = data.test_set.arrays()
    accuracy = (classify(read_network(), images).argmax(axis=1) == labels).mean()
    card = Path(f"{PRETRAINED}.md").read_text(encoding="utf-8")
    (said,) = re.findall(r"value: ([\d.]+)", card)
    assert accuracy == pytest.approx(float(said), abs=0.0002)  # rounding may turn an image or two
    assert f"Test: **{float(said):.2%}**" in card


def test_validation_says_that_it_has_seen_the_images(
    real_mnist: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["validate", "--ckpt_path", "pretrained", "--data_dir", str(real_mnist)]
    assert main(words) == 0
    assert "may have learnt from 12,000 of the 12,000" in capsys.readouterr().out
