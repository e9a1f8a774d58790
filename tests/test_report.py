"""The numbers of a test, the tables and figures that show them, and the description of data."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import files_in
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from mnist_lightning.data.mnist import FashionMNIST
from mnist_lightning.report import describe, figures, figures_accuracy, metrics, results, run_report
from mnist_lightning.report.blocks import Table
from mnist_lightning.report.text import DIGIT_NAMES

CLASSES = FashionMNIST.class_names
COLUMNS = ("epoch", "step", "train/acc", "train/loss", "val/acc", "val/loss")
HISTORY = [
    dict(zip(COLUMNS, row, strict=True))
    for row in (
        ("0", "4", "", "", "0.55", "1.4"),
        ("0", "9", "0.5", "1.5", "0.6", "1.2"),
        ("1", "19", "0.7", "0.9", "", ""),
    )
]
Test = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]


def predictions(number: int, skill: float, digits: tuple[int, ...] = tuple(range(10))) -> Test:
    """Images, labels and the probabilities of a network that is better with more skill."""
    rng = np.random.default_rng(0)
    labels = rng.choice(digits, number).astype(np.int64)
    logits = rng.normal(size=(number, 10)) + skill * np.eye(10)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (
        rng.integers(0, 256, (number, 28, 28), np.uint8),
        labels,
        probabilities.astype(np.float32),
    )


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def picture(figure: Figure) -> NDArray[Any]:
    return figure.axes[0].images[0].get_array().astype(float).filled(np.nan)


RESULT = {"dataset": "MNIST", "num_examples": 10, "loss": 0.0, "class_names": DIGIT_NAMES}
RESULT |= metrics.classification(np.arange(10), np.eye(10))


# Metrics


@pytest.mark.parametrize("digits", [tuple(range(10)), (0, 1, 2, 4, 5, 6, 7, 8, 9), (3, 8)])
def test_metrics_match_scikit_learn(digits: tuple[int, ...]) -> None:
    _, labels, probabilities = predictions(500, 2, digits)
    result, predicted = metrics.classification(labels, probabilities), probabilities.argmax(axis=1)
    theirs = sklearn.precision_recall_fscore_support(
        labels, predicted, labels=digits, zero_division=0
    )
    assert set(predicted) == set(range(10))  # absent digits are predicted too
    assert result["accuracy"] == pytest.approx((labels == predicted).mean(), abs=1e-12)
    for name, values in zip(("precision", "recall", "f1"), theirs, strict=False):
        known = dict(zip(digits, values.tolist(), strict=True))
        assert result[f"{name}_per_digit"] == pytest.approx(
            [known.get(digit) for digit in range(10)], abs=1e-6
        )
        assert result[f"{name}_macro"] == pytest.approx(values.mean(), abs=1e-6)
    assert result["per_digit"] == result["recall_per_digit"]
    assert (
        result["confusion_matrix"]
        == sklearn.confusion_matrix(labels, predicted, labels=range(10)).tolist()
    )
    each = [sklearn.roc_auc_score(labels == digit, probabilities[:, digit]) for digit in digits]
    assert [result["auroc_per_digit"][digit] for digit in digits] == pytest.approx(each, abs=1e-6)
    assert result["auroc_per_digit"].count(None) == 10 - len(digits)
    assert result["auroc_macro"] == pytest.approx(np.mean(each), abs=1e-6)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_absent_digits_are_not_counted() -> None:
    labels = np.array([1, 4, 7])
    right = metrics.classification(labels, np.eye(10)[labels])
    assert right["accuracy"] == right["precision_macro"] == right["recall_macro"] == 1
    # The absent 9 is predicted, and 7 never is.
    some = metrics.classification(labels, np.eye(10)[[1, 4, 9]])
    macro = [some[f"{name}_macro"] for name in ("recall", "precision", "f1")]
    assert macro == pytest.approx([2 / 3] * 3)
    assert some["precision_per_digit"] == [None, 1, None, None, 1, None, None, 0, None, None]
    rows = results.class_table(RESULT | some).rows
    assert rows[0] == ["0", "0", "n/a", "n/a", "n/a", "n/a", "-"]
    assert rows[7] == ["7", "1", "0.00%", "0.00%", "0.00%", "0.5000", "9 (1x)"]
    assert results.frequent_mistakes(some["confusion_matrix"], 10) == [(7, 9, 1, 1.0)]


def test_reliability_bins_are_closed_on_the_right() -> None:
    confidence = np.array([0.0, 0.5, 0.5, 0.51, 1.0])
    counts, accuracy, mean = metrics.reliability(
        confidence, np.array([False, True, False, True, True]), bins=2
    )
    assert [*counts, *accuracy, *mean] == pytest.approx([3, 2, 1 / 3, 1, 1 / 3, 0.755])
    assert metrics.calibration_error(counts, accuracy, mean) == pytest.approx(2 / 5 * 0.245)


def test_frequent_mistakes() -> None:
    confusion = np.diag([100] * 10)
    confusion[4, 9], confusion[9, 4], confusion[2, 7] = 12, 3, 12
    expected = [(2, 7, 12, 12 / 112), (4, 9, 12, 12 / 112), (9, 4, 3, 3 / 103)]
    assert results.frequent_mistakes(confusion, 10) == expected
    assert results.frequent_mistakes(confusion, 2) == expected[:2]
    content = {"confusion_matrix": confusion.tolist(), "class_names": DIGIT_NAMES}
    table = results.mistakes_table(content)
    assert table.rows[0] == ["2 → 7", "12", "10.7%"]
    assert table.bars == [1, 1, 0.25]
    table = results.mistakes_table(content | {"class_names": CLASSES})
    assert table.rows[2][0] == "Ankle boot → Coat"


# Tables


def test_blocks_as_text() -> None:
    columns, rows = (
        ("name", "accuracy", "epochs"),
        [("a", "98.25%", "10"), ("bcd", "-", "3, pruned")],
    )
    assert str(Table(columns, rows, "A caption", "A title")).splitlines() == [
        "A title",
        "name  accuracy     epochs",
        "a       98.25%         10",
        "bcd          -  3, pruned",
        "A caption",
    ]
    with pytest.raises(ValueError, match="3 columns"):
        Table(columns, [("a", "b")])
    test = predictions(2, 9)
    assert str(run_report.samples(test)).splitlines()[1:3] == [
        f"{label} → {label} ✓  {probability:.1%}  row {row}"
        for row, (label, probability) in enumerate(zip(test[1], test[2].max(axis=1), strict=True))
    ]


def test_fit_facts() -> None:
    run = {"epochs": 10, "global_step": 15000, "fit_seconds": 21.46}
    rows = [
        "Best validation accuracy  97.69%",
        "Best epoch                9",
        "Epochs                    10",
        "Updates                   15,000",
        "Seconds of training       21.5",
        "Run folder                run",
    ]
    best = {"best_val_acc": 0.97692, "best_epoch": 8}
    assert str(results.fit_facts(run | best, Path("run"))).splitlines() == rows
    assert len(results.fit_facts(run | {"best_val_acc": None}, Path("run")).values) == 4


def test_metrics_text() -> None:
    confusion = np.diag([1090] * 10)
    confusion[4, 9], confusion[4, 1] = 7, 3
    content = RESULT | {"num_examples": 10_910, "loss": 0.0785, "ece": 0.00842, "accuracy": 0.97831}
    content |= {"confusion_matrix": confusion.tolist(), "recall_per_digit": [0.9] * 10}
    lines = results.metrics_text(content).splitlines()
    assert lines[:15] == [
        "MNIST, 10,910 test images",
        "",
        "accuracy                    97.83%",
        "loss (cross-entropy, nats)  0.0785",
        "F1 (macro)                  100.00%",
        "precision (macro)           100.00%",
        "recall (macro)              100.00%",
        "AUROC (macro)               1.0000",
        "calibration error (ECE)     0.84%",
        "wrong of 10,910 images      10",
        "",
        "Each digit",
        "digit  images  accuracy = recall  precision       F1   AUROC  mostly taken for",
        "    0   1,090             90.00%    100.00%  100.00%  1.0000  -",
        "    1   1,090             90.00%    100.00%  100.00%  1.0000  -",
    ]
    assert lines[17] == "    4   1,100             90.00%    100.00%  100.00%  1.0000  9 (7x)"
    lines = results.metrics_text(content | {"class_names": CLASSES}).splitlines()
    assert lines[11:13] == ["Each class", lines[12]]
    assert lines[17].split()[:2] == ["Coat", "1,100"]
    assert lines[17].endswith("  Ankle boot (7x)")
    for missing in (None, float("nan")):
        facts = results.metrics_facts(
            RESULT | dict.fromkeys(("loss", "auroc_macro", "ece"), missing)
        )
        assert [*facts.values.values()].count("n/a") == 3


SHARED = {
    "pixel_mean": 0.13066,
    "pixel_std": 0.30811,
    "pixel_min": 0,
    "pixel_max": 255,
    "always_zero": 67 / 784,
}
COUNTS = {"training": [4_800, 9_600, *[4_800] * 7, 0], "validation": [10] * 10, "test": None}
SIZES = zip((48_000, 100, 28_000), COUNTS.items(), strict=True)
SPLITS = {
    name: {"num_examples": size, "num_per_digit": counts, **SHARED}
    for size, (name, counts) in SIZES
}


def test_description_table() -> None:
    lines = str(results.description_table(SPLITS)).splitlines()
    assert lines[:3] + lines[11:-2] == [
        "                  training  validation    test",
        "images              48,000         100  28,000",
        "digit 0      4,800  10.00%  10  10.00%       -",
        "digit 9          0   0.00%  10  10.00%       -",
        "pixel mean          0.1307      0.1307  0.1307",
        "pixel std           0.3081      0.3081  0.3081",
        "pixel min                0           0       0",
        "pixel max              255         255     255",
        "always zero           8.5%        8.5%    8.5%",
    ]
    assert results.description_table(SPLITS, CLASSES).rows[1][0] == "T-shirt/top"


# Figures of a run


def test_curves_draw_the_history() -> None:
    axes = figures.curves(HISTORY).axes
    accuracy, loss = (
        {line.get_label(): line.get_xydata().tolist() for line in axis.lines} for axis in axes
    )
    assert accuracy == {"training": [[1, 0.5], [2, 0.7]], "validation": [[0.5, 0.55], [1, 0.6]]}
    assert loss == {"training": [[1, 1.5], [2, 0.9]], "validation": [[0.5, 1.4], [1, 1.2]]}
    only_training = {"epoch": "0", "step": "9", "train/loss": "1"}
    assert [len(axis.lines) for axis in figures.curves([only_training]).axes] == [0, 1]


def test_confusion_matrices_number_every_cell_and_colour_the_errors() -> None:
    confusion = np.diag([1500] + [50] * 8 + [0])  # there is no 9
    confusion[0, 1], confusion[4, 9] = 3, 50
    for draw, expected, row in (
        (figures.confusion_counts, ["1,500", "3", "50", "50", "·"], {"·"}),
        (figures.confusion_percent, ["99.8", "0.2", "50.0", "50.0", "·"], {""}),
    ):
        (axis,) = draw(confusion).axes
        cells = np.array(texts(axis.figure)).reshape(10, 10)
        assert cells[[0, 0, 4, 4, 2], [0, 1, 4, 9, 3]].tolist() == expected
        assert set(cells[9]) == row
        assert (axis.get_ylabel(), axis.get_xlabel()[:9]) == ("true", "predicted")
        shades = axis.collections[0].get_array()[..., :3]
        assert np.ptp(shades[0, 0]) == 0  # the diagonal is grey
        assert shades[4, 9].sum() < shades[0, 1].sum() < shades[2, 3].sum() == 3
        assert axis.texts[4 * 10 + 9].get_color() == "white"  # on the darkest cell


def test_galleries() -> None:
    test = images, labels, probabilities = predictions(400, 2)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = [index for index in np.argsort(-confidence) if predicted[index] != labels[index]]
    misclassified, samples = (
        run_report.misclassified(test, top=12),
        run_report.samples(test, top=25),
    )
    drawn = [int(card.line.partition("row ")[2]) for card in samples.cards]
    assert len({*drawn}) == 25
    assert max(drawn) > 300  # of all images, not of the first
    assert str(samples) == str(run_report.samples(test, top=25))
    right = int((predicted == labels)[drawn].sum())
    assert 0 < right < 25
    assert misclassified.title == f"12 of {len(wrong)} mistakes, the most confident first"
    counts = f"{right} correct, {25 - right} wrong"
    assert samples.title == f"Typical images: 25 of 400 at random, {counts}"
    for cards, indices in ((misclassified, wrong[:12]), (samples, drawn)):
        figure = figures.gallery(cards)
        assert texts(figure)[2 * len(indices)] == cards.title
        for place, index in enumerate(indices):
            y, x = 20 + place // 10 * 55, 4 + place % 10 * 36
            tile = picture(figure)[y - 1 : y + 28, x - 1 : x + 28]
            np.testing.assert_array_equal(tile[1:, 1:], images[index][..., None].repeat(3, axis=2))
            is_right = predicted[index] == labels[index]
            assert tile[0, 0].tolist() == ([255] * 3 if is_right else [0xD5, 0x5E, 0])
            label = f"{labels[index]} → {predicted[index]} {'✓' if is_right else '✗'}"
            line = f"{confidence[index]:.1%}\nrow {index}"
            assert texts(figure)[2 * place : 2 * place + 2] == [label, line]
    cards = run_report.samples(test, CLASSES, top=6)
    sixth = int(cards.cards[5].line.partition("row ")[2])
    named = figures.gallery(cards)
    assert texts(named)[10].startswith(f"{CLASSES[labels[sixth]]} → ")
    np.testing.assert_array_equal(picture(named)[75:103, 22:50, 0], images[sixth])  # five in a row


def test_the_page_has_all_mistakes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty are shown, the others are in a fold; a diverged network does not fill the disk."""
    test = predictions(400, 2)
    wrong = np.flatnonzero(test[2].argmax(axis=1) != test[1])
    for most in (1000, 50):
        monkeypatch.setattr(run_report, "MOST", most)
        run_report.write_report(folder, "run", "MNIST", test, 0.1, [], {})
        html = (folder / "index.html").read_text()
        shown, folded = html.split("Mistakes and typical images</h2>")[1].split("<details>")
        first, rest = (
            re.findall(r"✗</b><small>.*\nrow (\d+)</small>", part)
            for part in (shown, folded.split("</details>")[0])
        )
        number = min(len(wrong), most) - 40
        assert (len(first), len(rest)) == (40, number)
        assert f"<summary>{number} more mistakes</summary>" in folded
        assert {*map(int, first + rest)} <= {*wrong}
    assert "that the network gives to the true digit. 0 is best" in html


