"""Cross-validation: each training image is predicted by networks that were not trained on it."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import DigitDataModule, Subset
from mnist_lightning.errors import InputError
from mnist_lightning.report.metrics import decide
from mnist_lightning.studies.train import (
    refuse_seen_images,
    refuse_shared,
    study_folder,
    train_all,
    with_settings,
)
from mnist_lightning.training.run import Run
from mnist_lightning.training.runs import LOG_DIR


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
        """Return the rows of images that were wrong in every repeat, the most confident first.

        Many of them have a wrong label (Northcutt et al. 2021, "Confident Learning").
        """
        digits, confidences = decide(self.probabilities)
        wrong = np.flatnonzero((self.times_wrong == len(self.accuracies)) & (digits != self.labels))
        return wrong[np.argsort(-confidences[wrong], kind="stable")][:top]


def cross_validate(
    model: Callable[[], DigitClassifier],
    data: DigitDataModule,
    *,
    folds: int = 5,
    repeats: int = 1,
    stratified: bool | None = None,
    split_seed: int | None = None,
    seed: int = 42,
    name: str = "crossval",
    log_dir: str | Path = LOG_DIR,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    **arguments: Any,
) -> CrossValidation:
    """Train on all folds but one, for each fold, and predict the images of the one left out.

    Each fold is a run of its own in ``lightning_logs/NAME``; finished ones are read, stopped ones
    are resumed. The best epoch of a run is chosen on the fold that is left out, so the accuracies
    are a little too high.

    Args:
        model: A function that makes the classifier, such as ``lambda: DigitClassifier(MLP())``.
        data: The data module.
        folds: Number of folds, at least 2.
        repeats: How often the images are divided into folds, each time in another way.
        stratified: Whether each fold has the same share of each digit; by default what the data
            module says.
        split_seed: Seed of the first division, the next ones have the next seeds; by default that
            of the data module.
        seed: Seed of the first fold's run, the next ones have the next seeds.
        name: Name of the folder.
        log_dir: The folder of runs.
        config: The content of ``config.yaml``, without the fold; by default the settings of the
            objects.
        callbacks: Lightning callbacks of each run.
        **arguments: Other arguments of ``mnist_lightning.fit``, such as ``max_epochs``.

    Raises:
        InputError: If an argument is invalid, or a fold would overrule what the data module says.
    """
    if folds < 2 or repeats < 1:
        raise InputError(
            f"folds must be at least 2 and repeats at least 1, got {folds} and {repeats}"
        )
    refuse_shared(model, model)
    _refuse_other_folds(data, folds)
    shared = {"model": model, "data": data, **arguments}
    refuse_seen_images(shared)
    first_split = data.split_seed if split_seed is None else split_seed
    runs = {}
    for repeat in range(repeats):
        for fold in range(folds):
            own = {
                "folds": folds,
                "fold": fold,
                "split_seed": first_split + repeat,
                "stratified": data.stratified if stratified is None else stratified,
            }
            own_seed = seed + repeat * folds + fold
            runs[f"repeat_{repeat}_fold_{fold}"] = {
                **shared,
                "data": data.copy_with(**own),
                "seed": own_seed,
                "config": with_settings(config, own_seed, own),
            }
    folder = study_folder(log_dir, name)
    return _gather(train_all(folder, runs, callbacks), folder, (repeats, folds))


def _refuse_other_folds(data: DigitDataModule, folds: int) -> None:
    """Refuse a data module that says something that a fold would overrule."""
    usual = inspect.signature(DigitDataModule).parameters | inspect.signature(type(data)).parameters
    for name, own in {"folds": folds, "fold": 0, "val_fraction": 1 / folds}.items():
        value = getattr(data, name)
        if value not in (own, usual[name].default):
            raise InputError(
                f"data.{name} {value} would be overruled: each fold is validated in turn, so leave "
                "it out, and choose folds and stratified"
            )


def _gather(runs: Iterable[Run], folder: Path, shape: tuple[int, int]) -> CrossValidation:
    """Return what the networks say about the images that they were not trained on.

    Args:
        runs: The run of each fold of each repeat.
        folder: The folder of the study.
        shape: The numbers of repeats and folds.
    """
    accuracies, seconds = np.zeros(shape), np.zeros(shape)
    for index, run in enumerate(runs):
        held_out = _held_out(run)
        images, labels = held_out.arrays()
        rows = held_out.rows.numpy()
        if index == 0:
            every_image, every_label = held_out.images.numpy(), np.asarray(held_out.labels)
            probabilities = np.zeros((len(every_image), 10))
            wrong = np.zeros(len(every_image), dtype=np.int64)
        predicted = run.predict(images)
        probabilities[rows] += predicted.probabilities / shape[0]
        wrong[rows] += predicted.digits != labels
        accuracies.flat[index] = np.mean(predicted.digits == labels)
        seconds.flat[index] = run.record["fit_seconds"]
        names = run.data.class_names
    return CrossValidation(
        folder, accuracies, seconds, every_image, every_label, probabilities, wrong, names
    )


def learning_curve(
    sizes: Iterable[int],
    model: Callable[[], DigitClassifier],
    data: DigitDataModule,
    *,
    name: str = "learning_curve",
    config: str | None = None,
    **arguments: Any,
) -> dict[int, NDArray[np.float64]]:
    """Return for each number of training images the accuracies of all folds, in [0, 1].

    Args:
        sizes: The numbers of training images.
        model: A function that makes the classifier.
        data: The data module.
        name: How the names of the folders begin: ``NAME_100`` and so on.
        config: The content of ``config.yaml``, without the fold and the size.
        **arguments: The others of ``cross_validate``.

    Raises:
        InputError: As ``cross_validate`` does.
    """
    found = {}
    for size in sorted(set(sizes), reverse=True):  # a size that is too large is refused at once
        smaller = data.copy_with(train_size=size)
        changed = with_settings(config, arguments.get("seed", 42), {"train_size": size})
        result = cross_validate(model, smaller, name=f"{name}_{size}", config=changed, **arguments)
        found[size] = result.accuracies.ravel()
    return dict(sorted(found.items()))


def _held_out(run: Run) -> Subset:
    """Return the images that a fold's network was not trained on."""
    run.data.prepare_data()
    run.data.setup("fit")
    assert run.data.val_set is not None
    return run.data.val_set
