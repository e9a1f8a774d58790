"""A run: the folder that ``fit`` writes, its data and its trained network.

The core, 6 of 6. Before: ``training/fit.py`` trains. From here, ``report/`` measures and draws, and
``export/``, ``serve/`` and ``pictures/`` use the network.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import nn

from mnist_lightning.checkpoints import (
    PRETRAINED,
    as_list,
    from_settings,
    load_weights,
    plain,
    read_checkpoint,
)
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.augmentation import Augmentation
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.export.read import read_other_runtime
from mnist_lightning.files import check_writable, read_config, read_json
from mnist_lightning.inference import classify
from mnist_lightning.networks import Ensemble, TestTimeAugmentation
from mnist_lightning.report.results import run_html
from mnist_lightning.report.text import or_na
from mnist_lightning.training.callbacks import ReportWriter, gather
from mnist_lightning.training.loggers import TensorBoardRunLogger, all_loggers, read_history
from mnist_lightning.training.progress import EvaluationBar, with_bar
from mnist_lightning.training.quiet import quiet
from mnist_lightning.training.record import UNKNOWN, class_name, learnt_from, size_of, versions
from mnist_lightning.training.results import name_of_data, write_predictions
from mnist_lightning.training.runs import LOG_DIR, config_of, kept_checkpoint, newest_first

FIRST = 20  # digits that Predictions shows


class Predictions(NamedTuple):
    """A network's predictions for N images."""

    digits: NDArray[np.int64]  # (N,)
    confidences: NDArray[np.float32]  # (N,), the probability of each digit
    probabilities: NDArray[np.float32]  # (N, 10)

    @classmethod
    def of(cls, probabilities: NDArray[np.float32]) -> Self:
        """Return the predictions with probabilities ``(N, 10)``."""
        return cls(probabilities.argmax(axis=1), probabilities.max(axis=1), probabilities)

    def __repr__(self) -> str:
        """Return the first digits, how many there are, and the mean confidence."""
        shown = " ".join(map(str, self.digits[:FIRST]))
        more = " ..." if len(self.digits) > FIRST else ""
        mean = f"{self.confidences.mean():.1%}" if len(self.digits) else "n/a"
        return f"Predictions({len(self.digits):,}: {shown}{more}, mean confidence {mean})"