def test_confidence_histogram_and_reliability_diagram_match_numpy() -> None:
    _, labels, probabilities = predictions(400, 2)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    (axis,) = figures_accuracy.confidence_histogram(labels, probabilities).axes
    for steps, chosen, name in zip(
        axis.patches, (correct, ~correct), ("correct", "wrong"), strict=True
    ):
        counts, edges, _ = steps.get_data()
        np.testing.assert_array_equal(counts, np.histogram(confidence[chosen], edges)[0])
        assert steps.get_label() == f"{name} ({chosen.sum()})"
    upper, lower = figures_accuracy.reliability_diagram(labels, probabilities).axes
    bins = [(confidence > low / 15) & (confidence <= (low + 1) / 15) for low in range(15)]
    filled = [chosen for chosen in bins if chosen.any()]
    gaps = [confidence[chosen].mean() - correct[chosen].mean() for chosen in filled]
    accuracies, drawn = upper.containers
    assert [bar.get_height() for bar in accuracies] == pytest.approx(
        [correct[chosen].mean() for chosen in filled]
    )
    assert [bar.get_height() for bar in drawn] == pytest.approx(gaps)
    assert [bar.get_height() for bar in lower.containers[0]] == [chosen.sum() for chosen in filled]
    ece = np.average(np.abs(gaps), weights=[chosen.sum() for chosen in filled])
    assert metrics.classification(labels, probabilities)["ece"] == pytest.approx(ece, abs=1e-6)
    assert upper.figure.get_suptitle() == f"Reliability diagram: calibration error (ECE) {ece:.2%}"


