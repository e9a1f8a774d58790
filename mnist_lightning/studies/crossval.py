"""Cross-validation: each training image is predicted by networks that were not trained on it."""

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from mnist_lightning.data.base import DigitDataModule, Digits
from mnist_lightning.errors import InputError
from mnist_lightning.report.metrics import decide
from mnist_lightning.studies.train import refuse, refuse_seen_images, shared_settings, study_folder, train_all
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
    stratified: bool | None = None,
    split_seed: int | None = None,
    seed: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> CrossValidation:
    """Train on all folds but one, for each fold, and predict the images of the one that is left out.

    Each fold is a run of its own in ``lightning_logs/NAME``; finished ones are read, stopped ones are resumed. The
    best epoch of a run is chosen on the fold that is left out, so the accuracies are a little too high.

    Args:
        flags: Those of ``fit``, such as ``["--config", "configs/fast.yaml"]``.
        name: Name of the folder.
        folds: Number of folds, at least 2.
        repeats: How often the images are divided into folds, each time in another way.
        stratified: Whether each fold has the same share of each digit; by default what the flags say.
        split_seed: Seed of the first division, the next ones have the next seeds; by default that of the flags.
        seed: Seed of the first fold's run, the next ones have the next seeds; by default that of the flags.
        callbacks: Lightning callbacks of each run.

    Raises:
        InputError: If an argument is invalid, or the flags say something that a fold would overrule.
    """
    if folds < 2 or repeats < 1:
        raise InputError(f"folds must be at least 2 and repeats at least 1, got {folds} and {repeats}")
    data, own_seed = _check(flags, folds)
    stratified = data.stratified if stratified is None else stratified
    split_seed = data.split_seed if split_seed is None else split_seed
    variations = _folds(folds, repeats, stratified, split_seed, own_seed if seed is None else seed)
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
    refuse(flags, ["data.train_size"], "a learning curve has the numbers of --train_sizes, so leave it out")
    return {
        size: cross_validate([*flags, "--data.train_size", str(size)], f"{name}_{size}", **arguments).accuracies.ravel()
        for size in sorted(set(sizes))
    }


def _check(flags: Sequence[str], folds: int) -> tuple[DigitDataModule, int]:
    """Refuse settings that a fold would overrule; return the data, and the seed of the runs."""
    instead = "each fold is validated in turn, so leave it out, and use --folds and --stratified"
    refuse(flags, ["data.folds", "data.fold", "data.stratified", "data.val_fraction"], instead)
    cli = shared_settings(flags)
    refuse_seen_images(cli)
    usual = inspect.signature(DigitDataModule).parameters | inspect.signature(type(cli.datamodule)).parameters
    for name, own in {"folds": folds, "fold": 0, "val_fraction": 1 / folds}.items():
        if (value := cli.config.data.init_args.get(name, own)) not in (own, usual[name].default):
            raise InputError(f"data.{name} {value} would be overruled: {instead}")
    return cli.datamodule, cli.config_init.seed_everything


def _folds(folds: int, repeats: int, stratified: bool, split_seed: int, seed: int) -> dict[str, list[str]]:
    """Return the name and the flags of each fold's run."""
    return {
        f"repeat_{repeat}_fold_{fold}": [
            *("--data.folds", str(folds), "--data.fold", str(fold), "--data.split_seed", str(split_seed + repeat)),
            *("--data.stratified", str(stratified).lower(), "--seed_everything", str(seed + repeat * folds + fold)),
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