class Run:
    """A trained network, its data and its folder: ``fit`` and ``load_run`` return one.

    Args:
        folder: The run folder, where results are written.
        checkpoint: The file that the weights were read from; None if nothing was saved.
        model: The classifier, with these weights. It is put into evaluation mode.
        data: The data; by default those in the run's ``config.yaml``.
        variant: What its results are called besides the run's own, such as ``_tta8``; empty for
            these.
        trained_on: The data and splits that the weights have learnt from; ``dataset`` is None for
            those not known.
        config: The content of ``config.yaml``; it is read when it is needed by default.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Path | None,
        model: DigitClassifier,
        data: DigitDataModule | None = None,
        variant: str = "",
        trained_on: Sequence[Mapping[str, Any]] = (UNKNOWN,),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.checkpoint, self.model = folder, checkpoint, model.eval()
        self.variant, self.trained_on = variant, trained_on
        self.written: list[Path] = []  # by the last test or predict
        if data is not None:
            self.data = data
        if config is not None:
            self.config = config

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of ``config.yaml``; empty if there is none."""
        path = self.folder / "config.yaml"
        return read_config(path) if path.is_file() else {}

    @cached_property
    def data(self) -> DigitDataModule:
        """The data module, without the augmentation: that is for training only."""
        settings = self._data_settings()
        if not settings:
            raise InputError(
                f"{self.folder / 'config.yaml'} has no data settings: give data to load_run"
            )
        arguments = {**(settings.get("init_args") or {}), "augmentation": None}
        data: DigitDataModule = from_settings({**settings, "init_args": arguments}, trusted=True)
        return data

    def _data_settings(self) -> dict[str, Any]:
        settings = self.config.get("data")
        return settings if isinstance(settings, dict) else {}

    def results_name(self) -> str:
        """Return what is added to the names of results: of other data, and of a variant."""
        return name_of_data(self.data, self._data_settings(), self.folder) + self.variant

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``; empty if there is none, or a damaged one."""
        return read_json(self.folder / "run.json")

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``: a mapping from metric to value for each logged step."""
        rows = read_history(self.folder / "metrics.csv")
        return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]

    @property
    def best_val_acc(self) -> float | None:
        """The best validation accuracy, in [0, 1]; None before the first validation."""
        return self.record.get("best_val_acc")

    def __repr__(self) -> str:
        """Return the folder, the network, the data and the best validation accuracy."""
        words = [repr(str(self.folder)), type(self.model.net).__name__]
        if dataset := self.record.get("dataset"):
            words.append(f"trained on {dataset}")
        if self.best_val_acc is not None:
            words.append(f"best validation accuracy {self.best_val_acc:.2%}")
        return f"Run({', '.join(words)})"

    def _repr_html_(self) -> str:
        record = {"network": type(self.model.net).__name__, **self.record}
        metrics = read_json(self.folder / "report" / "metrics.json")
        return run_html(self.folder, record, metrics.get("accuracy"))

    @quiet()
    def validate(self, **trainer_kwargs: Any) -> dict[str, float]:
        """Measure the validation images: their ``accuracy`` in [0, 1] and ``loss`` in nats.

        Args:
            **trainer_kwargs: Arguments of Lightning's Trainer.
        """
        trainer = self._trainer(trainer_kwargs)
        trainer.validate(self.model, datamodule=self.data, verbose=False)
        accuracy, loss = (trainer.callback_metrics[name].item() for name in ("val/acc", "val/loss"))
        return {"accuracy": accuracy, "loss": loss}

    @quiet()
    def test(
        self, *, robustness: bool = False, output: str | Path | None = None, **trainer_kwargs: Any
    ) -> dict[str, Any]:
        """Measure the test images, and write ``report/``.

        Other data than the run's have a ``report_<dataset>/``.

        Args:
            robustness: Measure moved, rotated, noisy, blurred, thicker and thinner test images too.
            output: A folder for the results, instead of the run's.
            **trainer_kwargs: Arguments of Lightning's Trainer. With ``fast_dev_run`` nothing is
                written.

        Returns:
            The content of ``metrics.json`` in that folder.

        Raises:
            InputError: If the test images have no labels, or the folder cannot be written to.
        """
        folder, name = check_writable(Path(output or self.folder)), self.results_name()
        writer = ReportWriter(folder / f"report{name}", self.folder, self.record, robustness)
        # TensorBoard has one place for a run's test.
        trainer = self._trainer(trainer_kwargs, writer, logs=output is None and not name)
        trainer.test(self.model, datamodule=self.data, verbose=False)
        self.written = [writer.folder]
        return writer.metrics

    @quiet()
    def predict(
        self, images: Any = None, *, output: str | Path | None = None, **trainer_kwargs: Any
    ) -> Predictions:
        """Classify images; or without any, the data's test images, and write ``predictions.csv``.

        Those of other data than the run's are ``predictions_<dataset>.csv``.

        Args:
            images: ``(N, 28, 28)`` or ``(N, 1, 28, 28)``, white on black: uint8, or float in [0,
                1].
            output: A folder for the results, instead of the run's.
            **trainer_kwargs: Arguments of Lightning's Trainer, for the test images.

        Raises:
            InputError: If the images have another shape, or the folder cannot be written to.
        """
        if images is not None:
            self.model.setup("predict")
            return Predictions.of(classify(self.model.net, images))
        folder = check_writable(Path(output or self.folder))
        trainer = self._trainer(trainer_kwargs)
        parts: Any = trainer.predict(self.model, datamodule=self.data)
        predictions = Predictions.of(gather(parts, trainer.world_size))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            name = self.results_name().removesuffix(self.variant)
            self.written = write_predictions(folder, predictions, self.data, name)
        return predictions

    def recognize(self, pictures: Any, single: bool = False) -> Any:
        """Find and classify the digits in pictures, as ``mnist_lightning.recognize`` does."""
        # Here, since OpenCV takes a while to import.
        from mnist_lightning.pictures.recognize import recognize

        return recognize(pictures, self.model.net, single)

    def export(
        self, path: str | Path, *, logits: bool = False, quantize: bool = False
    ) -> list[Any]:
        """Write the network to one file of another format, check it, and write its model card.

        The validation images are compared, or the test images if nothing was validated.

        Args:
            path: The file: ``.onnx``, ``.safetensors``, ``.keras`` or ``.pt2``.
            logits: Whether the file gives logits instead of probabilities.
            quantize: Whether an ONNX file computes with 8-bit integers, calibrated on a thousand
                training images.

        Returns:
            A row of measurements for the network, one for the file, and between them one before
            ``quantize``.

        Raises:
            InputError: If the format or the network cannot be written.
            ExportError: If the file's probabilities differ by more than 1e-5; nothing is left
                behind.
        """
        # Here, since torch.export takes a while to import.
        from mnist_lightning.export.write import export

        check_writable(Path(path).parent)
        data = self.data
        stage, part = ("validate", "validation") if data.val_fraction else ("test", "test")
        data.prepare_data()
        data.setup(None if quantize else stage)
        digits = data.val_set if data.val_fraction else data.test_set
        assert digits is not None
        texts = {
            "data": self.record.get("dataset"),
            "accuracy_on": f"{len(digits):,} {part} images of {type(data).__name__}",
            "trained_on": json.dumps(self.trained_on),
            "versions": json.dumps(versions()),
        }
        chosen = None
        if quantize and data.train_set:
            chosen, _ = data.train_set.arrays(slice(1000))
        rows = export(
            self.model.net,
            path,
            *digits.arrays(),
            logits=logits,
            metadata=texts,
            calibration=chosen,
        )
        written = rows[-1]
        self.write_card(
            path,
            f"The file was compared with the network on {texts['accuracy_on']}: {written.equal:,} "
            f"get the same answer. Its accuracy there: {or_na(written.accuracy, '.2%')}.",
        )
        return rows

    def write_card(self, path: str | Path, checked: str = "") -> Path:
        """Write the model card of an exported file beside it: ``digits.onnx.md``.

        It has Hugging Face's format. The test accuracy and the robustness are in it if ``test`` has
        measured them.

        Args:
            path: The file, which ``export`` has written.
            checked: A sentence that says how the file was compared with the network.

        Returns:
            The path of the card.
        """
        # Here, since Jinja takes a while to import.
        from mnist_lightning.report.card import write_card

        net = self.model.net
        record = {"network": class_name(net), **size_of(net), **self.record}
        metrics = read_json(self.folder / f"report{self.results_name()}" / "metrics.json")
        names = self.data.class_names
        return write_card(Path(path), record, self.trained_on, metrics, names, checked)

    def _trainer(
        self, given: dict[str, Any], *callbacks: Callback, logs: bool = False
    ) -> L.Trainer:
        own = []
        if logs:
            step = self.record.get("global_step")
            step = step if isinstance(step, int) else 0
            own.append(TensorBoardRunLogger(self.folder, final_step=step))
        all_callbacks = [*callbacks, *as_list(given.get("callbacks"))]
        bar_is_wanted = given.get("enable_progress_bar")
        given = {
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **plain(given),
            "default_root_dir": self.folder,
            "callbacks": with_bar(all_callbacks, EvaluationBar(), bar_is_wanted),
            "logger": all_loggers(given.get("logger"), own),
        }
        return L.Trainer(**given)


