"""The report of a test as one web page that needs nothing beside itself."""

import base64
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined

from mnist_lightning.evaluation.metrics import DIGITS, frequent_mistakes
from mnist_lightning.evaluation.report import number


class Picture(NamedTuple):
    """What the page says of a figure: what it is, for who does not see it, and what to look for in it."""

    alt: str
    caption: str
    wide: bool = False


class Section(NamedTuple):
    """A part of the page; ``pictures`` maps the names of figures, in order, to what is said of them."""

    anchor: str
    heading: str
    pictures: dict[str, Picture]


# The figures per_digit and confused_pairs are not among them: the page has them as tables.
SECTIONS = (
    Section(
        "confusion",
        "What is taken for what",
        {
            "confusion_counts": Picture(
                "Confusion matrix in numbers of images, rows true, columns predicted",
                "Look for dark cells off the diagonal: each row is a true digit, each column what it was taken for.",
            ),
            "confusion_percent": Picture(
                "Confusion matrix in percent of each true digit, rows true, columns predicted",
                "The same as shares of each row: a row with much colour is a digit that is hard to recognise.",
            ),
        },
    ),
    Section(
        "images",
        "The images themselves",
        {
            "misclassified": Picture(
                "Gallery of misclassified images, each with its true digit, the predicted digit and the confidence",
                "Ask of each whether you would have known better: some are unreadable, some carry a wrong label.",
                wide=True,
            ),
            "samples": Picture(
                "Gallery of the first test images, each with its true digit, the predicted digit and the confidence",
                "What is typical: a frame and a cross mark what is wrong.",
                wide=True,
            ),
        },
    ),
    Section(
        "confidence",
        "Can the confidence be trusted?",
        {
            "confidence_histogram": Picture(
                "Histogram of the confidence of right and of wrong predictions, on a logarithmic scale",
                "Wrong predictions should lie left of the right ones; those at the right edge are sure and wrong.",
            ),
            "reliability_diagram": Picture(
                "Reliability diagram: accuracy over confidence in fifteen bins, and the number of images in each",
                "Bars that end below the dashed line are overconfident; bins of few images say little.",
            ),
        },
    ),
    Section(
        "thresholds",
        "One digit against the rest",
        {
            "roc": Picture(
                "ROC curves of the ten digits, false positive rate on a logarithmic scale",
                "The nearer a curve is to the upper left corner, the better the digit is told from all others.",
                wide=True,
            ),
            "precision_recall": Picture(
                "Precision over recall for each of the ten digits",
                "Where a curve drops, finding more of a digit's images costs false alarms.",
                wide=True,
            ),
        },
    ),
    Section(
        "training",
        "The training",
        {
            "curves": Picture(
                "Accuracy and loss of training and validation over the epochs",
                "Validation that worsens while training improves is overfitting.",
                wide=True,
            ),
        },
    ),
)
# The fields of run.json that tell one run from another, and how they are written.
RUN = {
    "dataset": ("Trained on", "{}"),
    "epochs": ("Epochs", "{}"),
    "global_step": ("Updates", "{:,}"),
    "best_epoch": ("Best epoch (the first is 0)", "{}"),
    "best_val_acc": ("Best validation accuracy", "{:.2%}"),
    "num_parameters": ("Parameters", "{:,}"),
    "seed": ("Seed", "{}"),
    "device": ("Device", "{}"),
    "precision": ("Precision", "{}"),
    "fit_seconds": ("Seconds of training", "{:,.1f}"),
}


def index_html(title: str, metrics: Mapping[str, Any], pngs: Mapping[str, bytes], run: Mapping[str, Any] | None) -> str:
    """Return the report as an HTML page, figures and style within it.

    Args:
        title: What was tested; the page's heading.
        metrics: The content of ``metrics.json``.
        pngs: Figures under the names that ``figures.test_figures`` gives them; those that ``SECTIONS`` lacks are left
            out, and a section without any too.
        run: The content of the checkpoint's ``run.json``, if there is one; what it lacks is left out.
    """
    sections = [
        section._replace(pictures={name: picture for name, picture in section.pictures.items() if name in pngs})
        for section in SECTIONS
    ]
    confusion = np.array(metrics["confusion_matrix"])
    mistakes = frequent_mistakes(confusion, 10)
    facts = {
        label: _written(style, run[name]) for name, (label, style) in RUN.items() if run and run.get(name) is not None
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    template = environment.from_string(
        files("mnist_lightning.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=title,
        metrics=metrics,
        sections=[section for section in sections if section.pictures],
        images={name: base64.b64encode(png).decode() for name, png in pngs.items()},
        digits=DIGITS,
        support=confusion.sum(axis=1).tolist(),
        mistakes=mistakes,
        num_wrong=int(confusion.sum() - confusion.trace()),
        facts=facts,
    )


def _written(style: str, value: object) -> str:
    try:
        return style.format(value)
    except (ValueError, TypeError, OverflowError):  # a record that was edited
        return str(value)[:100]
