"""Search for the settings with the best validation accuracy, with Optuna.

Any number of workers, on one machine or on many, share a study: a folder that all of them see. A
trial's worker locks a file of its own there while it lives, and the operating system unlocks it
whatever ends the worker. So whoever takes the next trial sees which running trials are dead: these
fail, and are tried once more. A trial that raises an error fails too, but is not tried again, and
counts as one of the trials.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from optuna import Study
from optuna.trial import Trial, TrialState
from tqdm import tqdm

from mnist_lightning.errors import InputError, printable
from mnist_lightning.files import write_atomic
from mnist_lightning.studies.train import (
    Arguments,
    alone,
    check_new,
    config_text,
    part_of_a_study,
    refuse_seen_images,
    refuse_shared,
    study_folder,
)
from mnist_lightning.studies.trials import (
    DONE,
    PRUNERS,
    best_trial,
    claim_trial,
    finished,
    open_study,
    running,
    trial_folder,
)
from mnist_lightning.studies.tune_report import cells, write_study
from mnist_lightning.studies.tune_space import (
    check_folder,
    corners,
    read_distributions,
    settings_of,
)
from mnist_lightning.training.fit import fit
from mnist_lightning.training.folders import lock_of
from mnist_lightning.training.runs import LOG_DIR

IN_A_ROW = 5  # trials that fail: then the mistake is elsewhere


def tune(
    space: Mapping[str, Any],
    make: Callable[..., Arguments],
    trials: int,
    *,
    name: str = "tune",
    log_dir: str | Path = LOG_DIR,
    config: str | None = None,
    storage: str | None = None,
    pruner: str = "median",
    workers: int = 1,
    worker: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
) -> Study:
    """Train with settings that Optuna chooses, until a study has enough trials.

    Each trial is a run in the study's folder, ``lightning_logs/NAME``, without curves; only the
    best one keeps its checkpoints. At the end ``trials.csv``, ``best.yaml`` and ``index.html`` are
    written there. The same call continues a study that was stopped; made in several processes at
    once, it shares the trials.

    The sampler is not seeded: workers with the same seed would try the same settings.

    Args:
        space: Names of settings, each with ``low``, ``high`` and maybe ``log`` or ``step``; or with
            ``choices``.
        make: A function from the settings, by their names, to the arguments of
            ``mnist_lightning.fit``: ``model`` and ``data``, and any others.
        trials: Number of trials that the study has at the end, by all workers together.
        name: Name of the study and of its folder.
        log_dir: The folder of runs.
        config: The settings that all trials share, as in ``config.yaml``; by default those of the
            first trial that the space allows.
        storage: A file for the journal, or the URL of a database; by default ``journal.log`` in the
            folder.
        pruner: What stops hopeless trials: ``median``, ``hyperband`` or ``none``.
        workers: Number of processes on this machine, with one thread each.
        worker: The command of such a process, which calls this function with one worker.
        callbacks: Lightning callbacks of each trial; other processes do not get them.

    Raises:
        InputError: If an argument is invalid, the folder has a study with another space or other
            settings, or all of five trials in a row failed.
    """
    if not 1 <= workers <= (cores := count_cores()):
        raise InputError(
            f"workers must be from 1 to {cores}, the number of CPU cores here, got {workers}"
        )
    if trials < 1 or pruner not in PRUNERS:
        raise InputError(
            f"trials must be at least 1 and pruner one of {', '.join(PRUNERS)}; "
            f"got {trials} and {pruner}"
        )
    if workers > 1 and not worker:
        raise InputError(
            f"{workers} workers need the command of one in worker, such as [sys.executable, "
            '"search.py"]'
        )
    distributions, folder = read_distributions(space), study_folder(log_dir, name)

    def arguments_of(params: Mapping[str, Any]) -> Arguments:
        arguments = make(**settings_of(params, space))
        if missing := {"model", "data"} - arguments.keys():
            raise InputError(f"make must return model and data, but {min(missing)} is missing")
        return arguments

    if config is None:
        config = config_text(arguments_of(next(corners(distributions))))
    if not check_folder(folder, distributions, config):
        first = next(corners(distributions))
        refuse_shared(arguments_of(first)["model"], arguments_of(first)["model"])
        for params in corners(distributions):
            _check_arguments(arguments_of(params))
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    with lock:
        study = open_study(storage or str(folder / "journal.log"), name, pruner)
        _check_storage(study, folder)
        plain_space = json.loads(json.dumps(space))
        write_atomic(folder / "config.yaml", config)
        write_atomic(folder / "space.yaml", yaml.safe_dump(plain_space, sort_keys=False))
    with _progress(study, trials) as show:
        if workers > 1:
            _run_workers(workers, worker, show)
            return study
        claim = partial(claim_trial, study, distributions, folder, trials)
        failed = 0
        while claimed := _claim(lock, claim, folder):
            trial, alive = claimed
            with alive:
                result = _run(trial, arguments_of, folder, callbacks)
                with lock:
                    study.tell(trial, **result)
                    _remove_checkpoints(study, folder)
            Path(alive.lock_file).unlink(missing_ok=True)  # on Windows it is removed already
            show()
            failed = failed + 1 if result.get("state") == TrialState.FAIL else 0
            if failed == min(IN_A_ROW, trials):
                raise InputError(
                    f"trials fail, {failed} in a row: {trial.user_attrs['error']}; "
                    "to go on all the same, repeat the command"
                )
        with lock:
            if not running(study):  # this is the last worker
                write_study(study, folder, distributions)
    return study


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_arguments(arguments: Arguments) -> None:
    check_new(arguments)
    refuse_seen_images(arguments)
    if not arguments["data"].val_fraction:
        raise InputError(
            "tune compares runs on validation images, so data.val_fraction must be above 0"
        )


def _check_storage(study: Study, folder: Path) -> None:
    """Refuse trials without their runs, and runs without their trials."""
    has_trials = bool(study.get_trials(deepcopy=False, states=[TrialState.RUNNING, *DONE]))
    if has_trials != any(folder.glob("*trial_*")):  # a run, or the lock of one that begins
        raise InputError(
            f"{folder} and the storage have different studies: give another name, or its storage"
        )


def _claim(
    lock: FileLock, claim: Callable[[], Trial | None], folder: Path
) -> tuple[Trial, FileLock] | None:
    """Return the next trial, and the lock that says that its worker is alive, held already."""
    with lock:
        trial = claim()
        if trial is None:
            return None
        alive = lock_of(folder / trial_folder(trial.number))
        alive.acquire()
        return trial, alive


class Reporter(Callback):
    """Report each epoch's validation accuracy to a trial, and stop it if it is hopeless.

    Args:
        trial: The trial.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial, self.pruned = trial, False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, and stop. After the last epoch there is nothing to stop."""
        if (accuracy := trainer.callback_metrics.get("val/acc")) is not None:
            self.trial.report(accuracy.item(), trainer.current_epoch)
            if trainer.current_epoch + 1 != trainer.max_epochs and self.trial.should_prune():
                self.pruned = trainer.should_stop = True


def _run(
    trial: Trial,
    arguments_of: Callable[[Mapping[str, Any]], Arguments],
    folder: Path,
    callbacks: Sequence[Callback],
) -> dict[str, Any]:
    """Train, and return what to tell the study.

    An error is the trial's: other settings may work.
    """
    reporter = Reporter(trial)
    name = trial_folder(trial.number)
    try:
        # A trial that diverges is no news here.
        with part_of_a_study(), redirect_stdout(io.StringIO()):
            given = alone(arguments_of(trial.params), callbacks)
            given["callbacks"].insert(0, reporter)
            place = {"log_dir": folder.absolute(), "name": name, "default_root_dir": None}
            run = fit(**given | place | {"logger": False})
        if run.best_val_acc is None:
            raise InputError(
                "no epoch was validated, so there is nothing to compare: check the flags of fit"
            )
    except Exception as error:
        trial.set_user_attr("error", printable(f"{type(error).__name__}: {error!s:.200}"))
        shutil.rmtree(folder / name, ignore_errors=True)
        return {"state": TrialState.FAIL}
    return {"state": TrialState.PRUNED} if reporter.pruned else {"values": run.best_val_acc}


def _remove_checkpoints(study: Study, folder: Path) -> None:
    """Remove those of all finished trials but the best; the caller holds the study's lock."""
    best = best_trial(study)
    for each in study.get_trials(deepcopy=False, states=DONE):
        if best is None or each.number != best.number:
            shutil.rmtree(folder / trial_folder(each.number) / "checkpoints", ignore_errors=True)


@contextmanager
def _progress(study: Study, trials: int) -> Iterator[Callable[[], None]]:
    """Show the finished trials of all workers as a bar, or without a terminal as lines.

    It gives a function that looks again.
    """
    seen = {each.number for each in finished(study)}
    with tqdm(total=trials, initial=len(seen), file=sys.stdout, disable=None, leave=False) as bar:

        def show() -> None:
            for each in finished(study):
                if each.number not in seen:
                    seen.add(each.number)
                    bar.update()
                    if bar.disable:
                        print("trial", *cells(each), sep="  ", flush=True)
            if best := best_trial(study):
                bar.set_postfix_str(f"best {best.value:.2%}")

        show()
        yield show
        show()


def _run_workers(number: int, command: Sequence[str], show: Callable[[], None]) -> None:
    """Run a command in several processes at once, until all have ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(number)
    ]
    try:
        while any(process.poll() is None for process in processes):
            show()
            time.sleep(0.5)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = [process for process in processes if process.returncode]
    if failed:
        raise InputError(
            f"{len(failed)} of {number} workers ended with an error; "
            "to continue, repeat the command"
        )
