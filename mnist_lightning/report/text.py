"""The tables that the verbs print."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

DIGIT_NAMES = tuple("0123456789")
# Units of the strengths in a robustness test; the strength of noise is a share of white.
UNITS = {"shift": " px", "rotation": "°", "noise": "", "blur": " px", "stroke": " px"}


def fit_table(record: Mapping[str, Any], folder: str) -> str:
    """Return the results of a training run.

    Args:
        record: The content of ``run.json``; ``best_val_acc`` may be None.
        folder: The run folder.
    """
    rows = {"Epochs": record["epochs"], "Updates": f"{record['global_step']:,}"}
    rows |= {"Seconds": f"{record['fit_seconds']:.1f}", "Run folder": folder}
    if record["best_val_acc"] is not None:
        best = f"{record['best_val_acc']:.2%} in epoch {record['best_epoch'] + 1}"
        rows = {"Best validation accuracy": best, **rows}
    return "\n".join(f"{name:<25} {value}" for name, value in rows.items())


def test_table(metrics: Mapping[str, Any]) -> str:
    """Return the metrics of a test, overall and per digit.

    Args:
        metrics: The content of ``metrics.json``.
    """
    names = metrics["class_names"]
    width = max(5, *map(len, names))
    lines = [
        f"{metrics['dataset']}, {metrics['num_examples']:,} test images",
        f"accuracy {metrics['accuracy']:.2%}   loss {number(metrics['loss'])}   macro: precision "
        f"{metrics['precision_macro']:.2%}   recall {metrics['recall_macro']:.2%}   F1 {metrics['f1_macro']:.2%}",
        f"AUROC {number(metrics['auroc_macro'])} (macro)   calibration error (ECE) {number(metrics['ece'], '.2%')}",
        "",
        f"{noun(names):>{width}}  images  accuracy = recall  precision       F1  most often confused with",
    ]
    columns = (metrics[name] for name in ("per_digit", "precision_per_digit", "f1_per_digit", "confusion_matrix"))
    for digit, (accuracy, precision, f1, row) in enumerate(zip(*columns, strict=True)):
        wrong = [0 if predicted == digit else count for predicted, count in enumerate(row)]
        mistake = f"{names[wrong.index(max(wrong))]} ({max(wrong)}x)" if any(wrong) else "-"
        name, shares = names[digit].rjust(width), [number(share, ".2%") for share in (accuracy, precision, f1)]
        lines.append(f"{name}  {sum(row):>6,}  {shares[0]:>17}  {shares[1]:>9}  {shares[2]:>7}  {mistake}")
    if "robustness" in metrics:
        lines += ["", "accuracy on changed images"]
    for kind, accuracies in metrics.get("robustness", {}).items():
        cells = [f"{strength + UNITS[kind]:>6} {accuracy:>6.1%}" for strength, accuracy in accuracies.items()]
        lines.append(f"{kind:<8} {'   '.join(cells)}")
    return "\n".join(lines)


def description_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the descriptions of several splits, one column each.

    Args:
        splits: The result of ``describe`` for each split's name; "-" replaces unknown counts.
    """
    forms = {"pixel_mean": ".4f", "pixel_std": ".4f", "pixel_min": "d", "pixel_max": "d", "always_zero": ".1%"}
    columns = [["", "images", *(f"digit {digit}" for digit in range(10)), *(name.replace("_", " ") for name in forms)]]
    for name, split in splits.items():
        total, counts = split["num_examples"], split["num_per_digit"]
        shares = ["-"] * 10 if counts is None else [f"{count:,}  {count / total:6.2%}" for count in counts]
        columns.append([name, f"{total:,}", *shares, *(format(split[key], form) for key, form in forms.items())])
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "   ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in zip(*columns, strict=True)
    ]
    lines += ["", "Pixel mean and std are fractions of white; pixel min and max are in 0-255."]
    return "\n".join([*lines, "Always zero is the share of pixel positions that are black in every image."])


def text_table(cells: Sequence[Sequence[str]]) -> str:
    """Return lines of cells in columns that are as wide as their longest cell; the first line has the headings."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def spread(mean: float | None, std: float | None = None) -> str:
    """Return an accuracy in [0, 1] in percent, with its standard deviation if that is known.

    >>> spread(0.9769, 0.0008)
    '97.69 ± 0.08%'
    """
    return "-" if mean is None else f"{mean:.2%}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}%"


def seen_text(seen: int | None, images: int) -> str:
    """Return what it means that validation images were learnt from; empty if none was.

    Args:
        seen: How many; None if it is not known.
        images: The number of validation images.
    """
    if seen is None:
        return "It is not known which images the weights or the teacher have learnt from: the accuracy may be too high."
    if not seen:
        return ""
    return (
        f"The weights or the teacher may have learnt from {seen:,} of the {images:,} validation images: the validation "
        "accuracy is too high."
    )


def noun(class_names: Sequence[str]) -> str:
    """Return what the classes are called: ``digit`` or ``class``."""
    return "digit" if tuple(class_names) == DIGIT_NAMES else "class"


def number(value: float | None, style: str = ".4f") -> str:
    """Return a formatted value, or ``n/a`` for None and for values that are not finite."""
    return "n/a" if value is None or not math.isfinite(value) else format(value, style)