@pytest.mark.parametrize(("skill", "start"), [(0, 0), (3, 0.5)])
def test_roc_and_precision_recall_match_scikit_learn(skill: float, start: float) -> None:
    _, labels, probabilities = predictions(500, skill)
    draw = figures_accuracy.roc, figures_accuracy.precision_recall
    panels = (figure(labels, probabilities).axes for figure in draw)
    for digit, (roc, precision_recall) in enumerate(zip(*panels, strict=True)):
        data = labels == digit, probabilities[:, digit]
        false_positives, true_positives, _ = sklearn.roc_curve(*data)
        expected = np.column_stack([np.maximum(false_positives, 1e-3), true_positives])
        np.testing.assert_array_equal(roc.lines[0].get_xydata(), expected)
        assert (roc.get_xscale(), roc.get_ylim()[0]) == ("log", start)
        assert roc.get_title() == f"{digit}: AUROC {sklearn.roc_auc_score(*data):.4f}"
        precision, recall, _ = sklearn.precision_recall_curve(*data, drop_intermediate=True)
        np.testing.assert_array_equal(
            precision_recall.lines[0].get_xydata(), np.column_stack([recall, precision])
        )
        assert (
            precision_recall.get_title()
            == f"{digit}: AP {sklearn.average_precision_score(*data):.4f}"
        )


