import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    classification_report,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from torchmetrics.functional import classification as torchmetrics

from mnist_lightning.evaluation import figures, metrics, report

HISTORY = [
    {"epoch": "0", "step": "4", "train/acc": "", "train/loss": "", "val/acc": "0.55", "val/loss": "1.4"},
    {"epoch": "0", "step": "9", "train/acc": "0.5", "train/loss": "1.5", "val/acc": "0.6", "val/loss": "1.2"},
    {"epoch": "1", "step": "19", "train/acc": "0.7", "train/loss": "0.9", "val/acc": "", "val/loss": ""},
]


Test = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]


def a_test(number: int, skill: float, digits: tuple[int, ...] = tuple(range(10)), seed: int = 0) -> Test:
    """Images, labels and the probabilities of a network that is the better the greater its skill."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(digits, number).astype(np.int64)
    logits = rng.normal(size=(number, 10)) + skill * np.eye(10)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return rng.integers(0, 256, (number, 28, 28), np.uint8), labels, probabilities.astype(np.float32)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def drawn(figure: Figure) -> list[dict[str, list[tuple[float, float]]]]:
    return [
        {str(line.get_label()): [tuple(map(float, point)) for point in line.get_xydata()] for line in axis.lines}
        for axis in figure.axes
    ]


def test_curves_draw_what_was_logged() -> None:
    figure = figures.curves(HISTORY)
    accuracy, loss = drawn(figure)
    assert accuracy == {"training": [(1, 0.5), (2, 0.7)], "validation": [(0.5, 0.55), (1, 0.6)]}
    assert loss == {"training": [(1, 1.5), (2, 0.9)], "validation": [(0.5, 1.4), (1, 1.2)]}
    assert [axis.get_title() for axis in figure.axes] == ["Accuracy", "Loss (cross-entropy, nats)"]
    assert all(axis.get_xlabel() == "Epochs trained" for axis in figure.axes)


def test_curves_of_a_run_that_logged_only_training(tmp_path: Path) -> None:
    figure = figures.curves([{"epoch": "0", "step": "9", "train/loss": "1"}])
    assert drawn(figure) == [{}, {"training": [(1, 1)]}]
    figures.save(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_fit_table() -> None:
    run = {"epochs": 10, "global_step": 15000, "fit_seconds": 21.46, "best_val_acc": 0.97692, "best_epoch": 8}
    assert report.fit_table(run, "lightning_logs/version_0").splitlines() == [
        "Best validation accuracy  97.69% in epoch 8 (the first is 0)",
        "Epochs                    10",
        "Updates                   15,000",
        "Seconds                   21.5",
        "Run folder                lightning_logs/version_0",
    ]
    assert "Best" not in report.fit_table(run | {"best_val_acc": None}, "x")


def test_test_table() -> None:
    confusion = [[0] * 10 for _ in range(10)]
    for digit in range(10):
        confusion[digit][digit] = 90
    confusion[4][9], confusion[4][1], confusion[7][2] = 7, 3, 10
    content = {
        "dataset": "MNIST",
        "num_examples": 920,
        "accuracy": 900 / 920,
        "loss": 0.0785,
        "precision_macro": 0.9778,
        "recall_macro": 0.9774,
        "f1_macro": 0.9775,
        "auroc_macro": 0.99912,
        "ece": 0.00842,
        "per_digit": [0.9 if digit in (4, 7) else 1.0 for digit in range(10)],
        "precision_per_digit": [0.97] * 10,
        "f1_per_digit": [0.95] * 10,
        "confusion_matrix": confusion,
    }
    lines = report.test_table(content).splitlines()
    assert lines[:3] == [
        "MNIST, 920 test images",
        "accuracy 97.83%   loss 0.0785   macro: precision 97.78%   recall 97.74%   F1 97.75%",
        "AUROC 0.9991 (macro)   calibration error (ECE) 0.84%",
    ]
    assert lines[4] == "digit  images  accuracy = recall  precision       F1  most often taken for"
    assert lines[5] == "    0      90            100.00%     97.00%   95.00%  -"
    assert lines[9] == "    4     100             90.00%     97.00%   95.00%  9 (7x)"
    assert lines[12] == "    7     100             90.00%     97.00%   95.00%  2 (10x)"
    for nothing in (None, float("nan")):
        lines = report.test_table(content | {"loss": nothing, "auroc_macro": nothing, "ece": nothing}).splitlines()
        assert "loss n/a " in lines[1]
        assert lines[2] == "AUROC n/a (macro)   calibration error (ECE) n/a"


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("digits", [tuple(range(10)), (0, 1, 2, 4, 5, 6, 7, 8, 9), (3, 8)])
def test_metrics_are_scikit_learns(digits: tuple[int, ...]) -> None:
    _, labels, probabilities = a_test(500, 2, digits)
    result = metrics.classification(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    expected = classification_report(labels, predicted, labels=range(10), output_dict=True, zero_division=0)
    assert result["accuracy"] == pytest.approx((labels == predicted).mean(), abs=1e-12)
    for name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert result[f"{name}_macro"] == pytest.approx(expected["macro avg"][theirs], abs=1e-6)
        each = [expected[str(digit)][theirs] for digit in range(10)]
        assert result[f"{name}_per_digit"] == pytest.approx(each, abs=1e-6)
    assert result["per_digit"] == result["recall_per_digit"]
    assert result["confusion_matrix"] == confusion_matrix(labels, predicted, labels=range(10)).tolist()
    each = [roc_auc_score(labels == digit, probabilities[:, digit]) for digit in digits]
    assert [result["auroc_per_digit"][digit] for digit in digits] == pytest.approx(each, abs=1e-6)
    assert result["auroc_macro"] == pytest.approx(np.mean(each), abs=1e-6)
    assert all((result["auroc_per_digit"][digit] is None) == (digit not in digits) for digit in range(10))
    if len(digits) == 10:
        whole = probabilities.astype(np.float64) / probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
        assert result["auroc_macro"] == pytest.approx(roc_auc_score(labels, whole, multi_class="ovr"), abs=1e-6)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("skill", [0, 2, 5])
def test_metrics_are_torchmetrics(skill: float) -> None:
    _, labels, probabilities = a_test(2000, skill)
    assert probabilities.max() < 1  # for a confidence of exactly 1 torchmetrics has a bin of its own
    result = metrics.classification(labels, probabilities)
    scores, target = torch.from_numpy(probabilities).double(), torch.from_numpy(labels)
    for name, theirs in (
        ("precision", torchmetrics.multiclass_precision),
        ("recall", torchmetrics.multiclass_recall),
        ("f1", torchmetrics.multiclass_f1_score),
        ("auroc", torchmetrics.multiclass_auroc),
    ):
        macro, each = (theirs(scores, target, num_classes=10, average=average) for average in ("macro", "none"))
        assert result[f"{name}_macro"] == pytest.approx(macro.item(), abs=1e-6)
        assert result[f"{name}_per_digit"] == pytest.approx(each.tolist(), abs=1e-6)
    ece = torchmetrics.multiclass_calibration_error(scores, target, num_classes=10, n_bins=15, norm="l1")
    assert result["ece"] == pytest.approx(ece.item(), abs=1e-6)
    counts = torchmetrics.multiclass_confusion_matrix(scores, target, num_classes=10)
    assert result["confusion_matrix"] == counts.tolist()


def test_reliability_closes_its_bins_on_the_right() -> None:
    confidence = np.array([0.0, 0.5, 0.5, 0.51, 1.0])
    counts, accuracy, mean = metrics.reliability(confidence, np.array([False, True, False, True, True]), bins=2)
    assert counts.tolist() == [3, 2]
    assert accuracy == pytest.approx([1 / 3, 1])
    assert mean == pytest.approx([1 / 3, 0.755])
    assert metrics.calibration_error(counts, accuracy, mean) == pytest.approx(2 / 5 * 0.245)


@pytest.mark.filterwarnings("error")
def test_metrics_of_a_diverged_network_are_valid_json() -> None:
    _, labels, probabilities = a_test(50, 2)
    probabilities[7] = np.nan
    result = metrics.classification(labels, probabilities)
    assert result["auroc_macro"] is None
    assert result["auroc_per_digit"] == [None] * 10
    assert result["ece"] is None
    assert np.sum(result["confusion_matrix"]) == 50
    assert result["confusion_matrix"][labels[7]][0] >= 1  # the first of equals, as torch has it
    json.dumps(result, allow_nan=False)


def test_frequent_mistakes() -> None:
    confusion = np.diag([100] * 10)
    confusion[4, 9], confusion[9, 4], confusion[2, 7] = 12, 3, 12
    expected = [(2, 7, 12, 12 / 112), (4, 9, 12, 12 / 112), (9, 4, 3, 3 / 103)]
    assert metrics.frequent_mistakes(confusion, 10) == expected
    assert metrics.frequent_mistakes(confusion, 2) == expected[:2]
    assert metrics.frequent_mistakes(np.diag([100] * 10), 10) == []


def test_confusion_matrices_have_a_number_in_every_cell_and_colour_the_errors() -> None:
    confusion = np.diag([1500] + [50] * 8 + [0])  # there is no 9
    confusion[0, 1], confusion[4, 9] = 3, 50
    counts, percent = figures.confusion_counts(confusion), figures.confusion_percent(confusion)
    cells = np.array(texts(counts)).reshape(10, 10)
    assert (cells[0, 0], cells[0, 1], cells[4, 9], cells[9, 9], cells[2, 3]) == ("1,500", "3", "50", "·", "·")
    cells = np.array(texts(percent)).reshape(10, 10)
    assert (cells[0, 0], cells[0, 1], cells[4, 4], cells[4, 9], cells[2, 3]) == ("99.8", "0.2", "50.0", "50.0", "·")
    assert set(cells[9]) == {""}
    for figure in (counts, percent):
        (axis,) = figure.axes
        assert (axis.get_ylabel(), axis.get_xlabel()[:9]) == ("true", "predicted")
        red, green, blue = axis.collections[0].get_array()[..., :3].transpose(2, 0, 1)
        assert red[0, 0] == green[0, 0] == blue[0, 0]  # the diagonal is grey
        darkness = 3 - red - green - blue
        assert darkness[4, 9] > darkness[0, 1] > darkness[2, 3] == 0
        assert axis.texts[4 * 10 + 9].get_color() == "white"  # on the darkest cell


def test_per_digit_draws_the_table() -> None:
    _, labels, probabilities = a_test(300, 2)
    result = metrics.classification(labels, probabilities)
    cells = np.array(texts(figures.per_digit(result))).reshape(10, 5)
    expected = [
        f"{result['per_digit'][4]:.2%}",
        f"{result['precision_per_digit'][4]:.2%}",
        f"{result['f1_per_digit'][4]:.2%}",
        f"{result['auroc_per_digit'][4]:.4f}",
        str((labels == 4).sum()),
    ]
    assert cells[4].tolist() == expected


def test_confused_pairs_are_bars() -> None:
    confusion = np.diag([88] * 10)
    confusion[4, 9], confusion[2, 7], confusion[7, 2] = 12, 22, 1
    (axis,) = figures.confused_pairs(confusion, top=2).axes
    assert [bar.get_width() for bar in axis.patches] == [22, 12]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["2 taken for 7", "4 taken for 9"]
    assert texts(axis.figure) == ["22 (20.0% of all 2s)", "12 (12.0% of all 4s)"]
    assert texts(figures.confused_pairs(np.diag([88] * 10))) == ["No mistake"]


def tile(figure: Figure, place: int) -> NDArray[np.uint8]:
    """The image at a place of a gallery."""
    row, column = divmod(place, figures.GALLERY_COLUMNS)
    y, x = 20 + row * figures.TILE_HEIGHT, 4 + column * figures.TILE_WIDTH
    picture = figure.axes[0].images[0].get_array()[y : y + 28, x : x + 28]
    assert (picture == picture[..., :1]).all()
    return picture[..., 0]


def test_misclassified_shows_the_most_confident_mistakes_first() -> None:
    images, labels, probabilities = a_test(400, 2)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = [index for index in np.argsort(-confidence) if predicted[index] != labels[index]]
    figure = figures.misclassified(images, labels, probabilities, top=12)
    captions = texts(figure)
    for place, index in enumerate(wrong[:12]):
        np.testing.assert_array_equal(tile(figure, place), images[index])
        assert captions[2 * place] == f"{labels[index]} → {predicted[index]} ✗"
        assert captions[2 * place + 1] == f"{confidence[index]:.1%}"
    assert captions[24:] == [
        f"Misclassified: 12 of {len(wrong)}, the most confident first",
        "true → predicted, and the confidence",
    ]


def test_samples_mark_what_is_wrong() -> None:
    images, labels, probabilities = a_test(30, 2)
    figure = figures.samples(images, labels, probabilities, top=25)
    right = probabilities.argmax(axis=1)[:25] == labels[:25]
    assert 0 < right.sum() < 25
    *captions, title, _ = texts(figure)
    assert title == f"The first 25 of 30 images: {right.sum()} right, {25 - right.sum()} wrong"
    canvas = figure.axes[0].images[0].get_array()
    for place in range(25):
        np.testing.assert_array_equal(tile(figure, place), images[place])
        assert captions[2 * place].endswith("✓" if right[place] else "✗")
        row, column = divmod(place, figures.GALLERY_COLUMNS)
        frame = canvas[19 + row * figures.TILE_HEIGHT, 3 + column * figures.TILE_WIDTH]
        assert frame.tolist() == ([255] * 3 if right[place] else [0xD5, 0x5E, 0])


def test_confidence_histogram_counts_right_and_wrong() -> None:
    _, labels, probabilities = a_test(400, 2)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    (axis,) = figures.confidence_histogram(labels, probabilities).axes
    assert axis.get_yscale() == "log"
    for steps, chosen, name in zip(axis.patches, (right, ~right), ("right", "wrong"), strict=True):
        counts, edges, _ = steps.get_data()
        assert counts.sum() == chosen.sum()
        np.testing.assert_array_equal(counts, np.histogram(confidence[chosen], edges)[0])
        assert steps.get_label() == f"{name} ({chosen.sum()})"


def test_reliability_diagram_draws_the_bins_that_make_the_error() -> None:
    _, labels, probabilities = a_test(400, 2)
    figure = figures.reliability_diagram(labels, probabilities)
    upper, lower = figure.axes
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    inside = [(confidence > low / 15) & (confidence <= (low + 1) / 15) for low in range(15)]
    filled = [chosen for chosen in inside if chosen.any()]
    accuracies, gaps = upper.containers
    assert [bar.get_height() for bar in accuracies] == pytest.approx([right[chosen].mean() for chosen in filled])
    assert [bar.get_height() for bar in gaps] == pytest.approx(
        [confidence[chosen].mean() - right[chosen].mean() for chosen in filled]
    )
    assert [bar.get_height() for bar in lower.containers[0]] == [chosen.sum() for chosen in filled]
    assert texts(figure) == [f"{chosen.sum()}" for chosen in filled]
    ece = sum(abs(gap.get_height()) * chosen.sum() for gap, chosen in zip(gaps, filled, strict=True)) / 400
    assert ece == pytest.approx(metrics.classification(labels, probabilities)["ece"])
    assert upper.get_title() == f"Reliability: calibration error (ECE) {ece:.2%}"


def test_roc_and_precision_recall_draw_scikit_learns_curves() -> None:
    _, labels, probabilities = a_test(500, 3)
    for digit, axis in enumerate(figures.roc(labels, probabilities).axes):
        false_positives, true_positives, _ = roc_curve(labels == digit, probabilities[:, digit])
        np.testing.assert_array_equal(axis.lines[0].get_ydata(), true_positives)
        np.testing.assert_array_equal(axis.lines[0].get_xdata(), np.maximum(false_positives, 1e-3))
        assert axis.get_xscale() == "log"
        assert axis.get_title() == f"{digit}: AUROC {roc_auc_score(labels == digit, probabilities[:, digit]):.4f}"
    for digit, axis in enumerate(figures.precision_recall(labels, probabilities).axes):
        precision, recall, _ = precision_recall_curve(labels == digit, probabilities[:, digit], drop_intermediate=True)
        np.testing.assert_array_equal(axis.lines[0].get_xydata(), np.column_stack([recall, precision]))
        area = average_precision_score(labels == digit, probabilities[:, digit])
        assert axis.get_title() == f"{digit}: AP {area:.4f}"


@pytest.mark.parametrize(("skill", "start"), [(0, 0.0), (7, 0.9)])
def test_the_panels_share_the_zoom_that_all_curves_allow(skill: float, start: float) -> None:
    _, labels, probabilities = a_test(2000, skill)
    for figure in (figures.roc(labels, probabilities), figures.precision_recall(labels, probabilities)):
        assert {axis.get_ylim()[0] for axis in figure.axes} == {start}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["three", "one digit", "one image", "all right", "all wrong", "nan", "some nan"])
def test_every_figure_of_an_odd_test_is_drawn(case: str) -> None:
    number = {"three": 3, "one image": 1}.get(case, 60)
    skill = {"all right": 50.0, "all wrong": -50.0}.get(case, 2.0)
    images, labels, probabilities = a_test(number, skill, (4,) if case == "one digit" else tuple(range(10)))
    if "nan" in case:
        probabilities[: 60 if case == "nan" else 5] = np.nan
    pictures = figures.test_figures(images, labels, probabilities, metrics.classification(labels, probabilities), [])
    for figure in pictures.values():
        assert imread(BytesIO(figures.png(figure))).std() > 0  # not blank
    right = int((probabilities.argmax(axis=1) == labels).sum())
    title = f"Misclassified: {min(40, number - right)} of {number - right}, the most confident first"
    if right == number:
        title = f"No mistake: all {number} images were recognised"
    assert right == number or case != "all right"
    assert title in texts(pictures["misclassified"])
    if case == "one digit":
        assert texts(pictures["roc"]) == ["no curve:\nabsent, or\nthe only digit"] * 10
    if "nan" in case:
        assert texts(pictures["reliability_diagram"]) == [figures.NOT_FINITE]
        assert texts(pictures["precision_recall"]) == ["no curve:\nprobabilities\nnot finite"] * 10
        unknown = 60 if case == "nan" else 5
        label = pictures["confidence_histogram"].axes[0].get_xlabel()
        assert label == f"confidence ({unknown} that are not finite left out)"


def test_the_figures_names_are_the_reports_order() -> None:
    images, labels, probabilities = a_test(20, 2)
    data = images, labels, probabilities, metrics.classification(labels, probabilities)
    names = [
        *("per_digit", "confusion_counts", "confusion_percent", "confused_pairs", "misclassified", "samples"),
        *("confidence_histogram", "reliability_diagram", "roc", "precision_recall"),
    ]
    assert list(figures.test_figures(*data, [])) == names
    assert list(figures.test_figures(*data, HISTORY)) == [*names, "curves"]
