"""Train with the flags of ``fit``: the building block of the studies, and of the verb itself."""

import inspect
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from mnist_lightning.classifier import read_checkpoint
from mnist_lightning.errors import InputError
from mnist_lightning.parsing import FitCLI, look_ahead
from mnist_lightning.studies.compare import meaning, settings_in
from mnist_lightning.training.fit import FREE, fit, only_process
from mnist_lightning.training.run import Run, as_list, find_checkpoint, find_last, load_run, trained_on
from mnist_lightning.usage import expand

# A study's run is silent and has one process: Lightning would start others that repeat the whole command.
ALONE: dict[str, Any] = {"enable_progress_bar": False, "devices": 1, "num_nodes": 1}


def train(flags: Sequence[str], callbacks: Sequence[Callback] = (), **own: Any) -> Run:
    """Train with flags as on the command line of ``fit``.

    Args:
        flags: Such as ``["--config", "configs/fast.yaml", "--epochs", "3"]``.
        callbacks: Lightning callbacks, besides those that the flags name.
        **own: Arguments of ``mnist_lightning.fit``; they replace those that the flags give.

    Raises:
        InputError: If a flag is invalid.
    """
    known = look_ahead(flags)
    last = None
    if known.ckpt_path is None:
        cli, seed = make(flags)
    else:
        last = find_last(known.ckpt_path[0], known.log_dir)
        recipe = ["--config", str(last.parent.parent / "config.yaml")]
        earlier, _ = make(recipe)
        cli, seed = make([*recipe, *flags])
        if changed := difference(earlier.text, cli.text, re.compile(rf"trainer\.({FREE.pattern})")):
            raise InputError(f"a resumed run keeps its settings: {last.parent.parent} has {changed}")
    made = cli.config_init
    trainer = trainer_kwargs(made.trainer, callbacks)
    if trainer.get("enable_checkpointing") is not False and not trainer.get("fast_dev_run"):
        trainer["callbacks"].append(made.checkpoint)
    starts = last is None or any(flag.startswith("--init_from") for flag in flags)  # its config.yaml may say so too
    names = {"name": made.name, "resume": last, "init_from": made.init_from if starts else None}
    names |= {"teacher": made.teacher, "freeze": made.freeze, "config": cli.text, "seed": seed}
    return fit(cli.model, cli.datamodule, **names | trainer | own)