def find_checkpoint(
    path: str | Path | None, which: str = "best", log_dir: str | Path = LOG_DIR
) -> Path:
    """Return the checkpoint file for a path.

    Args:
        path: A run folder, a checkpoint file, ``best`` or ``last`` of the newest run,
            ``pretrained`` for the network of this package, or None for the newest run that has a
            checkpoint.
        which: The checkpoint of a run folder: ``last``, or ``best``, which is the last one if there
            is no best one.
        log_dir: The folder of runs.

    Raises:
        InputError: If there is no such checkpoint.
    """
    if path == "pretrained":
        return PRETRAINED
    if path in ("best", "last"):
        which, path = str(path), None
    if path is not None and not Path(path).is_dir():
        if Path(path).is_file():
            return Path(path)
        raise InputError(f"no checkpoint at {path}: give a run folder or a checkpoint file")
    folders = [folder for folder, _ in newest_first(log_dir)] if path is None else [Path(path)]
    files = [kept_checkpoint(folder, which) for folder in folders]
    if found := next(filter(None, files), None):
        return found
    if path is not None:
        what = "last.ckpt" if which == "last" else "checkpoint"
        raise InputError(f"no {what} in {path}: give a run folder or a checkpoint file")
    raise InputError(
        f"no run with {which}.ckpt in {log_dir}: train one first, python -m mnist_lightning fit, "
        "or name the network of this package: pretrained"
    )