# The report


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "case", ["one digit", "one image", "all correct", "all wrong", "some nan", "all nan"]
)
def test_write_report_of_an_unusual_test(case: str, folder: Path) -> None:
    skill = {"all correct": 50.0, "all wrong": -50.0}.get(case, 2.0)
    digits = (4,) if case == "one digit" else tuple(range(10))
    data = _, labels, probabilities = predictions(1 if case == "one image" else 60, skill, digits)
    probabilities[: {"some nan": 5, "all nan": 60}.get(case, 0)] = np.nan
    history = HISTORY if case == "one digit" else []
    unencodable = "run \udcff", "MNIST", data, float("nan"), history, {"device": "\ud800"}
    result, pngs = run_report.write_report(folder / "report", *unencodable)
    names = {"confusion_counts", "confusion_percent", "confidence_histogram", "reliability_diagram"}
    names |= {"roc", "precision_recall", "misclassified", "samples", *["curves"][: len(history)]}
    assert set(pngs) == names
    files = {"index.html", "metrics.json", *(f"{name}.png" for name in names)}
    assert files_in(folder / "report") == files
    html = (folder / "report/index.html").read_text()
    assert "<h1>run ?</h1>" in html
    assert ("none: all predictions are correct" in html) == (case == "all correct")
    assert all(png == (folder / f"report/{name}.png").read_bytes() for name, png in pngs.items())
    expected = {
        "dataset": "MNIST",
        "num_examples": len(labels),
        "class_names": list("0123456789"),
        "loss": None,
    }
    expected |= metrics.classification(*data[1:])
    assert result == expected == json.loads((folder / "report/metrics.json").read_text())
    assert (
        result["confusion_matrix"][labels[0]][0] > 0 or "nan" not in case
    )  # NaN: the first of equals, like torch
    if case == "one digit":
        assert (
            texts(figures_accuracy.roc(*data[1:])) == ["no curve:\nabsent, or\nthe only digit"] * 10
        )
    if case == "all correct":
        none = figures.gallery(run_report.misclassified(data))
        assert texts(none) == ["No mistakes: all 60 predictions are correct"]
    if case == "some nan":
        # Loss, calibration error, AUROC of each digit and their mean.
        assert len(re.findall(r"<(?:td|dd)[^>]*>n/a<", html)) == 13
        assert (
            texts(figures_accuracy.roc(*data[1:])) == ["no curve:\nprobabilities\nnot finite"] * 10
        )
        assert (result["auroc_macro"], result["ece"], result["auroc_per_digit"]) == (
            None,
            None,
            [None] * 10,
        )
        (axis,) = figures_accuracy.confidence_histogram(*data[1:]).axes
        assert axis.get_xlabel() == "confidence (without 5 that are not finite)"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs"])),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
)


