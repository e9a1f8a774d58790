"""Train a network: ``fit`` builds Lightning's Trainer, and makes the run folder."""

import inspect
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from mnist_lightning.classifier import DigitClassifier, load_weights, read_checkpoint
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import check_writable
from mnist_lightning.settings import from_settings, is_plain, plain, to_settings
from mnist_lightning.training.callbacks import LOST_AVERAGE, Freeze, RunRecord, check_same
from mnist_lightning.training.fast_loop import use_fast_loop
from mnist_lightning.training.loggers import HistoryLogger, TensorBoardRunLogger
from mnist_lightning.training.progress import EpochLines
from mnist_lightning.training.resume import AtomicCheckpointIO, ResumePoint, seed_all
from mnist_lightning.training.run import (
    UNKNOWN,
    Run,
    all_loggers,
    as_list,
    find_checkpoint,
    find_last,
    load_run,
    trained_on,
)
from mnist_lightning.training.runs import LOG_DIR, kept_checkpoint, read_config, read_json

# The Trainer's settings that a resumed run may change: length, devices, logging, display, callbacks without a state.
FREE = re.compile(
    r"(max|min)_(epochs|steps|time)|accelerator|devices|num_nodes|strategy|callbacks.*|default_root_dir|logger|profiler|"
    r"log_every_n_steps|num_sanity_val_steps|enable_\w+"
)


