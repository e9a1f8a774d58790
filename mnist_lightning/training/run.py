"""A run: the folder that ``fit`` writes, its data and its trained network."""

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import nn

from mnist_lightning.classifier import DigitClassifier, load_weights, read_checkpoint
from mnist_lightning.data.augmentation import Augmentation
from mnist_lightning.data.base import SPLIT, DigitDataModule
from mnist_lightning.data.kaggle import Kaggle
from mnist_lightning.data.torchvision import MNIST
from mnist_lightning.errors import InputError
from mnist_lightning.export.read import read_foreign
from mnist_lightning.files import check_writable, open_atomic
from mnist_lightning.models.classify import classify
from mnist_lightning.models.ensemble import Ensemble, TestTimeAugmentation
from mnist_lightning.report.display import show_run
from mnist_lightning.settings import from_settings, plain, to_settings
from mnist_lightning.training.callbacks import ReportWriter, gather, versions
from mnist_lightning.training.loggers import TensorBoardRunLogger, read_history
from mnist_lightning.training.runs import LOG_DIR, kept_checkpoint, newest_first, read_config, read_json

FILES = ("data_dir", "mirrors")  # arguments that say where MNIST's files come from
UNKNOWN: Mapping[str, Any] = {"dataset": None}  # of weights that do not say what they were trained on


class Predictions(NamedTuple):
    """A network's predictions for N images."""

    digits: NDArray[np.int64]  # (N,)
    confidences: NDArray[np.float32]  # (N,), the probability of each digit
    probabilities: NDArray[np.float32]  # (N, 10)


