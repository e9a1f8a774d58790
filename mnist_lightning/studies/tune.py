"""Search for the settings with the best validation accuracy, with Optuna.

Any number of workers, on one machine or on many, share a study: a folder that all of them see. A trial's worker locks a
file of its own there while it lives, and the operating system unlocks it whatever ends the worker. So whoever
takes the next trial sees which running trials are dead: these fail, and are tried once more. A trial that raises an
error fails too, but is not tried again, and counts as one of the trials.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from mnist_lightning.errors import InputError, needs, printable
from mnist_lightning.files import write_atomic
from mnist_lightning.studies.train import ALONE, part_of_a_study, study_folder, train

with needs("tune"):
    import optuna

from optuna.distributions import BaseDistribution
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mnist_lightning.studies.tune_report import DONE, best_trial, cells, finished, trial_folder, write_study
from mnist_lightning.studies.tune_space import as_flags, check, read_distributions
from mnist_lightning.training.fit import lock_of

PRUNERS = {"median": MedianPruner, "hyperband": HyperbandPruner, "none": NopPruner}


def tune(
    space: Mapping[str, Any],
    flags: Sequence[str],
    trials: int,
    *,
    name: str = "tune",
    storage: str | None = None,
    pruner: str = "median",
    workers: int = 1,
    callbacks: Sequence[Callback] = (),
) -> optuna.Study:
    """Train with settings that Optuna chooses, until a study has enough trials.

    Each trial is a run in the study's folder, ``lightning_logs/NAME``, without curves; only the best one keeps its
    checkpoints. At the end ``trials.csv``, ``best.yaml`` and ``index.html`` are written there. The same call
    continues a study that was stopped.

    The sampler is not seeded: workers with the same seed would try the same settings.

    Args:
        space: Flags of ``fit`` without dashes, each with ``low``, ``high`` and maybe ``log`` or ``step``; or with
            ``choices``.
        flags: The flags of ``fit`` that all trials share.
        trials: Number of trials that the study has at the end, by all workers together.
        name: Name of the study and of its folder.
        storage: A file for the journal, or the URL of a database; by default ``journal.log`` in the folder.
        pruner: What stops hopeless trials: ``median``, ``hyperband`` or ``none``.
        workers: Number of processes on this machine, with one thread each.
        callbacks: Lightning callbacks of each trial; other processes do not get them.

    Raises:
        InputError: If an argument is invalid, the folder has a study with another space or other flags, or all of five
            trials in a row failed.
    """
    if not 1 <= workers <= (cores := count_cores()):
        raise InputError(f"workers must be from 1 to {cores}, the number of CPU cores here, got {workers}")
    if trials < 1 or pruner not in PRUNERS:
        raise InputError(f"trials must be at least 1 and pruner one of {', '.join(PRUNERS)}; got {trials} and {pruner}")
    distributions, folder = read_distributions(space), study_folder(flags, name)
    settings = check(distributions, flags, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    with lock:
        study = _open(storage or str(folder / "journal.log"), name, pruner)
        known = study.get_trials(deepcopy=False, states=[TrialState.RUNNING, *DONE])
        if bool(known) != any(folder.glob("*trial_*")):
            raise InputError(f"{folder} and the storage have different studies: give another --name, or its --storage")
        write_atomic(folder / "config.yaml", settings)
        write_atomic(folder / "space.yaml", yaml.safe_dump(json.loads(json.dumps(space)), sort_keys=False))
    with _progress(study, trials) as show:
        if workers > 1:
            options = {"space": folder / "space.yaml", "trials": trials, "name": name, "pruner": pruner}
            own = [f"--{key}={value}" for key, value in options.items()]
            _run_workers(workers, [*own, *([f"--storage={storage}"] if storage else []), *flags], show)
            return study
        failures = 0
        while True:
            with lock:
                if (trial := _claim(study, distributions, folder, trials)) is None:
                    if not study.get_trials(states=[TrialState.RUNNING]):  # this is the last worker
                        write_study(study, folder, distributions)
                    return study
                alive = lock_of(folder / trial_folder(trial.number)).acquire()
            with alive:
                result = _run(trial, flags, folder, callbacks)
                with lock:
                    study.tell(trial, **result)
                    _remove_checkpoints(study, folder)
            Path(alive.lock.lock_file).unlink(missing_ok=True)  # on Windows it is removed already
            failures = failures + 1 if result.get("state") == TrialState.FAIL else 0
            show()
            if failures == min(5, trials):  # then the mistake is elsewhere
                error = trial.user_attrs["error"]
                raise InputError(
                    f"trials fail, {failures} in a row: {error}; to go on all the same, repeat the command"
                )


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(storage: str, name: str, pruner: str) -> optuna.Study:
    """Open or create a study; the caller holds the study's lock."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        kept = RDBStorage(storage) if "://" in storage else _open_journal(storage)
        sampler = optuna.samplers.TPESampler(constant_liar=True)
        own: dict[str, Any] = {"storage": kept, "sampler": sampler, "pruner": PRUNERS[pruner]()}
        return optuna.create_study(study_name=name, direction="maximize", load_if_exists=True, **own)
    except (ImportError, ValueError, SQLAlchemyError) as error:
        raise InputError(f"cannot use the storage {storage}: {' '.join(str(error).split()):.200}") from error