def fit(
    model: DigitClassifier | Callable[[], DigitClassifier],
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
        model: The classifier; or a function that makes it, such as ``lambda: DigitClassifier(MLP())``: then the seed
            sets the first weights too, and the command in ``run.json`` repeats the run.
        data: The data module.
        seed: Seed of the data's order, dropout and augmentation. It does not change a classifier that is given.
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
    seed, trainer_kwargs = plain(seed), plain(trainer_kwargs)
    first_weights = "given" if isinstance(model, DigitClassifier) and config is None else "seed"
    if not isinstance(model, nn.Module):
        with isolate_rng():
            torch.manual_seed(seed)
            model = model()
    if not isinstance(model, DigitClassifier):
        raise InputError(f"model must be a DigitClassifier, or a function that makes one, got {type(model).__name__}")
    last = trainer = None
    saved: dict[str, Any] = {}
    if resume is not None:
        last = find_last(resume, log_dir)
        if name or init_from or trainer_kwargs.get("fast_dev_run"):
            got = name or init_from or "fast_dev_run"
            raise InputError(f"a run that is resumed takes no other name and no init_from, got {got}")
        saved, folder = read_checkpoint(last), check_writable(last.parent.parent)
        check_same(read_json(folder / "run.json"), {"seed": seed}, folder)
        check_same(saved.get("hyper_parameters", {}), model.hparams, folder)
        check_same(saved.get("datamodule_hyper_parameters", {}), data.hparams, folder)
        if config is None:
            earlier = read_config(folder / "config.yaml")
            check_same(_fixed(earlier.get("trainer") or {}), _fixed(trainer_kwargs), folder, "trainer.")
            now = {"teacher": _names_of(as_list(teacher)), "freeze": as_list(freeze) or None}
            check_same({"teacher": None, "freeze": None} | earlier, now, folder)
        load_weights(model, saved, last)  # it refuses those of another network
    seen: list[Mapping[str, Any]] = []
    if init_from is not None:
        start = find_checkpoint(init_from, "best", log_dir)
        content = read_checkpoint(start)
        copy_weights(model.net, content, start)
        seen += trained_on(start, content)
    teachers = as_list(teacher)
    model.teachers = []
    for each in teachers:
        taught_by = each if isinstance(each, nn.Module | Run) else load_run(each, log_dir=log_dir)
        model.teachers.append(taught_by if isinstance(taught_by, nn.Module) else taught_by.model.net)
        seen += [UNKNOWN] if isinstance(taught_by, nn.Module) else taught_by.trained_on
    with TemporaryDirectory() as scratch:  # fast_dev_run leaves nothing
        is_writer = getattr(rank_zero_only, "rank", 0) == 0  # only rank 0 writes, so only it needs a folder of its own
        if config is None and is_writer and (lost := _cannot_be_loaded(model.net, data)):
            print(f"This run cannot be loaded by its folder alone: {lost}")
        root = Path(scratch) if trainer_kwargs.get("fast_dev_run") else log_dir
        folder = last.parent.parent if last else claim(root, name) if is_writer else root / (name or "")
        frozen = as_list(freeze)
        settings = config or _config(model, data, seed, init_from, teachers, frozen, trainer_kwargs)
        record = RunRecord(folder, seed, settings, first_weights, [data.trained_on, *seen])
        own = [record, *([Freeze(frozen)] if frozen else [])]
        try:
            validates = bool(data.val_fraction)
            step = saved.get("global_step")
            trainer = _trainer(folder, seed, step, [*as_list(callbacks), *own], trainer_kwargs, validates)
            if last:
                _check_trainer(saved, trainer)
            with only_process(folder) if is_writer else nullcontext(), isolate_rng():
                seed_all(seed)
                trainer.fit(model, datamodule=data, ckpt_path=last)
        except BaseException as error:
            # Lightning raises SystemExit after Ctrl-C, which would end a notebook's kernel.
            raised = KeyboardInterrupt() if isinstance(error, SystemExit) else error
            if is_writer:
                _note_or_remove(raised, folder, bool(last or (trainer and trainer.current_epoch)))
            raise raised  # noqa: B904
        folder = Path(trainer.strategy.broadcast(str(folder)))
        kept = kept_checkpoint(folder)
        if kept:
            load_weights(model, read_checkpoint(kept), kept)
        return Run(folder, kept, model, data, trained_on=record.state["trained_on"])


def lock_of(folder: Path) -> FileLock:
    """Return a run folder's lock, which its process may take several times."""
    place = folder.resolve()
    return FileLock(place.parent / f".{place.name}.lock", timeout=0, is_singleton=True)


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold a run folder's lock: no other process trains there meanwhile.

    Raises:
        InputError: If another process holds it.
    """
    lock = lock_of(folder)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"another process trains {folder}: wait for it, or give another --name") from error
    try:
        yield
    finally:
        lock.release()
        if not lock.is_locked:  # a study that holds it too removes it later
            Path(lock.lock_file).unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                folder.parent.rmdir()


def _check_trainer(saved: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Refuse to resume a run with fewer epochs than it has, or with other callbacks that keep a state."""
    done = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    if 0 <= (trainer.max_epochs or 0) < done:
        raise InputError(
            f"the run has {done} epochs already: max_epochs must be at least that, got {trainer.max_epochs}"
        )
    if 0 <= trainer.max_steps < saved["global_step"]:
        done = saved["global_step"]
        raise InputError(
            f"the run has {done} updates already: max_steps must be at least that, got {trainer.max_steps}"
        )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    fresh = [each for each in callbacks if each.state_dict() and not isinstance(each, EarlyStopping | Timer)]
    lost = saved["callbacks"].keys() - {each.state_key for each in callbacks}
    if names := sorted(lost | ({each.state_key for each in fresh} - saved["callbacks"].keys())):
        raise InputError(f"a resumed run keeps its callbacks, but this one was trained with others: {', '.join(names)}")


def _cannot_be_loaded(net: nn.Module, data: DigitDataModule) -> str:
    """Return why another process could not make the network or the data of a run again; empty if it can."""
    path, settings = f"{type(net).__module__}.{type(net).__qualname__}", to_settings(net)
    hint = f"keep each argument of {path} in an attribute of its name, or give load_run(folder, net=...)"
    if path.startswith("__main__.") or "<locals>" in path:
        return f"{path} cannot be imported: move it to a file, or give load_run(folder, net=...)"
    try:
        with isolate_rng():
            from_settings(settings, trusted=True).load_state_dict(net.state_dict())
    except Exception:  # the class may raise anything
        return hint
    if to_settings(data) is None and data.augmentation is None:
        return hint.replace(path, type(data).__name__).replace("net=", "data=")
    return ""


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
    if any(isinstance(each, StochasticWeightAveraging) for each in callbacks):
        raise InputError(LOST_AVERAGE)
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
    if type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher":
        raise InputError(
            f"the strategy {given.get('strategy', 'auto')} loses what its processes write: use ddp, in a script"
        )
    use_fast_loop(trainer)
    return trainer


def _note_or_remove(error: BaseException, folder: Path, has_results: bool) -> None:
    """Add a note that says how to resume; or remove a new run folder if an error came in the first epoch."""
    if (folder / "checkpoints" / "last.ckpt").exists() and (has_results or isinstance(error, KeyboardInterrupt)):
        if not isinstance(error, InputError):  # it says what to do
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
    if name is not None and (Path(name).name != name or name in ("best", "last") or not name.isprintable()):
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


def copy_weights(net: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Copy the weights of a checkpoint into a network, where names and shapes are the same; print what stays.

    Raises:
        InputError: If no weight fits.
    """
    source = {name.removeprefix("net."): value for name, value in checkpoint["state_dict"].items()}
    own = net.state_dict()
    fits = {name: source[name] for name, value in own.items() if name in source and source[name].shape == value.shape}
    if not fits:
        raise InputError(f"no weight in {path} fits this network: give a checkpoint of a similar one")
    net.load_state_dict(fits, strict=False)
    fresh = sorted(own.keys() - fits.keys())
    if fresh and getattr(rank_zero_only, "rank", 0) == 0:
        print(f"Not in {path}, or of another shape, so they keep their new values: {', '.join(fresh)}")


def _names_of(teachers: list[Any]) -> list[str] | None:
    return [str(each.folder) if isinstance(each, Run) else f"{each!s:.200}" for each in teachers] or None


def _fixed(trainer_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Trainer's settings, defaults too, but for those that a resumed run may change."""
    usual = {name: parameter.default for name, parameter in inspect.signature(L.Trainer).parameters.items()}
    settings = usual | dict(trainer_kwargs)
    return {name: value for name, value in settings.items() if not FREE.fullmatch(name) and is_plain(value)}


def _config(
    model: DigitClassifier,
    data: DigitDataModule,
    seed: int,
    init_from: str | Path | None,
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
        "init_from": plain(init_from),
        "teacher": _names_of(teachers),
        "freeze": frozen or None,
        "model": dict(model.hparams) | lost,
        "data": to_settings(data, lossy=True),
        "trainer": {name: value for name, value in trainer_kwargs.items() if is_plain(value)},
    }
