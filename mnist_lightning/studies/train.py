"""The runs of a study: each is trained, continued, or just read if it is finished."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from mnist_lightning.checkpoints import as_list, plain, read_checkpoint
from mnist_lightning.classifier import DigitClassifier
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import read_json
from mnist_lightning.settings import difference
from mnist_lightning.training.fit import fit
from mnist_lightning.training.folders import only_process
from mnist_lightning.training.objects import callback_texts, config_of_objects
from mnist_lightning.training.record import learnt_from
from mnist_lightning.training.run import Run, find_checkpoint, load_run
from mnist_lightning.training.runs import LOG_DIR, config_of

# A study's run is silent and has one process: Lightning would start others that repeat the command.
ALONE: dict[str, Any] = {"enable_progress_bar": False, "devices": 1, "num_nodes": 1}
STATEFUL = {"callbacks", "logger", "plugins", "profiler", "strategy"}
Arguments = Mapping[str, Any]  # of mnist_lightning.fit: the model, the data and others


def check_new(arguments: Arguments) -> None:
    """Refuse arguments of ``fit`` that are not for new runs of one process, which are saved.

    Raises:
        InputError: If there is one.
    """
    starts = [arguments.get("init_from"), *as_list(arguments.get("teacher"))]
    newest = [each for each in starts if each in ("best", "last")]  # a run of the study itself
    if arguments.get("resume") or arguments.get("fast_dev_run") or newest:
        raise InputError(
            "a study trains new runs and saves them: it resumes no other run, and takes no "
            "fast_dev_run, and no 'best' or 'last' for init_from and teacher"
        )
    devices, num_nodes = arguments.get("devices", "auto"), arguments.get("num_nodes", 1)
    if num_nodes != 1 or str(devices) not in ("auto", "1"):
        raise InputError(
            f"each run of a study has one device, got devices {devices}, num_nodes {num_nodes}: "
            "leave out the flag"
        )


def refuse_seen_images(arguments: Arguments) -> None:
    """Refuse a start or a teacher that has learnt from the study's images.

    It knows those that are held out.

    Raises:
        InputError: If there is one, or one that does not say what it has learnt from.
    """
    dataset = arguments["data"].dataset
    for each in (*as_list(arguments.get("init_from")), *as_list(arguments.get("teacher"))):
        names = [seen["dataset"] for seen in _learnt_from(each)]
        if dataset not in names and None not in names:
            continue
        reason = "does not say what it was trained on"
        if dataset in names:
            reason = f"was trained on {dataset} too"
        raise InputError(
            f"{each!s:.200} {reason}, so it may know the images that are held out, and the result "
            "would be too good: give a run of other data"
        )


def _learnt_from(source: Any) -> Sequence[Mapping[str, Any]]:
    """Return what the weights of a run, a file or a network have learnt from."""
    if isinstance(source, Run):
        return source.trained_on
    if not isinstance(source, str | Path):
        return [{"dataset": None}]
    file = find_checkpoint(source)
    content = None if file.suffix == ".onnx" else read_checkpoint(file)
    return learnt_from(content, config_of(file))


@contextmanager
def part_of_a_study() -> Iterator[None]:
    """Let an error say how to continue the study, and not the run."""
    try:
        yield
    except BaseException as error:
        notes = [note for note in getattr(error, "__notes__", []) if "To resume: " not in note]
        if not isinstance(error, InputError):  # it says itself what to do
            notes.append("To continue the study: repeat the command.")
        error.__notes__ = notes
        raise


def study_folder(log_dir: str | Path, name: str) -> Path:
    """Return the folder of a study's runs.

    Raises:
        InputError: If the name is no name of a folder.
    """
    if Path(name).name != name or name in ("", ".."):
        raise InputError(f"a study's name must be one folder name, got {name}")
    return Path(log_dir) / name


def with_settings(config: str | None, seed: int, data: Mapping[str, Any]) -> str | None:
    """Return a content of ``config.yaml`` with another seed and other arguments of the data."""
    if config is None:
        return None
    settings = yaml.safe_load(config)
    settings["seed_everything"] = seed
    if data:
        settings["data"]["init_args"] = {**(settings["data"].get("init_args") or {}), **data}
    header = "".join(line for line in config.splitlines(keepends=True) if line.startswith("#"))
    return header + yaml.safe_dump(settings, sort_keys=False)


def alone(arguments: Arguments, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Return the arguments of one run, with callbacks and loggers of its own: they keep a state."""
    given = {**arguments, **ALONE}
    given["callbacks"] = [*callbacks, *as_list(arguments.get("callbacks"))]
    for name in STATEFUL & given.keys():
        given[name] = deepcopy(given[name])
    return given