class Run:
    """A trained network, its data and its folder: ``fit`` and ``load_run`` return one.

    Args:
        folder: The run folder, where results are written.
        checkpoint: The file that the weights were read from; None if nothing was saved.
        model: The classifier, with these weights. It is put into evaluation mode.
        data: The data; by default those in the run's ``config.yaml``.
        variant: What its results are called besides the run's own, such as ``_tta8``; empty for these.
        trained_on: The data and splits that the weights have learnt from; ``dataset`` is None for those not known.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Path | None,
        model: DigitClassifier,
        data: DigitDataModule | None = None,
        variant: str = "",
        trained_on: Sequence[Mapping[str, Any]] = (UNKNOWN,),
    ) -> None:
        self.folder, self.checkpoint, self.model = folder, checkpoint, model.eval()
        self.variant, self.trained_on = variant, trained_on
        self.written: list[Path] = []  # by the last test or predict
        if data is not None:
            self.data = data

    @cached_property
    def data(self) -> DigitDataModule:
        """The data module, without the augmentation: that is for training only."""
        settings = self._data_settings()
        if not settings:
            raise InputError(f"{self.folder / 'config.yaml'} has no data settings: give data to load_run")
        arguments = {**(settings.get("init_args") or {}), "augmentation": None}
        data: DigitDataModule = from_settings({**settings, "init_args": arguments}, trusted=True)
        return data

    def _data_settings(self) -> dict[str, Any]:
        path = self.folder / "config.yaml"
        settings = read_config(path).get("data") if path.is_file() else None
        return settings if isinstance(settings, dict) else {}

    def results_name(self) -> str:
        """Return what is added to the names of results: they stand beside those of other data, never in their place.

        It is empty for the run's own data. Data are others if their class is, or one of the arguments that only this
        class has, such as a folder; MNIST's files are the same in every folder.
        """
        name, own = type(self.data).__name__, self._data_settings()
        if not own:  # the folder is no run's: the first results are those without a name
            first = read_json(self.folder / "report" / "metrics.json").get("dataset", name)
            own = {"class_path": f".{first}"}
        given, now = own.get("init_args") or {}, to_settings(self.data, lossy=True) or {}
        free = {*inspect.signature(DigitDataModule).parameters, *(FILES if isinstance(self.data, MNIST) else ())}
        fixed = {key: value for key, value in now.get("init_args", {}).items() if key in given.keys() - free}
        is_own = own["class_path"].endswith(f".{name}") and all(given[key] == value for key, value in fixed.items())
        return self.variant if is_own else f"_{name}{self.variant}"

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``; empty if there is none, or a damaged one."""
        return read_json(self.folder / "run.json")

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``: a mapping from metric to value for each step that logged anything."""
        rows = read_history(self.folder / "metrics.csv")
        return [{name: float(cell) for name, cell in row.items() if cell} for row in rows]

    @property
    def best_val_acc(self) -> float | None:
        """The best validation accuracy, in [0, 1]; None before the first validation."""
        return self.record.get("best_val_acc")

    def _repr_html_(self) -> str:
        record = {"network": type(self.model.net).__name__, **self.record}
        return show_run(self.folder, record, read_json(self.folder / "report" / "metrics.json").get("accuracy"))

    def validate(self, **trainer_kwargs: Any) -> dict[str, float]:
        """Measure the validation images: their ``accuracy`` in [0, 1] and ``loss`` in nats.

        Args:
            **trainer_kwargs: Arguments of Lightning's Trainer.
        """
        trainer = self._trainer(trainer_kwargs)
        trainer.validate(self.model, datamodule=self.data, verbose=False)
        accuracy, loss = (trainer.callback_metrics[name].item() for name in ("val/acc", "val/loss"))
        return {"accuracy": accuracy, "loss": loss}

    def test(
        self, *, robustness: bool = False, output: str | Path | None = None, **trainer_kwargs: Any
    ) -> dict[str, Any]:
        """Measure the test images, and write ``report/``, or for other data than the run's ``report_<dataset>/``.

        Args:
            robustness: Measure moved, rotated, noisy, blurred, thicker and thinner test images too.
            output: A folder for the results, instead of the run's.
            **trainer_kwargs: Arguments of Lightning's Trainer. With ``fast_dev_run`` nothing is written.

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

    def predict(self, images: Any = None, *, output: str | Path | None = None, **trainer_kwargs: Any) -> Predictions:
        """Classify images; or without any, the data's test images, and write ``predictions.csv``.

        Those of other data than the run's are ``predictions_<dataset>.csv``.

        Args:
            images: ``(N, 28, 28)`` or ``(N, 1, 28, 28)``, white on black: uint8, or float in [0, 1].
            output: A folder for the results, instead of the run's.
            **trainer_kwargs: Arguments of Lightning's Trainer, for the test images.

        Raises:
            InputError: If the images have another shape, or the folder cannot be written to.
        """
        if images is not None:
            self.model.setup("predict")
            return _decide(classify(self.model.net, images))
        folder = check_writable(Path(output or self.folder))
        trainer = self._trainer(trainer_kwargs)
        parts: Any = trainer.predict(self.model, datamodule=self.data)
        predictions = _decide(gather(parts, trainer.world_size))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(predictions, folder)
        return predictions

    def recognize(self, pictures: Any) -> Any:
        """Find and classify the digits in pictures, as ``mnist_lightning.recognize`` does."""
        from mnist_lightning.pictures.recognize import recognize  # here, since OpenCV takes a while to import

        return recognize(self.model.net, pictures)

    def export(self, path: str | Path, *, logits: bool = False, quantize: bool = False) -> list[Any]:
        """Write the network to one file of another format, and check it, as ``mnist_lightning.export.write`` does.

        The validation images are compared, or the test images if nothing was validated.

        Args:
            path: The file: ``.onnx``, ``.safetensors``, ``.keras`` or ``.pt2``.
            logits: Whether the file gives logits instead of probabilities.
            quantize: Whether an ONNX file computes with 8-bit integers, calibrated on a thousand training images.

        Returns:
            A row of measurements for the network, one for the file, and between them one before ``quantize``.

        Raises:
            InputError: If the format or the network cannot be written.
            ExportError: If the file's probabilities differ by more than 1e-5; nothing is left behind.
        """
        from mnist_lightning.export.write import export  # here, since torch.export takes a while to import

        check_writable(Path(path).parent)
        self.data.prepare_data()
        self.data.setup(None if quantize else "validate" if self.data.val_fraction else "test")
        digits = self.data.val_set if self.data.val_fraction else self.data.test_set
        assert digits is not None
        where = (
            f"{len(digits):,} {'validation' if self.data.val_fraction else 'test'} images of {type(self.data).__name__}"
        )
        texts = {"data": self.record.get("dataset"), "accuracy_on": where, "versions": json.dumps(versions())}
        chosen = self.data.train_set.arrays(slice(1000))[0] if quantize and self.data.train_set else None
        return export(self.model.net, path, *digits.arrays(), logits=logits, metadata=texts, calibration=chosen)

    def _trainer(self, given: dict[str, Any], *callbacks: Callback, logs: bool = False) -> L.Trainer:
        step = self.record.get("global_step")
        own = [TensorBoardRunLogger(self.folder, final_step=step if isinstance(step, int) else 0)] if logs else []
        loggers = all_loggers(given.pop("logger", None), own)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        every = [*callbacks, *as_list(given.pop("callbacks", None))]
        return L.Trainer(**quiet | plain(given) | {"default_root_dir": self.folder}, callbacks=every, logger=loggers)

    def _write(self, predictions: Predictions, folder: Path) -> None:
        number, name = np.arange(len(predictions.digits)), self.results_name().removesuffix(self.variant)
        header = "index,digit,confidence," + ",".join(f"p{digit}" for digit in range(10))
        tables: dict[str, Any] = {f"predictions{name}.csv": (header, [number, *predictions])}
        if isinstance(self.data, Kaggle):
            tables[f"submission{name}.csv"] = ("ImageId,Label", [number + 1, predictions.digits])
        folder.mkdir(parents=True, exist_ok=True)
        self.written = [folder / table for table in tables]
        for path, (header, columns) in zip(self.written, tables.values(), strict=True):
            with open_atomic(path) as file:  # nine digits keep a float32 exactly
                table = np.column_stack([column.astype(np.float64) for column in columns])
                np.savetxt(file, table, fmt="%.9g", delimiter=",", header=header, comments="")


def _decide(probabilities: NDArray[np.float32]) -> Predictions:
    return Predictions(probabilities.argmax(axis=1), probabilities.max(axis=1), probabilities)


