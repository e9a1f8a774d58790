"""Train a network: ``fit`` builds Lightning's Trainer, and makes the run folder."""

import inspect
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from mnist_lightning.classifier import DigitClassifier, load_weights, read_checkpoint
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.settings import is_plain, to_settings
from mnist_lightning.training.callbacks import Freeze, RunRecord
from mnist_lightning.training.fast_loop import use_fast_loop
from mnist_lightning.training.loggers import HistoryLogger, TensorBoardRunLogger
from mnist_lightning.training.progress import EpochLines
from mnist_lightning.training.resume import AtomicCheckpointIO, ResumePoint, seed_all
from mnist_lightning.training.run import Run, all_loggers, as_list, find_checkpoint, find_last, load_run
from mnist_lightning.training.runs import LOG_DIR


def fit(
    model: DigitClassifier,
    data: DigitDataModule,
    *,
    seed: int = 42,
    log_dir: str | Path = LOG_DIR,
    name: str | None = None,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    teacher: Any = None,
    freeze: str | Sequence[str] | None = None,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    **trainer_kwargs: Any,
) -> Run:
    """Train a model, and keep the checkpoint with the best validation accuracy.

    Afterwards the model has the best checkpoint's weights, or the last ones if nothing was validated, and is in
    evaluation mode.

    With a teacher, the network learns the teacher's probabilities for the augmented images instead of the labels.

    Args:
        model: The classifier.
        data: The data module.
        seed: Seed of the data's order, dropout and augmentation. It does not set the network's first weights: call
            ``torch.manual_seed`` before you create the network.
        log_dir: The folder of runs; a relative one is below ``default_root_dir`` if that is given.
        name: The name of the run folder; the next free ``version_N`` by default.
        resume: Continue a run, exactly where its last finished epoch ended: its folder, or ``last`` for the newest.
        init_from: Start with another run's weights: a run folder or a checkpoint file. Layers with another shape
            keep their new weights.
        teacher: A trained network, a run, its folder or a checkpoint file, or a list of these: their probabilities
            are averaged. They cost memory and a forward pass per update; their weights do not change.
        freeze: Layers of the network that keep their weights: names such as ``layers.0``, or patterns such as
            ``layers.1*``.
        config: The content of ``config.yaml``; by default the settings of the objects.
        callbacks: Lightning callbacks. A ModelCheckpoint without a folder replaces the one that saves
            ``best.ckpt``.
        **trainer_kwargs: Other arguments of Lightning's Trainer. Loggers are added to those of the run.

    Raises:
        InputError: If an argument is invalid.
    """
    log_dir = Path(trainer_kwargs.pop("default_root_dir", None) or "") / log_dir
    last = step = trainer = None
    if resume is not None:
        last = find_last(resume, log_dir)
        step = read_checkpoint(last).get("global_step")
        if name or init_from:
            raise InputError(f"a run that is resumed takes no other name and no init_from, got {name or init_from}")
    if init_from is not None:
        copy_weights(model.net, find_checkpoint(init_from, "best", log_dir))
    teachers = as_list(teacher)
    model.teachers = [_network(each, log_dir) for each in teachers]
    with TemporaryDirectory() as scratch:  # fast_dev_run leaves nothing
        is_writer = getattr(rank_zero_only, "rank", 0) == 0  # only rank 0 writes, so only it needs a folder of its own
        root = Path(scratch) if trainer_kwargs.get("fast_dev_run") else log_dir
        folder = last.parent.parent if last else claim(root, name) if is_writer else root / (name or "")
        frozen = as_list(freeze)
        record = RunRecord(folder, seed, config or _config(model, data, seed, teachers, frozen, trainer_kwargs))
        own = [record, *([Freeze(frozen)] if frozen else [])]
        try:
            validates = bool(data.val_fraction)
            trainer = _trainer(folder, seed, step, [*as_list(callbacks), *own], trainer_kwargs, validates)
            with isolate_rng():
                seed_all(seed)
                trainer.fit(model, datamodule=data, ckpt_path=last)
        except BaseException as error:
            # Lightning raises SystemExit after Ctrl-C, which would end a notebook's kernel.
            raised = KeyboardInterrupt() if isinstance(error, SystemExit) else error
            if is_writer:
                _note_or_remove(raised, folder, bool(last or (trainer and trainer.current_epoch)))
            raise raised  # noqa: B904
        folder = Path(trainer.strategy.broadcast(str(folder)))
        saved = [file for which in ("best", "last") if (file := folder / "checkpoints" / f"{which}.ckpt").exists()]
        if saved:
            load_weights(model, read_checkpoint(saved[0]), saved[0])
        return Run(folder, saved[0] if saved else None, model, data)


