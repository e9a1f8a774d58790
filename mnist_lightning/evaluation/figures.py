"""Figures: pure functions from arrays to a matplotlib ``Figure``, without any state of pyplot's."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mnist_lightning.files import write_atomic

# Two of Okabe and Ito's colours, told apart with any colour vision; the line styles tell them apart without colour.
STYLES = {"train": {"color": "#0072B2", "linestyle": "--"}, "val": {"color": "#D55E00", "linestyle": "-"}}
NAMES = {"train": "training", "val": "validation"}


def curves(history: Sequence[Mapping[str, str]]) -> Figure:
    """Draw accuracy and loss of training and validation over the epochs.

    Training figures are means over the epoch, with dropout; validation is measured after it, without. So the
    validation curve may well lie above the training curve.

    Args:
        history: Rows of ``metrics.csv``, at least one; those with any of ``train/acc``, ``train/loss``, ``val/acc``
            (fractions) and ``val/loss`` (nats) are drawn.
    """
    # Validation may run in the middle of an epoch, so a point's place follows from its update.
    first = next((row for row in history if row.get("train/loss")), history[0])
    updates_per_epoch = (int(first["step"]) + 1) / (int(first["epoch"]) + 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric, label in zip(axes, ("acc", "loss"), ("Accuracy", "Loss (cross-entropy, nats)"), strict=True):
        for stage, style in STYLES.items():
            rows = [row for row in history if row.get(f"{stage}/{metric}")]
            if rows:
                epochs = [(int(row["step"]) + 1) / updates_per_epoch for row in rows]
                values = [float(row[f"{stage}/{metric}"]) for row in rows]
                marker = "o" if len(rows) < 30 else None
                axis.plot(epochs, values, label=NAMES[stage], marker=marker, markersize=4, **style)
        axis.set_xlabel("Epochs trained")
        axis.set_title(label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomic(path, image.getvalue())