def trainer_kwargs(settings: Namespace, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Return the Trainer's arguments that were given, and the callbacks."""
    usual = inspect.signature(Trainer).parameters
    # check_val_every_n_epoch null means something else than its default, 1.
    given = {key: value for key, value in vars(settings).items() if value is not None or usual[key].default is not None}
    return given | {"callbacks": [*callbacks, *as_list(given.get("callbacks"))]}


def make(flags: Sequence[str]) -> tuple[FitCLI, int]:
    """Return the settings and objects that the flags of ``fit`` describe, and the seed of the network's weights."""
    with isolate_rng():
        cli = FitCLI(expand(flags))
        seed = cli.config_init.seed_everything
        return cli, torch.initial_seed() % 2**32 if isinstance(seed, bool) else seed


def shared_settings(flags: Sequence[str]) -> FitCLI:
    """Return the settings that the runs of a study share.

    Raises:
        InputError: If the flags are not for new runs that are saved.
    """
    cli, _ = make(flags)
    made = cli.config_init
    newest = {"best", "last"} & {made.init_from, *as_list(made.teacher)}  # it would be a run of the study itself
    if made.ckpt_path or made.seeds or made.trainer.fast_dev_run or newest:
        raise InputError(
            "a study trains new runs and saves them: it takes no --ckpt_path, no --seeds, no fast_dev_run, and no "
            "'best' or 'last' for --init_from and --teacher"
        )
    if made.trainer.num_nodes != 1 or str(made.trainer.devices) not in ("auto", "1"):
        given = f"devices {made.trainer.devices}, num_nodes {made.trainer.num_nodes}"
        raise InputError(f"each run of a study has one device, got {given}: leave out the flag")
    return cli


def refuse_seen_images(cli: FitCLI) -> None:
    """Refuse a start or a teacher that has learnt from the study's images: it knows those that are held out.

    Raises:
        InputError: If there is one, or one that does not say what it has learnt from.
    """
    made, data = cli.config_init, cli.datamodule.dataset
    for path in (*as_list(made.init_from), *as_list(made.teacher)):
        file = find_checkpoint(path)
        content = None if file.suffix == ".onnx" else read_checkpoint(file)
        names = [each["dataset"] for each in trained_on(file, content)]
        if data in names or None in names:
            why = f"was trained on {data} too" if data in names else "does not say what it was trained on"
            raise InputError(
                f"{path} {why}, so it may know the images that are held out, and the result would be too good: "
                "give a run of other data"
            )


def difference(earlier: str, now: str, free: re.Pattern[str] = re.compile("(?!)")) -> str:
    """Return the first setting in which two contents of ``config.yaml`` differ, but for the seed; empty if none.

    Args:
        earlier: The one content.
        now: The other.
        free: The names of settings that may differ too.
    """
    was, becomes = settings_in(earlier), settings_in(now)
    changed = {name for name, _ in meaning(was).items() ^ meaning(becomes).items() if not free.fullmatch(name)}
    name = next((name for name in was | becomes if name in changed), "")
    return name and f"{name} {was.get(name)}, now {becomes.get(name)}"


@contextmanager
def part_of_a_study() -> Iterator[None]:
    """Let an error say how to continue the study, and not the run."""
    try:
        yield
    except BaseException as error:
        # An InputError says itself what to do.
        error.__notes__ = [] if isinstance(error, InputError) else ["To continue the study: repeat the command."]
        raise


def finish(flags: Sequence[str], folder: Path, callbacks: Sequence[Callback] = ()) -> Run:
    """Return the run in a folder: trained, resumed if it was stopped, or just read if it is finished.

    Args:
        flags: Those of ``train``, without a name.
        folder: The run folder.
        callbacks: Lightning callbacks.

    Raises:
        InputError: If the folder has a run with other settings, another process trains it, or a flag is invalid.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_process(folder), part_of_a_study():
        if (folder / "checkpoints" / "last.ckpt").exists():
            earlier = (folder / "config.yaml").read_text(encoding="utf-8")
            if changed := difference(earlier, make(flags)[0].text):
                raise InputError(f"{folder} has other settings ({changed}): give another --name")
            run = load_run(folder)
            if not run.record.get("finished"):
                run = train(flags, callbacks, resume=folder, init_from=None, **ALONE)
            return run
        rest = {path.name.partition(".")[0] for path in folder.glob("*")}
        if rest <= {"", "checkpoints", "config", "run", "events"}:  # stopped before its first epoch
            shutil.rmtree(folder, ignore_errors=True)
        return train(flags, callbacks, log_dir=folder.parent, name=folder.name, default_root_dir=None, **ALONE)


def train_all(
    flags: Sequence[str],
    folder: Path,
    variations: Mapping[str, Sequence[str]],
    callbacks: Sequence[Callback] = (),
) -> Iterator[Run]:
    """Yield a finished run for each variation of the flags, with a bar, and a line for each.

    Args:
        flags: Those of ``train``, without a name.
        folder: The folder of the runs.
        variations: The name of each run, and the flags that are added for it.
        callbacks: Lightning callbacks.
    """
    shared_settings(flags)
    with tqdm(total=len(variations), file=sys.stdout, disable=None, leave=False) as bar:
        for name, more in variations.items():
            run = finish([*flags, *more], folder / name, callbacks)
            best = run.best_val_acc
            tqdm.write(f"{name}  {run.record['fit_seconds']:6.1f} s" + (f"  validation {best:.2%}" if best else ""))
            bar.update()
            yield run


def study_folder(flags: Sequence[str], name: str) -> Path:
    """Return the folder of a study's runs.

    Raises:
        InputError: If the name is no name of a folder.
    """
    if Path(name).name != name or name in ("", ".."):
        raise InputError(f"a study's name must be one folder name, got {name}")
    folder: Path = look_ahead(flags).log_dir / name
    return folder


def refuse(flags: Sequence[str], names: Iterable[str], why: str) -> None:
    """Refuse flags that a study sets itself. What a ``--config`` file says is a recipe, which it may overrule.

    Args:
        flags: Those of ``train``.
        names: The names to refuse, short or long, without dashes.
        why: What to do.

    Raises:
        InputError: If one of them is among the flags.
    """
    own = expand([f"--{name}" for name in names])
    for word in flags:
        flag = word.partition("=")[0].replace(".init_args", "")
        if expand([flag])[0] in own:
            raise InputError(f"{word} would be overruled: {why}")


def train_seeds(flags: Sequence[str], name: str, seeds: Iterable[int], callbacks: Sequence[Callback] = ()) -> list[Run]:
    """Finish a run for each seed: ``NAME_42`` and so on, in the folder of runs.

    Args:
        flags: Those of ``train``, without a name.
        name: How the names of the runs begin.
        seeds: The seeds.
        callbacks: Lightning callbacks.

    Raises:
        InputError: If the flags have another seed, or one is invalid.
    """
    refuse(flags, ["seed"], "each run has one of the given seeds, so leave it out")
    variations = {f"{name}_{seed}": ["--seed_everything", str(seed)] for seed in seeds}
    return list(train_all(flags, study_folder(flags, name).parent, variations, callbacks))
