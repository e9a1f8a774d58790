"""Test metrics from labels and probabilities: scikit-learn's scores and the calibration error."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# scikit-learn is slow to import, and fit draws its curves without it: the functions that need it
# import it.

Images = NDArray[np.uint8]  # (N, 28, 28), white on black
Labels = NDArray[np.integer]  # (N,), true digits in 0-9
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
# (N, 10), in [0, 1]; those of a diverged network are not finite.
Probabilities = NDArray[np.floating]
Test = tuple[Images, Labels, Probabilities]

DIGITS = range(10)
BINS = 15  # as in Guo et al. 2017 and torchmetrics


def classification(labels: Labels, probabilities: Probabilities) -> dict[str, Any]:
    """Return the metrics of a test as plain numbers and lists.

    Macro metrics are unweighted means over the digits in the labels. A digit that is absent there
    has None, even if it was predicted: it has no recall, and these mistakes already lower the
    recall of the true digits. The accuracy of a digit is its recall. The precision of a digit that
    was never predicted is 0. AUROC compares each digit with the rest, and is None for the only
    digit too. If a probability is not finite, all AUROC values and ``ece`` are None.

    Args:
        labels: True digits ``(N,)`` in 0-9, at least one.
        probabilities: ``(N, 10)`` in [0, 1]; the first of the largest is the predicted digit.

    Returns:
        Fractions in [0, 1]: ``accuracy``, ``precision_macro``, ``recall_macro``, ``f1_macro``,
        ``auroc_macro`` and ``ece``; lists of ten: ``per_digit`` (accuracies),
        ``precision_per_digit``, ``recall_per_digit``, ``f1_per_digit`` and ``auroc_per_digit``; and
        the counts ``confusion_matrix``, ten rows (true) of ten (predicted).
    """
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    predicted, confidence = decide(probabilities)
    correct = predicted == labels
    is_finite = np.isfinite(probabilities).all()
    *scores, images = precision_recall_fscore_support(
        labels, predicted, labels=DIGITS, zero_division=0.0
    )
    precision, recall, f1 = np.where(images, scores, np.array(None)).tolist()
    auroc: list[float | None] = [None] * 10
    for digit, exists in enumerate(has_curves(labels, probabilities)):
        if exists:
            auroc[digit] = float(roc_auc_score(labels == digit, probabilities[:, digit]))
    return {
        "accuracy": float(correct.mean()),
        "precision_macro": _mean(precision),
        "recall_macro": _mean(recall),
        "f1_macro": _mean(f1),
        "auroc_macro": _mean(auroc),
        "ece": calibration_error(*reliability(confidence, correct)) if is_finite else None,
        "per_digit": recall,
        "precision_per_digit": precision,
        "recall_per_digit": recall,
        "f1_per_digit": f1,
        "auroc_per_digit": auroc,
        "confusion_matrix": confusion(labels, probabilities).tolist(),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None, if there are any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def confusion(labels: Labels, probabilities: Probabilities) -> Counts:
    """Return the confusion matrix in counts ``(10, 10)``: rows true, columns predicted."""
    from sklearn.metrics import confusion_matrix

    counts: Counts = confusion_matrix(labels, decide(probabilities)[0], labels=DIGITS)
    return counts


def decide(probabilities: Probabilities) -> tuple[Counts, Floats]:
    """Return the predicted digits ``(N,)`` and their probabilities; of equals the first.

    So does torch's ``max``.
    """
    return probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)


def has_curves(labels: Labels, probabilities: Probabilities) -> list[bool]:
    """Return for each digit whether its ROC and precision-recall curves against the rest exist.

    They exist if all probabilities are finite, and the labels hold both this digit and another.
    """
    finite = bool(np.isfinite(probabilities).all())
    return [finite and 0 < np.mean(labels == digit) < 1 for digit in DIGITS]


def reliability(
    confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS
) -> tuple[Counts, Floats, Floats]:
    """Group predictions by confidence into bins of equal width.

    Bin m of M is ((m - 1) / M, m / M], and the first also holds 0 (Guo et al. 2017, "On Calibration
    of Modern Neural Networks", section 2).

    Args:
        confidence: Probabilities of the predicted digits ``(N,)`` in [0, 1].
        correct: Whether each prediction is correct ``(N,)``.
        bins: Number of bins.

    Returns:
        For each bin the number of predictions, their accuracy and their mean confidence,
        ``(bins,)`` each; all 0 for an empty bin.
    """
    index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    counts = np.bincount(index, minlength=bins)
    divisors = np.maximum(counts, 1)
    accuracy = np.bincount(index, correct, minlength=bins) / divisors
    return counts, accuracy, np.bincount(index, confidence, minlength=bins) / divisors


def calibration_error(counts: Counts, accuracy: Floats, confidence: Floats) -> float:
    """Return the expected calibration error (ECE).

    It is the mean of |accuracy - confidence| over the bins, weighted by the counts.

    Args:
        counts: Number of predictions in each bin ``(bins,)``, from ``reliability``.
        accuracy: Their accuracy ``(bins,)``.
        confidence: Their mean confidence ``(bins,)``.
    """
    return float(np.average(np.abs(accuracy - confidence), weights=counts))