def as_list(value: Any) -> list[Any]:
    """Return a list of None, one value or several values."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def all_loggers(given: Any, own: list[Any]) -> Any:
    """Return the Trainer's loggers: the run's and the given ones; none if False is given."""
    return False if given is False else own + [logger for logger in as_list(given) if logger is not True] or False


def config_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return the settings of the run that a checkpoint file is part of; None if it lies outside a run folder."""
    path = checkpoint.parent.parent / "config.yaml"
    return read_config(path) if checkpoint.parent.name == "checkpoints" and path.is_file() else None


def find_checkpoint(path: str | Path | None, which: str = "best", log_dir: str | Path = LOG_DIR) -> Path:
    """Return the checkpoint file for a path.

    Args:
        path: A run folder, a checkpoint file, ``best`` or ``last`` of the newest run, or None for the newest run that
            has a checkpoint.
        which: The checkpoint of a run folder: ``last``, or ``best``, which is the last one if there is no best one.
        log_dir: The folder of runs.

    Raises:
        InputError: If there is no such checkpoint.
    """
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
    raise InputError(f"no run with {which}.ckpt in {log_dir}: train one first, python -m mnist_lightning fit")


def find_last(path: str | Path, log_dir: str | Path = LOG_DIR) -> Path:
    """Return the ``last.ckpt`` of a run folder, or of the newest run for ``last``.

    Raises:
        InputError: If there is no such run.
    """
    file = find_checkpoint(path, "last", log_dir)
    if file.name != "last.ckpt" or config_of(file) is None:
        raise InputError(f"only a run can be resumed: give 'last' or a run folder, got {path}")
    return file


def load_run(
    path: str | Path | Sequence[str | Path] | None = None,
    *,
    net: nn.Module | None = None,
    data: DigitDataModule | None = None,
    log_dir: str | Path = LOG_DIR,
    tta: int = 0,
) -> Run:
    """Load a run with its best checkpoint, or a file that ``export`` wrote; or several of these as one, an ensemble.

    A run folder is trusted: its ``config.yaml`` may name any class. A checkpoint file elsewhere is not: it is read as
    weights and plain values, and may name only networks of torch and of this package. Its results are
    written to ``<log_dir>/<name>.results``. An ``.onnx`` file is computed by ONNX Runtime.

    Args:
        path: A run folder, a checkpoint, ``.safetensors`` or ``.onnx`` file, or ``best`` or ``last`` of the newest run;
            by default the newest run. A list of these makes an ensemble with the first one's data, and results in
            ``<log_dir>/<names>.results``.
        net: The network, for a checkpoint or safetensors file that does not say which one it is for.
        data: The data; by default the run's own.
        log_dir: The folder of runs.
        tta: Number of random views of each image whose probabilities are averaged with the image's own (test-time
            augmentation). The run's own augmentation makes them, or the default one.

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
    config = config_of(file)
    folder = Path(log_dir) / f"{file.stem}.results" if config is None else file.parent.parent
    own = (config or {}).get("model")
    settings = own.get("net") if isinstance(own, dict) else None
    if file.suffix in (".keras", ".h5"):
        raise InputError(f"{file} is a Keras file: make a run of it, python -m mnist_lightning import {file}")
    checkpoint = None if file.suffix == ".onnx" else read_checkpoint(file)
    if checkpoint is None:
        net = read_foreign(file)
    elif net is None:
        net = from_settings(settings or checkpoint["hyper_parameters"].get("net"), trusted=bool(settings))
        if not isinstance(net, nn.Module):
            raise InputError(f"{file} does not name its network: in Python, load_run(path, net=...)")
    model = DigitClassifier(net)
    if checkpoint is not None:
        load_weights(model, checkpoint, file)
    if tta:
        settings = ((config or {}).get("data") or {}).get("init_args") or {}
        augment = from_settings(settings.get("augmentation"), trusted=True)
        own = isinstance(augment, nn.Module)  # not None, and not the text for one without plain settings
        model.net = TestTimeAugmentation(net, augment if own else Augmentation(), tta)
    variant = f"_{file.stem}" if config is not None and file != kept_checkpoint(folder) else ""
    variant += f"_tta{tta}" if tta else ""
    return Run(folder, file, model, data, variant, trained_on(file, checkpoint))


def trained_on(file: Path, checkpoint: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """Return the data and splits that the weights in a file have learnt from, also by their start and their teachers.

    Args:
        file: The file.
        checkpoint: Its content; None for a network of another runtime.
    """
    with suppress(KeyError, TypeError, AttributeError):  # the file is not trusted
        found = (checkpoint or {})["callbacks"]["RunRecord"]["trained_on"]
        return [{"dataset": each["dataset"], **each} for each in found]
    data = (config_of(file) or {}).get("data")
    if isinstance(data, dict):  # of a run that was imported, or trained by an earlier version
        given = data.get("init_args") or {}
        split = {name: given[name] for name in SPLIT if name in given}
        return [{"dataset": str(data.get("class_path")).rpartition(".")[2], **split}]
    return [UNKNOWN]
