"""Figure of a network's robustness to changed images."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mnist_lightning.report.figures import CORRECT

Accuracies = Mapping[str, Mapping[str, float]]
PANELS = {
    "shift": ("Shift", "px, mean of 8 directions"),
    "rotation": ("Rotation", "degrees, mean of both ways"),
    "noise": ("Noise", "std, as a share of white"),
    "blur": ("Blur", "sigma in px"),
    "stroke": ("Stroke width", "px thinner or thicker"),
}


def robustness(accuracies: Accuracies, unchanged: float) -> Figure:
    """Draw accuracy over the strength of each kind of change.

    Args:
        accuracies: The result of ``robustness.robustness``.
        unchanged: The accuracy on the unchanged images, drawn as a dashed line.
    """
    lowest = min(unchanged, *(accuracy for points in accuracies.values() for accuracy in points.values()))
    start = max(start for start in (0.0, 0.5, 0.8, 0.9) if not start or lowest >= start + 0.15 * (1 - start))
    figure = Figure(figsize=(5.2, 8), layout="constrained")
    figure.suptitle(f"Accuracy in % on changed images (unchanged: {100 * unchanged:.1f})")
    axes = figure.subplots(3, 2, sharey=True).flat
    for axis, (kind, (title, unit)) in zip(axes, PANELS.items(), strict=False):
        points = {float(strength): accuracy for strength, accuracy in accuracies[kind].items()}
        line = dict(sorted((points | {0.0: unchanged}).items()))
        axis.axhline(unchanged, color="black", linestyle="--", linewidth=1)
        axis.plot(list(line), list(line.values()), color=CORRECT)
        axis.plot(list(points), list(points.values()), "o", color=CORRECT, markersize=5)
        for place, accuracy in points.items():
            # Below the point and towards 0: the line falls on the other side.
            look: dict[str, Any] = {"ha": "right" if place > 0 else "left", "va": "top", "fontsize": 9}
            axis.annotate(f"{100 * accuracy:.1f}", (place, accuracy), (0, -5), textcoords="offset points", **look)
        axis.set(title=title, xticks=list(points), ylim=(start, 1 + 0.05 * (1 - start)))
        axis.set_xlabel(unit, fontsize=9)
        axis.margins(x=0.12)
        axis.grid(alpha=0.3)
    figure.axes[-1].remove()  # five kinds in six places
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    return figure
