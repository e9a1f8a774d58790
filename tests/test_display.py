"""What a notebook shows of digits, a run and a test."""

import base64
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_lightning import MLP, DigitClassifier, Run
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
