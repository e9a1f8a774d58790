"""What a test is judged by, from labels and probabilities: scikit-learn's figures, and the calibration error."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# scikit-learn takes a while to import, and the curves of fit are drawn without it: whoever needs it imports it.

DIGITS = range(10)
BINS = 15  # as many as Guo et al. 2017 and torchmetrics use


def classification(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> dict[str, Any]:
    """Return what ``metrics.json`` says of the predictions, as plain numbers and lists.

    Macro figures are plain means over the digits. A digit's accuracy is the share of its images that were recognised,
    which is its recall. Precision, recall and F1 that would divide by nothing count as 0. AUROC is each digit's
    against the rest: None for a digit that is absent or the only one, and the macro figure is the mean over the
    others. Probabilities that are not finite, a diverged network's, have neither AUROC nor calibration error: all of
    these are None then.

    Args:
        labels: True digits ``(N,)`` in 0-9, at least one.
        probabilities: ``(N, 10)`` in [0, 1]; the first of the largest is the predicted digit.

    Returns:
        Fractions in [0, 1]: ``accuracy``, ``precision_macro``, ``recall_macro``, ``f1_macro``, ``auroc_macro`` and
        ``ece``; lists of ten: ``per_digit`` (accuracies), ``precision_per_digit``, ``recall_per_digit``,
        ``f1_per_digit`` and ``auroc_per_digit``; and the counts ``confusion_matrix``, ten rows (true) of ten
        (predicted).
    """
    from sklearn.metrics import precision_recall_fscore_support

    predicted, confidence = decide(probabilities)
    right = predicted == labels
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=DIGITS, zero_division=0.0)
    auroc = auroc_per_digit(labels, probabilities)
    known = [value for value in auroc if value is not None]
    return {
        "accuracy": float(right.mean()),
        "precision_macro": float(precision.mean()),
        "recall_macro": float(recall.mean()),
        "f1_macro": float(f1.mean()),
        "auroc_macro": float(np.mean(known)) if known else None,
        "ece": calibration_error(*reliability(confidence, right)) if np.isfinite(probabilities).all() else None,
        "per_digit": recall.tolist(),
        "precision_per_digit": precision.tolist(),
        "recall_per_digit": recall.tolist(),
        "f1_per_digit": f1.tolist(),
        "auroc_per_digit": auroc,
        "confusion_matrix": confusion(labels, probabilities).tolist(),
    }


def confusion(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the confusion matrix in counts ``(10, 10)``: rows true, columns predicted."""
    from sklearn.metrics import confusion_matrix

    counts: NDArray[np.int64] = confusion_matrix(labels, decide(probabilities)[0], labels=DIGITS)
    return counts


def decide(probabilities: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the predicted digits ``(N,)``, the first of equals as torch's ``max`` has it, and their probabilities."""
    return probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)


def auroc_per_digit(labels: NDArray[np.integer], probabilities: NDArray[np.floating]) -> list[float | None]:
    """Return the area under each digit's ROC curve against the rest; None where there is no such curve."""
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(probabilities).all():
        return [None for _ in DIGITS]
    return [
        float(roc_auc_score(labels == digit, probabilities[:, digit])) if 0 < np.mean(labels == digit) < 1 else None
        for digit in DIGITS
    ]


def reliability(
    confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Put predictions into bins of equal width by their confidence.

    Bin m of M is ((m - 1) / M, m / M], and the first holds 0 too (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", section 2).

    Args:
        confidence: Probabilities of the predicted digits ``(N,)`` in [0, 1].
        right: Whether each prediction is right ``(N,)``.
        bins: How many bins.

    Returns:
        Each bin's number of predictions, their accuracy and their mean confidence, ``(bins,)`` each; 0 where a bin
        is empty.
    """
    index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    counts = np.bincount(index, minlength=bins)
    rights, confidences = (np.bincount(index, values, minlength=bins) for values in (right, confidence))
    return counts, rights / np.maximum(counts, 1), confidences / np.maximum(counts, 1)


def calibration_error(
    counts: NDArray[np.int64], accuracy: NDArray[np.float64], confidence: NDArray[np.float64]
) -> float:
    """Return the expected calibration error: the mean over all predictions of their bin's |accuracy - confidence|.

    Args:
        counts: What ``reliability`` returns, ``(bins,)`` each.
        accuracy: See ``counts``.
        confidence: See ``counts``.
    """
    return float(np.average(np.abs(accuracy - confidence), weights=counts))


def frequent_mistakes(counts: NDArray[np.integer], top: int) -> list[tuple[int, int, int, float]]:
    """Return the most frequent confusions, the most frequent first.

    Args:
        counts: Confusion matrix ``(10, 10)``, rows true, columns predicted.
        top: How many at most; those that never happened are left out.

    Returns:
        For each the true digit, the predicted digit, how often, and the share of the true digit's images.
    """
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    pairs = [divmod(int(cell), len(counts)) for cell in np.argsort(-wrong, axis=None, kind="stable")[:top]]
    return [
        (true, predicted, int(wrong[true, predicted]), float(wrong[true, predicted] / counts[true].sum()))
        for true, predicted in pairs
        if wrong[true, predicted]
    ]