def finish(folder: Path, arguments: Arguments, callbacks: Sequence[Callback] = ()) -> Run:
    """Return the run in a folder: trained, resumed if it was stopped, or just read.

    Args:
        folder: The run folder.
        arguments: Those of ``mnist_lightning.fit``, without a name.
        callbacks: Lightning callbacks, besides those of the arguments.

    Raises:
        InputError: If the folder has a run with other settings, or another process trains it.
    """
    given = alone(arguments, callbacks)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_process(folder), part_of_a_study():
        if (folder / "checkpoints" / "last.ckpt").exists():
            run = _earlier(folder, given)
            if not run.record.get("finished"):
                run = fit(**given | {"resume": folder, "init_from": None, "name": None})
            return run
        rest = {path.name.partition(".")[0] for path in folder.glob("*")}
        if rest <= {"", "checkpoints", "config", "run", "events"}:  # stopped before its first epoch
            shutil.rmtree(folder, ignore_errors=True)
        place = {"log_dir": folder.parent, "name": folder.name, "default_root_dir": None}
        return fit(**given | place)


def _earlier(folder: Path, arguments: Arguments) -> Run:
    """Return the run in a folder; refuse one with other settings, or other callbacks."""
    earlier = (folder / "config.yaml").read_text(encoding="utf-8")
    if changed := difference(earlier, config_text(arguments)):
        raise InputError(f"{folder} has other settings ({changed}): give another name")
    before = read_json(folder / "run.json").get("callbacks")
    now = callback_texts(as_list(arguments.get("callbacks")))
    if before is not None and before != now:
        raise InputError(f"{folder} has other callbacks ({before}, now {now}): give another name")
    if arguments.get("config") is not None:
        return load_run(folder)
    # The objects of a notebook cannot be made from the folder alone.
    return load_run(folder, net=_made(arguments["model"]).net, data=arguments["data"])


def config_text(arguments: Arguments) -> str:
    """Return the content of ``config.yaml`` of a run with these arguments of ``fit``."""
    if arguments.get("config") is not None:
        return str(arguments["config"])
    own: dict[str, Any] = {name: arguments.get(name) for name in ("init_from", "teacher", "freeze")}
    not_trainers = {*own, "model", "data", "seed", "config", "callbacks", "name"}
    trainer = {name: arguments[name] for name in arguments.keys() - not_trainers} | ALONE
    described = config_of_objects(
        _made(arguments["model"]),
        arguments["data"],
        trainer,
        seed=arguments.get("seed", 42),
        **own,
    )
    return yaml.safe_dump(described, sort_keys=False)


def refuse_shared(one: Any, other: Any) -> None:
    """Refuse models that share a network: what one run learns, the next one would know.

    Args:
        one: A classifier, or a function that makes it.
        other: That of another run; a function may make both.

    Raises:
        InputError: If they share it.
    """
    if _made(one).net is _made(other).net:
        raise InputError(
            "each run of a study needs a network of its own: give a function that makes it, "
            f"such as lambda: DigitClassifier(MLP()); {type(one).__name__} gives the same one twice"
        )


def _made(model: DigitClassifier | Callable[[], DigitClassifier]) -> DigitClassifier:
    if isinstance(model, DigitClassifier):
        return model
    with isolate_rng():
        return model()


def train_all(
    folder: Path, runs: Mapping[str, Arguments], callbacks: Sequence[Callback] = ()
) -> Iterator[Run]:
    """Yield each finished run, with a bar, and a line for each.

    Args:
        folder: The folder of the runs.
        runs: The arguments of ``mnist_lightning.fit`` for each run, by its name.
        callbacks: Lightning callbacks.

    Raises:
        InputError: If the arguments are not for new runs, or a run cannot be trained.
    """
    for arguments in runs.values():
        check_new(arguments)
    with tqdm(total=len(runs), file=sys.stdout, disable=None, leave=False) as bar:
        for name, arguments in runs.items():
            run = finish(folder / name, arguments, callbacks)
            line = f"{folder / name}  {run.record['fit_seconds']:6.1f} s"
            if run.best_val_acc:
                line += f"  validation {run.best_val_acc:.2%}"
            tqdm.write(line)
            bar.update()
            yield run


def train_seeds(
    model: Callable[[], DigitClassifier],
    data: DigitDataModule,
    seeds: Iterable[int],
    *,
    name: str = "seed",
    log_dir: str | Path = LOG_DIR,
    config: str | None = None,
    callbacks: Sequence[Callback] = (),
    **arguments: Any,
) -> list[Run]:
    """Finish a run for each seed: ``NAME_42`` and so on, in the folder of runs.

    Args:
        model: A function that makes the classifier, such as ``lambda: DigitClassifier(MLP())``.
        data: The data module.
        seeds: The seeds.
        name: How the names of the runs begin.
        log_dir: The folder of runs.
        config: The content of ``config.yaml``; by default the settings of the objects.
        callbacks: Lightning callbacks.
        **arguments: Other arguments of ``mnist_lightning.fit``.

    Raises:
        InputError: If an argument is invalid.
    """
    refuse_shared(model, model)
    seeds = plain(list(seeds))
    if not all(isinstance(seed, int) for seed in seeds):
        raise InputError(f"seeds must be integers, such as range(42, 47), got {seeds}")
    runs = {
        f"{name}_{seed}": {
            **arguments,
            "model": model,
            "data": data,
            "seed": seed,
            "config": with_settings(config, seed, {}),
        }
        for seed in seeds
    }
    return list(train_all(study_folder(log_dir, name).parent, runs, callbacks))