@given(
    st.dictionaries(
        st.sampled_from(["dataset", "epochs", "best_epoch", "started", "layers"]), json_values
    )
)
def test_any_record_is_shown(record: dict[str, Any]) -> None:
    shown = {name: value for name, value in record.items() if value is not None}
    expected = sum(name != "layers" or isinstance(value, list) for name, value in shown.items())
    assert len(results.run_facts(record).values) == expected


# Data sets

BARS = np.zeros((10, 28, 28), np.uint8)  # digit d is a white column at x = 9 + d
BARS[np.arange(10), :, np.arange(10) + 9] = 255


@pytest.mark.parametrize("number", [1, 499, 500, 1234])
def test_description_matches_numpy(number: int) -> None:
    images, labels, _ = predictions(number, 2)
    images[:, :5] = 0
    assert describe.describe(images, labels) == {
        "num_examples": number,
        "num_per_digit": [(labels == digit).sum() for digit in range(10)],
        "pixel_mean": pytest.approx((images / 255).mean(), rel=1e-12),
        "pixel_std": pytest.approx((images / 255).std(), rel=1e-12),
        "pixel_min": images.min(),
        "pixel_max": images.max(),
        "always_zero": (images == 0).all(axis=0).sum() / 784,
    }


def test_description_of_real_mnist(real_mnist: Path) -> None:
    raw = real_mnist / "MNIST/raw"
    images = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    found = describe.describe(
        images, np.fromfile(raw / "train-labels-idx1-ubyte", np.uint8, offset=8)
    )
    assert found["num_per_digit"] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert found["pixel_mean"] == pytest.approx(0.1306604762738429, rel=1e-15)
    assert found["pixel_std"] == pytest.approx(0.3081078038564622, rel=1e-14)
    assert found["always_zero"] == 67 / 784


