"""What a notebook shows of digits, a run and a test: plain values in, HTML out that suits light and dark themes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_lightning.report.text import noun, number

SHOWN = 60  # digits
# What is shown of run.json and of metrics.json: a name, the key, and the form.
TRAINED = [("network", "network", "{}"), ("data", "dataset", "{}"), ("epochs", "epochs", "{}")]
TRAINED += [("seconds", "fit_seconds", "{:.1f}"), ("best validation accuracy", "best_val_acc", "{:.2%}")]
TESTED = [("accuracy", "accuracy", "{:.2%}"), ("loss", "loss", "{:.4f}"), ("macro F1", "f1_macro", "{:.2%}")]


def show_digits(digits: Sequence[Any], title: str = "") -> str:
    """Return a card for each of the first 60 digits: its pixels, the answer, and a bar for each probability.

    Args:
        digits: Each has a text, ``digit``, ``line``, ``pixels`` (28, 28), ``certain``, ``confidence`` and
            ``probabilities`` (10,). A new line of the page begins a new row of cards.
        title: A heading.
    """
    return _render(title=title, digits=digits[:SHOWN], number=len(digits))


def show_run(folder: Path, record: Mapping[str, Any], test_acc: Any) -> str:
    """Return the results of a run, and its learning curves if it has some.

    Args:
        folder: The run folder.
        record: The content of its ``run.json``; what is missing is left out.
        test_acc: The accuracy of the test images in [0, 1], or None.
    """
    facts = [(name, record.get(key), style) for name, key, style in TRAINED]
    png = curves.read_bytes() if (curves := folder / "curves.png").is_file() else None
    return _render(title=str(folder), facts=[*facts, ("test accuracy", test_acc, "{:.2%}")], png=png)


def show_metrics(metrics: Mapping[str, Any], page: Path) -> str:
    """Return the metrics of a test, overall and per digit, and a link to the page that shows all of them.

    Args:
        metrics: The content of ``metrics.json``.
        page: The report.
    """
    title = f"{metrics['dataset']}, {metrics['num_examples']:,} test images"
    facts = [(name, metrics[key], style) for name, key, style in TESTED]
    heads = [noun(metrics["class_names"]), "images", "accuracy = recall", "precision", "F1"]
    images = [f"{sum(row):,}" for row in metrics["confusion_matrix"]]
    columns = (metrics[name] for name in ("per_digit", "precision_per_digit", "f1_per_digit"))
    shares = ([number(share, ".2%") for share in column] for column in columns)
    table = [*zip(metrics["class_names"], images, *shares, strict=True)]
    return _render(title=title, facts=facts, heads=heads, table=table, page=page)


def _render(**parts: Any) -> str:
    from mnist_lightning.report.html import render  # here, since Jinja takes a while to import

    return render("display.html", **parts)
