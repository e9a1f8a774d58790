"""What a notebook shows of digits, a run and a test."""

import base64
import io
import json
import pickle
import re
from pathlib import Path

import numpy as np
from PIL import Image

from mnist_lightning import MLP, DigitClassifier, Run
from mnist_lightning.pictures.recognize import Digit, Reading
from mnist_lightning.report.metrics import Metrics, classification

FACT = r"opacity:.7;font-size:.9em\">([^<]*)</div><div[^>]*>([^<]*)</div>"


def test_a_reading_shows_its_text_and_each_digit() -> None:
    pixels = np.arange(784).reshape(28, 28).astype(np.uint8)
    sure, doubtful = np.eye(10, dtype=np.float32)[4], np.full(10, 0.1, np.float32)
    first = Digit(4, 1.0, sure, (0, 0, 9, 9), pixels, True, 1, 1)
    html = Reading([first, Digit(0, 0.1, doubtful, (0, 0, 9, 9), pixels, False, 2, 1)])._repr_html_()
    assert ">4\n0?</div>" in html
    assert re.findall(r"<b [^>]*>(.*?)</b> <span [^>]*>(.*?)</span>", html) == [("4", "100.0%"), ("0?", "10.0%")]
    heights = [float(height) for height in re.findall(r"flex:1;height:([\d.]+)px", html)]
    np.testing.assert_allclose(heights, 1 + 27 * np.concatenate([sure, doubtful]), rtol=1e-6)
    shown = [Image.open(io.BytesIO(base64.b64decode(png))) for png in re.findall(r'base64,([^"]*)"', html)]
    np.testing.assert_array_equal(shown, [pixels, pixels])
    assert re.findall(r"background:(#\w+)", html) == ["#0072b2", "#d55e00"]
    assert first._repr_html_().count("<img") == 1
    many = Reading([first] * 1061)._repr_html_()
    assert (many.count("<img"), "The first 60 of 1,061 digits" in many) == (60, True)
    assert "no digit found" in Reading()._repr_html_()


def test_a_run_shows_its_results_and_curves(tmp_path: Path) -> None:
    run = Run(tmp_path / "<i>", None, DigitClassifier(MLP([1])))
    (run.folder / "report").mkdir(parents=True)
    assert re.findall(FACT, run._repr_html_()) == [("network", "MLP")]
    record = {"network": "<b>", "dataset": "MNIST", "epochs": 3, "fit_seconds": 1.25, "best_val_acc": "edited"}
    (run.folder / "run.json").write_text(json.dumps(record))
    (run.folder / "report" / "metrics.json").write_text('{"accuracy": 0.975}')
    (run.folder / "curves.png").write_bytes(b"a picture")
    html = run._repr_html_()
    values = [value for _, value in re.findall(FACT, html)]
    assert values == ["&lt;b&gt;", "MNIST", "3", "1.2", "edited", "97.50%"]
    assert f"{tmp_path}/&lt;i&gt;</div>" in html
    assert base64.b64decode(re.findall(r'base64,([^"]*)"', html)[0]) == b"a picture"


def test_a_table_shows_absent_digits() -> None:
    content = classification(np.array([3, 8]), np.eye(10)[[3, 8]])
    content |= {"dataset": "", "num_examples": 2, "class_names": list("0123456789"), "loss": 0}
    html = Metrics(content, Path())._repr_html_() or ""
    cells = np.reshape(re.findall(r"<td[^>]*>([^<]*)</td>", html), (10, 4)).tolist()
    assert cells[2:4] == [["0", "n/a", "n/a", "n/a"], ["1", "100.00%", "100.00%", "100.00%"]]
    assert ("macro F1", "100.00%") in re.findall(FACT, html)


def test_metrics_are_a_dict_and_a_table() -> None:
    generator = np.random.default_rng(0)
    measured = classification(generator.integers(0, 10, 2000), generator.dirichlet(np.ones(10), 2000))
    content = {"dataset": "<b>", "num_examples": 2000, "class_names": list("0123456789"), "loss": 0.12345, **measured}
    metrics = pickle.loads(pickle.dumps(Metrics(content, Path("a b/index.html"))))  # as other processes get it
    html = metrics._repr_html_()
    assert metrics == content
    accuracy, f1 = (f"{content[name]:.2%}" for name in ("accuracy", "f1_macro"))
    assert re.findall(FACT, html) == [("accuracy", accuracy), ("loss", "0.1235"), ("macro F1", f1)]
    columns = [content[name] for name in ("per_digit", "precision_per_digit", "f1_per_digit")]
    images, *shares = np.reshape(re.findall(r"<td[^>]*>([^<]*)</td>", html), (10, 4)).T.tolist()
    assert images == [f"{sum(row)}" for row in content["confusion_matrix"]]
    assert shares == [[f"{share:.2%}" for share in column] for column in columns]
    assert '<a href="a%20b/index.html">a b/index.html</a>' in html
    assert "&lt;b&gt;, 2,000 test images" in html
    assert Metrics({}, Path())._repr_html_() is None
