"""Figures of merit from a confusion matrix: exact, since they come from counts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support


def from_confusion(confusion: NDArray[np.int64]) -> dict[str, Any]:
    """Return accuracy, macro precision, recall and F1, and each digit's accuracy.

    A digit's accuracy is the share of its images that were recognised, which is its recall. What has no examples
    counts as 0.

    Args:
        confusion: Counts ``(10, 10)``, rows true, columns predicted.

    Returns:
        Fractions in [0, 1]: ``accuracy``, ``precision_macro``, ``recall_macro``, ``f1_macro``, and the list
        ``per_digit``.
    """
    digits = np.arange(len(confusion))
    # Each cell is a pair of true and predicted digit that occurred so many times.
    true, predicted = np.repeat(digits, len(digits)), np.tile(digits, len(digits))
    weighted = {"sample_weight": confusion.ravel(), "labels": digits, "zero_division": 0.0}
    precision, recall, f1, _ = precision_recall_fscore_support(true, predicted, **weighted)
    return {
        "accuracy": float(accuracy_score(true, predicted, sample_weight=confusion.ravel())),
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "f1_macro": float(f1.mean()),
        "per_digit": recall.tolist(),
    }
