"""The tables a person reads after ``fit`` and ``test``."""

import math
from collections.abc import Mapping
from typing import Any


def fit_table(run: Mapping[str, Any], folder: str) -> str:
    """Return what a run came to.

    Args:
        run: The content of its ``run.json``.
        folder: The run folder.
    """
    rows = {"Epochs": run["epochs"], "Updates": f"{run['global_step']:,}", "Seconds": f"{run['fit_seconds']:.1f}"}
    if run["best_val_acc"] is not None:
        best = f"{run['best_val_acc']:.2%} in epoch {run['best_epoch']} (the first is 0)"
        rows = {"Best validation accuracy": best, **rows}
    rows["Run folder"] = folder
    return "\n".join(f"{name:<25} {value}" for name, value in rows.items())


def test_table(metrics: Mapping[str, Any]) -> str:
    """Return a test's figures, overall and per digit.

    Args:
        metrics: The content of ``metrics.json``.
    """
    lines = [
        f"{metrics['dataset']}, {metrics['num_examples']:,} test images",
        f"accuracy {metrics['accuracy']:.2%}   loss {number(metrics['loss'])}   macro: precision "
        f"{metrics['precision_macro']:.2%}   recall {metrics['recall_macro']:.2%}   F1 {metrics['f1_macro']:.2%}",
        f"AUROC {number(metrics['auroc_macro'])} (macro)   calibration error (ECE) {number(metrics['ece'], '.2%')}",
        "",
        "digit  images  accuracy = recall  precision       F1  most often taken for",
    ]
    columns = (metrics[name] for name in ("per_digit", "precision_per_digit", "f1_per_digit", "confusion_matrix"))
    for digit, (accuracy, precision, f1, row) in enumerate(zip(*columns, strict=True)):
        wrong = [0 if predicted == digit else count for predicted, count in enumerate(row)]
        mistake = f"{wrong.index(max(wrong))} ({max(wrong)}x)" if any(wrong) else "-"
        lines.append(f"{digit:>5}  {sum(row):>6,}  {accuracy:>17.2%}  {precision:>9.2%}  {f1:>7.2%}  {mistake}")
    return "\n".join(lines)


def number(value: float | None, style: str = ".4f") -> str:
    """Return a figure in a format, or ``n/a`` where there is none: None, or what a diverged network comes to."""
    return "n/a" if value is None or not math.isfinite(value) else format(value, style)
