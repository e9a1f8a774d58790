"""The report of a test: metrics, figures, and a self-contained page that shows them."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from mnist_lightning.files import write_atomic
from mnist_lightning.report import figures, figures_accuracy
from mnist_lightning.report.blocks import Block, Card, Gallery, Picture, Words
from mnist_lightning.report.metrics import Labels, Test, classification, decide
from mnist_lightning.report.pages import write_page
from mnist_lightning.report.results import (
    class_table,
    metrics_facts,
    metrics_title,
    mistakes_table,
    run_facts,
)
from mnist_lightning.report.text import DIGIT_NAMES, class_word, or_na

SHOWN = 40  # images of a gallery
MOST = 1000  # mistakes of a page: a thousand take about 500 kB


class Drawing(NamedTuple):
    """A figure of the report."""

    name: str  # of its PNG
    figure: Figure
    title: str  # on the page
    alt: str
    caption: str
    wide: bool = False


def write_report(
    folder: Path,
    title: str,
    dataset: str,
    test: Test,
    loss: float,
    history: Sequence[Mapping[str, str]],
    record: Mapping[str, Any],
    robustness: Mapping[str, Any] | None = None,
    names: Sequence[str] = DIGIT_NAMES,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Write the report of a test: one PNG per figure, ``index.html``, and ``metrics.json`` last.

    Args:
        folder: The folder to write to; it is made if it is missing.
        title: The heading of the page.
        dataset: The name of the data set.
        test: At least one image ``(N, 28, 28)``, white on black, the true digits ``(N,)`` in 0-9,
            and the probabilities ``(N, 10)`` in [0, 1]; those of a diverged network are not finite.
        loss: The mean cross-entropy in nats.
        history: Rows of the run's ``metrics.csv``; without any, the report has no ``curves.png``.
        record: The content of the run's ``run.json``; empty if there is none.
        robustness: The result of ``robustness.robustness``; without it, the report has no
            ``robustness.png``.
        names: The names of the labels 0-9.

    Returns:
        The content of ``metrics.json``, and the PNGs under the names of the figures.

    Raises:
        OSError: If the folder cannot be written to.
    """
    _, labels, probabilities = test
    metrics = {
        "dataset": dataset,
        "num_examples": len(labels),
        "class_names": list(names),
        "loss": loss if math.isfinite(loss) else None,
        **classification(labels, probabilities),
    }
    if robustness is not None:
        metrics["robustness"] = dict(robustness)
    galleries = {"misclassified": misclassified(test, names), "samples": samples(test, names)}
    drawings = _drawings(test, metrics, history)
    pngs = {name: figures.png(figures.gallery(cards)) for name, cards in galleries.items()}
    sections: dict[str, list[Block]] = {
        f"Metrics per {class_word(names)}": [
            class_table(metrics),
            mistakes_table(metrics),
            Words(class_word(names)),
        ],
    }
    for heading, drawn in drawings.items():
        pngs |= {each.name: figures.png(each.figure) for each in drawn}  # the page has no heading
        sections[heading] = [_picture(each) for each in drawn]
        if heading == "Confusion matrix":
            mistakes = misclassified(test, names, MOST).cards
            rest = mistakes[SHOWN:]
            more = Gallery(rest, title=f"{len(rest):,} more mistakes", folded=True)
            sections["Mistakes and typical images"] = [
                galleries["misclassified"],
                more,
                galleries["samples"],
            ]
    sections["The run"] = [run_facts(record)]
    folder.mkdir(parents=True, exist_ok=True)
    if robustness is None:
        (folder / "robustness.png").unlink(missing_ok=True)  # of an earlier test
    for name, png in pngs.items():
        write_atomic(folder / f"{name}.png", png)
    write_page(folder, title, metrics_title(metrics), metrics_facts(metrics).values, sections)
    write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics, pngs


def _picture(drawing: Drawing) -> Picture:
    content = figures.svg(drawing.figure)
    return Picture(content, drawing.alt, drawing.caption, drawing.wide, drawing.title)