def _open_journal(path: str) -> JournalStorage:
    lock = FileLock(f"{path}.lock")  # Optuna's own outlives a killed process, and expires for a slow one too
    with lock, open(path, "ab+") as file:
        file.seek(0)
        content = file.read()
        if content.startswith(b'{"op_code"'):  # a full disk may have cut the last line
            file.truncate(content.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(path, lock))  # type: ignore[arg-type]


def _claim(study: optuna.Study, space: Mapping[str, BaseDistribution], folder: Path, trials: int) -> Trial | None:
    """Fail dead trials, and return the next one, or None if there are enough; the caller holds the study's lock."""
    dead: list[FileLock] = []
    for each in study.get_trials(states=[TrialState.RUNNING]):
        lock = lock_of(folder / trial_folder(each.number))
        with suppress(Timeout), lock:
            study.tell(each.number, state=TrialState.FAIL)
            shutil.rmtree(folder / trial_folder(each.number), ignore_errors=True)
            if "retry_of" not in each.user_attrs:
                study.enqueue_trial(each.params, {"retry_of": each.number})
            dead.append(lock)
    for lock in dead:
        Path(lock.lock_file).unlink(missing_ok=True)
    taken = finished(study) + study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    return study.ask(dict(space)) if len(taken) < trials else None


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


def _run(trial: Trial, flags: Sequence[str], folder: Path, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Train, and return what to tell the study; an error becomes the trial's, since other settings may work."""
    reporter = Reporter(trial)
    own = ALONE | {"logger": False, "log_dir": folder.absolute(), "name": trial_folder(trial.number)}
    try:
        with part_of_a_study(), redirect_stdout(io.StringIO()):  # a trial that diverges is no news here
            run = train([*flags, *as_flags(trial.params)], [reporter, *callbacks], **own)
        if run.best_val_acc is None:
            raise InputError("no epoch was validated, so there is nothing to compare: check the flags of fit")
    except Exception as error:
        trial.set_user_attr("error", printable(f"{type(error).__name__}: {error!s:.200}"))
        shutil.rmtree(folder / trial_folder(trial.number), ignore_errors=True)
        return {"state": TrialState.FAIL}
    return {"state": TrialState.PRUNED} if reporter.pruned else {"values": run.best_val_acc}


def _remove_checkpoints(study: optuna.Study, folder: Path) -> None:
    """Remove those of all finished trials but the best; the caller holds the study's lock."""
    best = best_trial(study)
    for each in study.get_trials(deepcopy=False, states=DONE):
        if best is None or each.number != best.number:
            shutil.rmtree(folder / trial_folder(each.number) / "checkpoints", ignore_errors=True)


@contextmanager
def _progress(study: optuna.Study, trials: int) -> Iterator[Callable[[], None]]:
    """Show the finished trials of all workers as a bar, or without a terminal as lines: a function that looks again."""
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


def _run_workers(number: int, args: Sequence[str], show: Callable[[], None]) -> None:
    """Run processes with the arguments of ``tune``, until all have ended."""
    command = [sys.executable, "-m", "mnist_lightning", "tune", *args]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(number)]
    try:
        while any(process.poll() is None for process in processes):
            show()
            time.sleep(0.5)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failed := [process for process in processes if process.returncode]:
        raise InputError(f"{len(failed)} of {number} workers ended with an error; to continue, repeat the command")
