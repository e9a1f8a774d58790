"""The report of a test: metrics, figures, and one self-contained HTML page that shows them."""

import json
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_lightning.files import write_atomic
from mnist_lightning.report import figures, figures_confidence, figures_robustness
from mnist_lightning.report.html import png_base64, render
from mnist_lightning.report.metrics import Labels, Test, classification, decide, frequent_mistakes
from mnist_lightning.report.text import DIGIT_NAMES, noun

NOT_ON_PAGE = {"per_digit", "confused_pairs"}  # tables show the same


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
        folder: The folder to write to; its parent must exist.
        title: The heading of the page.
        dataset: The name of the data set.
        test: At least one image ``(N, 28, 28)``, white on black, the true digits ``(N,)`` in 0-9, and the probabilities
            ``(N, 10)`` in [0, 1]; those of a diverged network are not finite.
        loss: The mean cross-entropy in nats.
        history: Rows of the run's ``metrics.csv``; without any, the report has no ``curves.png``.
        record: The content of the run's ``run.json``; empty if there is none.
        robustness: The result of ``robustness.robustness``; without it, the report has no ``robustness.png``.
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
    confusion = np.array(metrics["confusion_matrix"])
    drawn = {
        "per_digit": figures.per_digit(metrics, names),
        "confusion_counts": figures.confusion_counts(confusion, names),
        "confusion_percent": figures.confusion_percent(confusion, names),
        "confused_pairs": figures.confused_pairs(confusion, names=names),
        "confidence_histogram": figures_confidence.confidence_histogram(labels, probabilities),
        "reliability_diagram": figures_confidence.reliability_diagram(labels, probabilities),
        "roc": figures_confidence.roc(labels, probabilities, names),
        "precision_recall": figures_confidence.precision_recall(labels, probabilities, names),
    }
    chosen = {
        "misclassified": figures.choose_misclassified(labels, probabilities),
        "samples": figures.choose_samples(labels, probabilities),
    }
    if robustness is not None:
        metrics["robustness"] = dict(robustness)
        drawn["robustness"] = figures_robustness.robustness(robustness, metrics["accuracy"])
    if history:
        drawn["curves"] = figures.curves(history)
    galleries = {name: figures.gallery(*choice, test, names) for name, choice in chosen.items()}
    pngs = {name: figures.png(figure) for name, figure in (drawn | galleries).items()}
    shown: dict[str, Any] = {name: figures.svg(drawn[name]) for name in drawn.keys() - NOT_ON_PAGE}
    shown |= {name: (heading, list(_tiles(rows, test, names))) for name, (heading, rows) in chosen.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if robustness is None:
        (folder / "robustness.png").unlink(missing_ok=True)  # of an earlier test
    for name, png in pngs.items():
        write_atomic(folder / f"{name}.png", png)
    # A file name or a record may hold characters that UTF-8 cannot encode.
    write_atomic(folder / "index.html", index_html(title, metrics, shown, record).encode(errors="replace"))
    write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics, pngs


def _tiles(rows: Labels, test: Test, names: Sequence[str]) -> Iterator[tuple[str, str, str, float]]:
    """Yield the image of each row as PNG in base64, its true and its predicted class, and the confidence."""
    images, labels, probabilities = test
    for row, predicted, confidence in zip(rows, *decide(probabilities[rows]), strict=True):
        yield png_base64(images[row]), names[labels[row]], names[predicted], confidence


def index_html(title: str, metrics: Mapping[str, Any], figures: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return the report as an HTML page that contains its figures and its style.

    Args:
        title: The heading of the page.
        metrics: The content of ``metrics.json``.
        figures: SVG files, and the heading and tiles of galleries; the page leaves out sections without any.
        record: The content of the run's ``run.json``; the page leaves out missing fields.
    """
    confusion = np.array(metrics["confusion_matrix"])
    names = metrics["class_names"]
    return render(
        "page.html",
        title=title,
        metrics=metrics,
        shown={name: b64encode(it).decode() if isinstance(it, bytes) else it for name, it in figures.items()},
        names=names,
        noun=noun(names),
        mistakes=frequent_mistakes(confusion, 10),
        num_wrong=int(confusion.sum() - confusion.trace()),
        record={name: value for name, value in record.items() if value is not None},
    )