def _drawings(
    test: Test, metrics: Mapping[str, Any], history: Sequence[Mapping[str, str]]
) -> dict[str, list[Drawing]]:
    """Return the figures of each section of the page."""
    _, labels, probabilities = test
    confusion, names = np.array(metrics["confusion_matrix"]), metrics["class_names"]
    word = class_word(names)
    sections = {
        "Confusion matrix": [
            Drawing(
                "confusion_counts",
                figures.confusion_counts(confusion, names),
                "Number of images",
                "Confusion matrix in numbers of images, rows true, columns predicted",
                f"Each row is a true {word}, each column an answer of the network. "
                "The grey cells are right answers. "
                "The stronger a colour, the more frequent is the mistake.",
            ),
            Drawing(
                "confusion_percent",
                figures.confusion_percent(confusion, names),
                f"Percent of each true {word}",
                f"Confusion matrix in percent of each true {word}, rows true, columns predicted",
                "The same in percent of each row. "
                f"A row with many strong colours is a {word} that is hard to recognise.",
            ),
        ],
        "Confidence and calibration": [
            Drawing(
                "confidence_histogram",
                figures_accuracy.confidence_histogram(labels, probabilities),
                "Confidence",
                "Histogram of the confidence of correct and of wrong predictions, on a log scale",
                "Wrong answers should have a lower confidence than correct ones. "
                "Those at the right edge are mistakes of which the network was certain.",
            ),
            Drawing(
                "reliability_diagram",
                figures_accuracy.reliability_diagram(labels, probabilities),
                "Reliability",
                "Reliability diagram: accuracy over confidence in fifteen bins, and their sizes",
                "Of 100 answers with a confidence of 80%, 80 should be right: then the bar ends at "
                "the dashed line. If it ends below, the network is too certain; if above, not "
                "certain enough. A bar of few images says little.",
            ),
        ],
        "ROC and precision-recall curves": [
            Drawing(
                "roc",
                figures_accuracy.roc(labels, probabilities, names),
                "ROC curves",
                f"ROC curve of each {word} against the rest, false positives on a log scale",
                f"From which probability on does an image count as the {word}? The lower that "
                f"threshold, the more of its images are found (up), and the more others are taken "
                "for it (right). A good curve is near the upper left corner. AUROC is the area "
                "below it on a linear scale: 1 is best.",
            ),
            Drawing(
                "precision_recall",
                figures_accuracy.precision_recall(labels, probabilities, names),
                "Precision and recall",
                f"Precision over recall for each {word}",
                f"The lower the threshold, the more images of the {word} are found (right), and "
                "the more of the images found are others (down). AP, the average precision, is "
                "the area below the curve: 1 is best.",
            ),
        ],
    }
    if "robustness" in metrics:
        figure = figures_accuracy.robustness(metrics["robustness"], metrics["accuracy"])
        sections["Robustness to changed images"] = [
            Drawing(
                "robustness",
                figure,
                "",
                "Accuracy over the strength of shift, rotation, noise, blur and stroke width",
                "How many of the test images are still recognised when all of them are changed, in "
                "%. The strength of the change is on the x-axis. The dashed line is the accuracy "
                "of the unchanged images: a good network stays near it.",
                wide=True,
            )
        ]
    if history:
        sections["Training curves"] = [
            Drawing(
                "curves",
                figures.curves(history),
                "",
                "Accuracy and loss of training and validation over the epochs",
                "Training values are means over the epoch, with dropout if there is some; the "
                "validation after it has none. If validation gets worse while training improves, "
                "the network overfits: it learns the training images by heart.",
                wide=True,
            )
        ]
    return sections


def misclassified(test: Test, names: Sequence[str] = DIGIT_NAMES, top: int = SHOWN) -> Gallery:
    """Return the misclassified images, at most ``top``: the most confident first, NaN last."""
    _, labels, probabilities = test
    predicted, confidence = decide(probabilities)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:top]
    title = f"No mistakes: all {len(labels):,} predictions are correct"
    if len(wrong):
        title = f"{len(shown)} of {len(wrong):,} mistakes, the most confident first"
    caption = (
        "The label → the network's answer, its confidence, and the image's row: its place in the "
        "data set, counted from 0 (the index in predictions.csv). Would you have read them? Some "
        "are hard to read, and some labels may be wrong."
    )
    return Gallery(_cards(test, shown, names), caption, title)


def samples(test: Test, names: Sequence[str] = DIGIT_NAMES, top: int = SHOWN) -> Gallery:
    """Return ``top`` images drawn at random, the same each time."""
    _, labels, probabilities = test
    shown = np.sort(np.random.default_rng(0).permutation(len(labels))[:top])
    right = np.count_nonzero(decide(probabilities)[0][shown] == labels[shown])
    counts = f"{right} correct, {len(shown) - right} wrong"
    title = f"Typical images: {len(shown)} of {len(labels):,} at random, {counts}"
    caption = "Every report of these data draws the same. A frame and a cross mark a wrong answer."
    return Gallery(_cards(test, shown, names), caption, title)


def _cards(test: Test, rows: Labels, names: Sequence[str]) -> list[Card]:
    images, labels, probabilities = test
    cards = []
    for row, predicted, confidence in zip(rows, *decide(probabilities[rows]), strict=True):
        is_wrong = bool(predicted != labels[row])
        label = f"{names[labels[row]]} → {names[predicted]} {'✗' if is_wrong else '✓'}"
        line = f"{or_na(confidence, '.1%')}\nrow {row}"
        cards.append(Card(images[row], label, line, is_wrong))
    return cards