def load_run(
    path: str | Path | Sequence[str | Path] | None = None,
    *,
    net: nn.Module | None = None,
    data: DigitDataModule | None = None,
    log_dir: str | Path = LOG_DIR,
    tta: int = 0,
) -> Run:
    """Load a run with its best checkpoint, or a file that ``export`` wrote.

    Several of these are one run, an ensemble.

    A run folder is trusted: its ``config.yaml`` may name any class. A checkpoint file elsewhere is
    not: it is read as weights and plain values, and may name only networks of torch and of this
    package. Its results are written to ``<log_dir>/<name>.results``. An ``.onnx`` file is computed
    by ONNX Runtime.

    Args:
        path: A run folder, a checkpoint, ``.safetensors`` or ``.onnx`` file, ``best`` or ``last``
            of the newest run, or ``pretrained`` for the network of this package; by default the
            newest run. A list of these makes an ensemble with the first one's data, and results in
            ``<log_dir>/<names>.results``.
        net: The network, for a checkpoint or safetensors file that does not say which one it is
            for.
        data: The data; by default the run's own.
        log_dir: The folder of runs.
        tta: Number of random views of each image whose probabilities are averaged with the image's
            own (test-time augmentation). The run's own augmentation makes them, or the default one.

    Raises:
        InputError: If there is no such run, or its checkpoint cannot be used.
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        runs = [load_run(each, net=net, data=data, log_dir=log_dir, tta=tta) for each in path]
        names = "+".join(run.folder.name for run in runs)
        with suppress(InputError):  # exported files have none
            data = data or runs[0].data
        folder = Path(log_dir) / f"{names:.100}.results"
        seen = [each for run in runs for each in run.trained_on]
        return Run(folder, None, DigitClassifier(Ensemble(runs)), data, runs[0].variant, seen)
    file = find_checkpoint(path, "best", log_dir)
    if file.suffix in (".keras", ".h5"):
        raise InputError(
            f"{file} is a Keras file: make a run of it, python -m mnist_lightning import {file}"
        )
    config = config_of(file)
    checkpoint = None if file.suffix == ".onnx" else read_checkpoint(file)
    if checkpoint is None:
        net = read_other_runtime(file)
    elif net is None:
        net = _described_net(file, config, checkpoint)
    model = DigitClassifier(net)
    if checkpoint is not None:
        load_weights(model, checkpoint, file)
    if tta:
        data_settings = (config or {}).get("data") or {}
        arguments = data_settings.get("init_args") or {}
        augment = from_settings(arguments.get("augmentation"), trusted=True)
        if not isinstance(augment, nn.Module):  # none, or one that settings cannot describe
            augment = Augmentation()
        model.net = TestTimeAugmentation(net, augment, tta)
    variant = f"_tta{tta}" if tta else ""
    trained_on = learnt_from(checkpoint, config)
    if config is None:  # a file that is part of no run
        return Run(Path(log_dir) / f"{file.stem}.results", file, model, data, variant, trained_on)
    folder = file.parent.parent
    if file != kept_checkpoint(folder):
        variant = f"_{file.stem}{variant}"
    return Run(folder, file, model, data, variant, trained_on, config)


def _described_net(
    file: Path, config: Mapping[str, Any] | None, checkpoint: Mapping[str, Any]
) -> nn.Module:
    """Return the network that a run's settings describe, which are trusted, or its checkpoint."""
    model_settings = (config or {}).get("model")
    settings = model_settings.get("net") if isinstance(model_settings, dict) else None
    described = settings or checkpoint["hyper_parameters"].get("net")
    net = from_settings(described, trusted=bool(settings))
    if not isinstance(net, nn.Module):
        raise InputError(f"{file} does not name its network: in Python, load_run(path, net=...)")
    return net