def test_write_description(folder: Path) -> None:
    images, labels, _ = predictions(60, 2)
    splits = {
        "training": (images, labels),
        "validation": (images[:9], labels[:9]),
        "test": (images, None),
    }
    found = describe.write_description(folder / "new/there", splits)
    assert files_in(folder / "new/there") == {
        "description.json",
        "digit_counts.png",
        "samples.png",
        "mean_digits.png",
    }
    assert found == {name: describe.describe(*split) for name, split in splits.items()}
    assert json.loads((folder / "new/there/description.json").read_text()) == found


def test_sample_grid() -> None:
    images, labels = predictions(400, 2, (0, 1, 2, 3, 4, 5, 6, 8, 9))[:2]
    labels[:3] = 7
    figure = describe.sample_grid(images, labels)
    for digit in range(10):
        for column, image in enumerate(images[labels == digit][:12]):
            tile = picture(figure)[digit * 30 : digit * 30 + 28, column * 30 : column * 30 + 28]
            np.testing.assert_array_equal(tile, image)
    assert np.isnan(picture(figure)[7 * 30 : 8 * 30, 3 * 30 :]).all()


def test_mean_digits() -> None:
    images, labels = predictions(300, 2, (0, 1, 2, 3, 4, 5, 7, 8, 9))[:2]
    figure = describe.mean_digits(images, labels)
    for digit in range(10):
        y, x = digit // 5 * 37, digit % 5 * 30
        mean = (
            np.full((28, 28), np.nan)
            if digit == 6
            else (images[labels == digit] / 255).mean(axis=0)
        )
        np.testing.assert_allclose(picture(figure)[y : y + 28, x : x + 28], mean, rtol=1e-12)
    assert texts(figure) == [f"{digit} ({(labels == digit).sum()})" for digit in range(10)]


def test_digit_counts() -> None:
    figure = describe.digit_counts(SPLITS)
    training, validation = figure.axes[0].containers
    assert [bar.get_height() for bar in training] == pytest.approx([0.1, 0.2, *[0.1] * 7, 0])
    assert [bar.get_x() for bar in validation] == pytest.approx(
        range(10)
    )  # side by side, centred on the digit
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["training (48,000)", "validation (100)"]
    named = describe.digit_counts(SPLITS, CLASSES).axes[0]
    assert [label.get_text() for label in named.get_xticklabels()] == list(CLASSES)
    assert named.get_xlabel() == "Class"


def test_description_shows_augmented_digits(folder: Path) -> None:
    labels = np.repeat([9, 0, 6, 2], [4, 3, 2, 1])
    seen = []
    describe.write_description(
        folder, {"training": (BARS, labels)}, lambda images: seen.append(images) or 255 - images
    )
    np.testing.assert_array_equal(seen, [BARS[[7, 0, 4, 9]].repeat(8, axis=0)])
    assert (folder / "augmented.png").exists()
    describe.write_description(folder, {"training": (BARS, labels)})
    assert not (folder / "augmented.png").exists()


def test_augmented_grid() -> None:
    augmented = np.random.default_rng(1).integers(0, 256, (5, 8, 28, 28), np.uint8)
    picture = describe.augmented_grid(BARS[:5], augmented).axes[0].images[0].get_array()
    tiles = (
        np.pad(picture.filled(0), ((0, 2), (0, 2)))
        .reshape(5, 30, 9, 30)
        .swapaxes(1, 2)[..., :28, :28]
    )
    np.testing.assert_array_equal(tiles, np.concatenate([BARS[:5, None], augmented], axis=1))