def _trainer(
    folder: Path, seed: int, step: int | None, callbacks: list[Callback], given: dict[str, Any], validates: bool
) -> L.Trainer:
    """Return Lightning's Trainer with the callbacks and loggers of a run; ``step`` is where a resumed one begins."""
    if given.get("enable_checkpointing") is not False:
        # First, so that it saves at the end before EMAWeightAveraging replaces the weights.
        callbacks = [ResumePoint(folder / "checkpoints" / "last.ckpt", seed), *callbacks]
        best = next((own for own in callbacks if type(own) is ModelCheckpoint and own.dirpath is None), None)
        if best is None:
            best = ModelCheckpoint(monitor="val/acc", mode="max", filename="best", enable_version_counter=False)
            callbacks.append(best)
        best.dirpath = str(folder / "checkpoints")
        if not validates and (best.monitor or "").startswith("val/"):
            callbacks.remove(best)
            given = given | {"enable_checkpointing": any(isinstance(own, ModelCheckpoint) for own in callbacks)}
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if not has_bar and given.get("enable_progress_bar") is not False:
        callbacks = [*callbacks, EpochLines()]
    loggers = [TensorBoardRunLogger(folder, step), HistoryLogger(folder, step)]
    own = {
        "default_root_dir": folder,
        "callbacks": callbacks,
        "logger": all_loggers(given.get("logger"), loggers),
        "plugins": [*as_list(given.get("plugins")), AtomicCheckpointIO()],
    }
    trainer = L.Trainer(**{"max_epochs": 10, "enable_model_summary": False} | given | own)
    use_fast_loop(trainer)
    return trainer


def _note_or_remove(error: BaseException, folder: Path, has_results: bool) -> None:
    """Add a note that says how to resume; or remove a new run folder if an error came in the first epoch."""
    if (folder / "checkpoints" / "last.ckpt").exists() and (has_results or isinstance(error, KeyboardInterrupt)):
        error.add_note(f"To resume: python -m mnist_lightning fit --ckpt_path {folder}")
    elif not has_results:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty
            folder.parent.rmdir()


def claim(log_dir: Path, name: str | None = None) -> Path:
    """Make and return a new run folder: ``name``, or the next free ``version_N``. Two processes never get the same.

    Raises:
        InputError: If it cannot be created, or exists.
    """
    if name is not None and (Path(name).name != name or name in ("best", "last")):
        raise InputError(f"a run's name must be one folder name, and not best or last, got {name}")
    numbers = [int(path.name[8:]) for path in log_dir.glob("version_*") if path.name[8:].isdecimal()]
    free = (f"version_{number}" for number in count(max(numbers, default=-1) + 1))
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        for folder in (log_dir / each for each in ([name] if name else free)):
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise InputError(
            f"cannot make a run folder in {log_dir}: {error.strerror}; choose another --trainer.default_root_dir"
        ) from error
    raise InputError(f"the run {folder} exists: choose another name, or resume it with --ckpt_path {folder}")


def copy_weights(net: nn.Module, path: Path) -> None:
    """Copy the weights of a checkpoint into a network, where names and shapes are the same; print what stays.

    Raises:
        InputError: If the file cannot be read, or no weight fits.
    """
    state = read_checkpoint(path)["state_dict"]
    source = {name.removeprefix("net."): value for name, value in state.items()}
    own = net.state_dict()
    fits = {name: source[name] for name, value in own.items() if name in source and source[name].shape == value.shape}
    if not fits:
        raise InputError(f"no weight in {path} fits this network: give a checkpoint of a similar one")
    net.load_state_dict(fits, strict=False)
    fresh = sorted(own.keys() - fits.keys())
    if fresh and getattr(rank_zero_only, "rank", 0) == 0:
        print(f"Not in {path}, or of another shape, so they keep their new values: {', '.join(fresh)}")


def _network(teacher: Any, log_dir: Path) -> nn.Module:
    if isinstance(teacher, nn.Module):
        return teacher
    return (teacher if isinstance(teacher, Run) else load_run(teacher, log_dir=log_dir)).model.net


def _config(
    model: DigitClassifier,
    data: DigitDataModule,
    seed: int,
    teachers: list[Any],
    frozen: list[str],
    trainer_kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Return ``config.yaml`` of a run that Python began; what is not plain becomes a text that no parser accepts."""
    defaults = inspect.signature(DigitClassifier).parameters
    given = {name: getattr(model, name) for name in ("optimizer", "lr_scheduler") if name not in model.hparams}
    lost = {name: f"<{value!r}>" for name, value in given.items() if value is not defaults[name].default}
    return {
        "seed_everything": seed,
        "teacher": [str(each.folder) if isinstance(each, Run) else f"{each!s:.200}" for each in teachers] or None,
        "freeze": frozen or None,
        "model": dict(model.hparams) | lost,
        "data": to_settings(data, lossy=True),
        "trainer": {name: value for name, value in trainer_kwargs.items() if is_plain(value)},
    }
