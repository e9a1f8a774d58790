"""What a notebook shows of digits, a run and a test; and a terminal of a test."""

import base64
import io
import json
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_lightning import MLP, DigitClassifier, Run, UCIDigits, fit
from mnist_lightning.cli.main import main
from mnist_lightning.pictures.recognize import Digit, Reading
from mnist_lightning.report.metrics import classification
from mnist_lightning.report.results import Metrics, metrics_facts

FACT = r"<dt>(.*?)</dt><dd>(.*?)</dd>"


def images(html: str) -> list[NDArray[Any]]:
    found = re.findall(r'base64,([^"]*)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in found]


def test_a_reading_shows_its_text_and_each_digit() -> None:
    pixels = np.arange(784).reshape(28, 28).astype(np.uint8)
    sure, doubtful = np.eye(10, dtype=np.float32)[4], np.full(10, 0.1, np.float32)
    first = Digit(4, 1.0, sure, (0, 0, 9, 9), pixels, True, 1, 1)
    second = Digit(0, 0.1, doubtful, (0, 0, 9, 9), pixels, False, 2, 1)
    html = Reading([first, second])._repr_html_()
    assert '<h3 class="heading">4\n0?</h3>' in html
    assert re.findall(r"<b>(.*?)</b><small>(.*?)</small>", html) == [
        ("4", "100.0%"),
        ("0?", "10.0%"),
    ]
    assert re.findall(r'<li class="(.*?)">', html) == ["", "flagged first"]
    heights = [float(share) for share in re.findall(r"--share:([\d.]+)", html)]
    np.testing.assert_allclose(heights, np.concatenate([sure, doubtful]), rtol=1e-3)
    np.testing.assert_array_equal(images(html), [pixels, pixels])
    assert len(images(first._repr_html_())) == 1
    many = Reading([first] * 1061)._repr_html_()
    assert (many.count("<img"), "The first 60 of 1,061 digits" in many) == (60, True)
    assert "no digit found" in Reading()._repr_html_()


def test_a_run_shows_its_results_and_curves(tmp_path: Path) -> None:
    run = Run(tmp_path / "<i>", None, DigitClassifier(MLP([1])))
    (run.folder / "report").mkdir(parents=True)
    assert re.findall(FACT, run._repr_html_()) == [("Network", "MLP")]
    record = {"network": "<b>", "dataset": "MNIST", "epochs": 3, "fit_seconds": 1.25}
    (run.folder / "run.json").write_text(json.dumps(record | {"best_val_acc": "edited"}))
    (run.folder / "report" / "metrics.json").write_text('{"accuracy": 0.975}')
    (run.folder / "curves.png").write_bytes(b"\x89PNG of curves")
    html = run._repr_html_()
    values = [value for _, value in re.findall(FACT, html)]
    assert values == ["&lt;b&gt;", "MNIST", "3", "1.2", "edited", "97.50%"]
    assert f"{tmp_path}/&lt;i&gt;</h3>" in html
    png = base64.b64encode(b"\x89PNG of curves").decode()
    assert f'src="data:image/png;base64,{png}"' in html


def test_metrics_are_a_dict_and_a_table() -> None:
    labels = np.random.default_rng(0).integers(0, 9, 2000)  # there is no 9
    probabilities = np.random.default_rng(1).dirichlet(np.ones(10), 2000)
    content = {"dataset": "<b>", "num_examples": 2000, "class_names": list("0123456789")}
    content |= {"loss": 0.12345, **classification(labels, probabilities)}
    # Other processes get it pickled.
    metrics = pickle.loads(pickle.dumps(Metrics(content, Path("a b/index.html"))))
    assert metrics == content
    html = metrics._repr_html_()
    facts = dict(re.findall(FACT, html))
    assert facts == dict(metrics_facts(content).values)
    assert (facts["accuracy"], facts["loss (cross-entropy, nats)"]) == (
        f"{content['accuracy']:.2%}",
        "0.1235",
    )
    cells = np.reshape(re.findall(r"<td[^>]*>([^<]*)</td>", html), (10, 6)).T.tolist()
    assert cells[0] == [f"{sum(row)}" for row in content["confusion_matrix"]]
    for column, name in zip(cells[1:4], ("recall", "precision", "f1"), strict=True):
        assert column[:9] == [f"{share:.2%}" for share in content[f"{name}_per_digit"][:9]]
        assert column[9] == "n/a"
    assert '<a href="a%20b/index.html">a b/index.html</a>' in html
    assert "&lt;b&gt;, 2,000 test images</h3>" in html
    assert Metrics({}, Path())._repr_html_() is None


class Shown:
    """A place of a notebook, and what was shown there."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.lines.append(data["text/plain"])


def bars(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if re.fullmatch(rf"{name} +\d+% \|.*\| \S+ left.*", line)]


def test_bars_of_a_notebook(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit has one place for all epochs; the line is empty at the end, and nothing is printed."""
    places: list[Shown] = []

    def display(data: dict[str, str], **options: bool) -> Shown:
        assert (data, options) == ({"text/plain": ""}, {"raw": True, "display_id": True})
        places.append(Shown())
        return places[-1]

    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr("IPython.display.display", display)
    run = fit(DigitClassifier(MLP([8])), UCIDigits(), max_epochs=2)
    run.test(robustness=True)
    run.predict(enable_progress_bar=False)
    assert "\r" not in capsys.readouterr().out
    training, test = (place.lines for place in places)
    for epoch in (1, 2):
        assert bars(training, f"Epoch {epoch}/2")
        assert bars(training, f"Epoch {epoch}/2  validation")
    assert bars(test, "Test")
    assert bars(test, "Changed images")
    assert (training[-1], test[-1]) == ("", "")


def test_bars_of_a_terminal(
    first: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in ("validate", "test", "predict"):
        for is_terminal in (True, False):
            monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
            assert main([verb]) == 0
            lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
            assert bool(bars(lines, verb.capitalize())) == is_terminal
