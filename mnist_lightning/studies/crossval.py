"""Cross-validation: each training image is predicted by networks that were not trained on it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from mnist_lightning.data.base import Digits
from mnist_lightning.errors import InputError
from mnist_lightning.report.metrics import decide
from mnist_lightning.studies.train import study_folder, train_all
from mnist_lightning.training.run import Run


class CrossValidation(NamedTuple):
    """What networks say about N images that they were not trained on."""

    folder: Path
    accuracies: NDArray[np.float64]  # (repeats, folds), in [0, 1]
    seconds: NDArray[np.float64]  # (repeats, folds), of training
    images: NDArray[np.uint8]  # (N, 28, 28), all training images of the data set
    labels: NDArray[np.int64]  # (N,)
    probabilities: NDArray[np.float64]  # (N, 10), the mean over the repeats
    times_wrong: NDArray[np.int64]  # (N,), from 0 to the number of repeats
    class_names: Sequence[str]

    def suspects(self, top: int = 40) -> NDArray[np.int64]:
        """Return the rows of images that were wrong in every repeat, those with the most confidence first.

        Many of them have a wrong label (Northcutt et al. 2021, "Confident Learning").
        """
        digits, confidences = decide(self.probabilities)
        wrong = np.flatnonzero((self.times_wrong == len(self.accuracies)) & (digits != self.labels))
        return wrong[np.argsort(-confidences[wrong], kind="stable")][:top]


def cross_validate(
    flags: Sequence[str] = (),
    name: str = "crossval",
    *,
    folds: int = 5,
    repeats: int = 1,
    stratified: bool = False,
    split_seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> CrossValidation:
    """Train on all folds but one, for each fold, and predict the images of the one that is left out.

    Each fold is a run of its own in ``lightning_logs/NAME``; finished ones are read, stopped ones are resumed. The
    seed of fold 0 is 42, and each of the others has the next one. The best epoch of a run is chosen on the fold that
    is left out, so the accuracies are a little too high.

    Args:
        flags: Those of ``fit``, such as ``["--config", "configs/fast.yaml"]``.
        name: Name of the folder.
        folds: Number of folds, at least 2.
        repeats: How often the images are divided into folds, each time in another way.
        stratified: Whether each fold has the same share of each digit.
        split_seed: Seed of the first division; the next ones have the next seeds.
        callbacks: Lightning callbacks of each run.

    Raises:
        InputError: If an argument is invalid.
    """
    variations = _folds(folds, repeats, stratified, split_seed)
    accuracies, seconds = np.zeros((2, repeats, folds))
    for index, run in enumerate(train_all(flags, study_folder(flags, name), variations, callbacks)):
        held_out = _held_out(run)
        images, labels = held_out.arrays()
        rows = held_out.rows.numpy()
        if index == 0:
            every = held_out.images.numpy(), np.asarray(held_out.labels)
            probabilities, wrong = np.zeros((len(every[0]), 10)), np.zeros(len(every[0]), dtype=np.int64)
        predicted = run.predict(images)
        probabilities[rows] += predicted.probabilities / repeats
        wrong[rows] += predicted.digits != labels
        accuracies.flat[index], seconds.flat[index] = np.mean(predicted.digits == labels), run.record["fit_seconds"]
    names = run.data.class_names
    return CrossValidation(run.folder.parent, accuracies, seconds, *every, probabilities, wrong, names)


def learning_curve(
    sizes: Iterable[int], flags: Sequence[str] = (), name: str = "learning_curve", **arguments: Any
) -> dict[int, NDArray[np.float64]]:
    """Return for each number of training images the accuracies of all folds, in [0, 1].

    Args:
        sizes: The numbers of training images.
        flags: Those of ``fit``.
        name: How the names of the folders begin: ``NAME_100`` and so on.
        **arguments: The others of ``cross_validate``.
    """
    return {
        size: cross_validate([*flags, "--data.train_size", str(size)], f"{name}_{size}", **arguments).accuracies.ravel()
        for size in sorted(set(sizes))
    }


def _folds(folds: int, repeats: int, stratified: bool, split_seed: int) -> dict[str, list[str]]:
    """Return the name and the flags of each fold's run."""
    if folds < 2 or repeats < 1:
        raise InputError(f"folds must be at least 2 and repeats at least 1, got {folds} and {repeats}")
    return {
        f"repeat_{repeat}_fold_{fold}": [
            *("--data.folds", str(folds), "--data.fold", str(fold), "--data.split_seed", str(split_seed + repeat)),
            *("--data.stratified", str(stratified).lower(), "--seed_everything", str(42 + repeat * folds + fold)),
        ]
        for repeat in range(repeats)
        for fold in range(folds)
    }


def _held_out(run: Run) -> Digits:
    """Return the images that a fold's network was not trained on."""
    run.data.prepare_data()
    run.data.setup("fit")
    assert run.data.val_set is not None
    return run.data.val_set
