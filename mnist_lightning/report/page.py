"""The report of a test: metrics, figures, and one self-contained HTML page that shows them."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from mnist_lightning.files import write_atomic
from mnist_lightning.report import figures, figures_confidence, figures_robustness
from mnist_lightning.report.metrics import DIGITS, Images, Labels, Probabilities, classification, frequent_mistakes
from mnist_lightning.report.text import number


def write_report(
    folder: Path,
    title: str,
    dataset: str,
    images: Images,
    labels: Labels,
    probabilities: Probabilities,
    loss: float,
    history: Sequence[Mapping[str, str]],
    record: Mapping[str, Any] | None,
    robustness: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Write the report of a test: one PNG per figure, ``index.html``, and ``metrics.json`` last.

    Args:
        folder: The folder to write to; its parent must exist.
        title: The heading of the page.
        dataset: The name of the data set.
        images: ``(N, 28, 28)``, white on black.
        labels: True digits ``(N,)`` in 0-9, at least one.
        probabilities: ``(N, 10)`` in [0, 1]; those of a diverged network are not finite.
        loss: The mean cross-entropy in nats.
        history: Rows of the run's ``metrics.csv``; without any, the report has no ``curves.png``.
        record: The content of the run's ``run.json``, if there is one.
        robustness: The result of ``robustness.robustness``; without it, the report has no ``robustness.png``.

    Returns:
        The content of ``metrics.json``, and the PNGs under the names of the figures.

    Raises:
        OSError: If the folder cannot be written to.
    """
    metrics = {
        "dataset": dataset,
        "num_examples": len(labels),
        "loss": loss if math.isfinite(loss) else None,
        **classification(labels, probabilities),
    }
    confusion = np.array(metrics["confusion_matrix"])
    drawn = {
        "per_digit": figures.per_digit(metrics),
        "confusion_counts": figures.confusion_counts(confusion),
        "confusion_percent": figures.confusion_percent(confusion),
        "confused_pairs": figures.confused_pairs(confusion),
        "misclassified": figures.misclassified(images, labels, probabilities),
        "samples": figures.samples(images, labels, probabilities),
        "confidence_histogram": figures_confidence.confidence_histogram(labels, probabilities),
        "reliability_diagram": figures_confidence.reliability_diagram(labels, probabilities),
        "roc": figures_confidence.roc(labels, probabilities),
        "precision_recall": figures_confidence.precision_recall(labels, probabilities),
    }
    if robustness is not None:
        metrics["robustness"] = dict(robustness)
        drawn["robustness"] = figures_robustness.robustness(robustness, metrics["accuracy"])
    if history:
        drawn["curves"] = figures.curves(history)
    pngs = {name: figures.png(figure) for name, figure in drawn.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if robustness is None:
        (folder / "robustness.png").unlink(missing_ok=True)  # of an earlier test
    for name, png in pngs.items():
        write_atomic(folder / f"{name}.png", png)
    # A file name or a record may hold characters that UTF-8 cannot encode.
    write_atomic(folder / "index.html", index_html(title, metrics, pngs, record).encode(errors="replace"))
    write_atomic(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics, pngs


def index_html(
    title: str, metrics: Mapping[str, Any], pngs: Mapping[str, bytes], record: Mapping[str, Any] | None
) -> str:
    """Return the report as an HTML page that contains its figures and its style.

    Args:
        title: The heading of the page.
        metrics: The content of ``metrics.json``.
        pngs: Figures under the names of ``write_report``; the page leaves out sections without figures.
        record: The content of the run's ``run.json``, if there is one; the page leaves out missing fields.
    """
    confusion = np.array(metrics["confusion_matrix"])
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "formatted": _formatted}
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title,
        metrics=metrics,
        images={name: base64.b64encode(png).decode() for name, png in pngs.items()},
        digits=DIGITS,
        support=confusion.sum(axis=1).tolist(),
        mistakes=frequent_mistakes(confusion, 10),
        num_wrong=int(confusion.sum() - confusion.trace()),
        record={name: value for name, value in (record or {}).items() if value is not None},
    )


def _formatted(value: object, style: str) -> str:
    try:
        return style.format(value)[:100]
    except (ValueError, TypeError, OverflowError):  # somebody edited the record
        return str(value)[:100]
