"""The trials of a search, which any number of workers share: opened, claimed, and counted."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_lightning.errors import InputError, needs
from mnist_lightning.training.folders import lock_of

with needs("tune"):
    import optuna

from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
PRUNERS: dict[str, type[BasePruner]] = {
    "median": MedianPruner,
    "hyperband": HyperbandPruner,
    "none": NopPruner,
}


def open_study(storage: str, name: str, pruner: str) -> optuna.Study:
    """Open or create a study; the caller holds the study's lock.

    Args:
        storage: A file for the journal, or the URL of a database.
        name: Name of the study.
        pruner: One of ``PRUNERS``.

    Raises:
        InputError: If the storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            storage=RDBStorage(storage) if "://" in storage else _open_journal(storage),
            sampler=TPESampler(constant_liar=True),
            pruner=PRUNERS[pruner](),
        )
    except (ImportError, ValueError, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot use the storage {storage}: {reason:.200}") from error


def _open_journal(path: str) -> JournalStorage:
    # Optuna's own lock outlives a killed process, and expires for a slow one too.
    lock = FileLock(f"{path}.lock")
    with lock, open(path, "ab+") as file:
        file.seek(0)
        content = file.read()
        if content.startswith(b'{"op_code"'):  # a full disk may have cut the last line
            file.truncate(content.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(path, lock))  # type: ignore[arg-type]


def claim_trial(
    study: optuna.Study, space: Mapping[str, BaseDistribution], folder: Path, trials: int
) -> Trial | None:
    """Fail dead trials, and return the next one, or None if there are enough.

    The caller holds the study's lock.

    Args:
        study: The study.
        space: The distribution of each setting.
        folder: The study's folder, with the lock of each trial that a living worker runs.
        trials: How many the study has at the end.
    """
    dead = []
    for each in running(study):
        lock = lock_of(folder / trial_folder(each.number))
        with suppress(Timeout), lock:
            study.tell(each.number, state=TrialState.FAIL)
            shutil.rmtree(folder / trial_folder(each.number), ignore_errors=True)
            if "retry_of" not in each.user_attrs:
                study.enqueue_trial(each.params, {"retry_of": each.number})
            dead.append(lock)
    for lock in dead:
        Path(lock.lock_file).unlink(missing_ok=True)
    taken = len(finished(study)) + len(running(study))
    return study.ask(dict(space)) if taken < trials else None


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that a worker runs, or that were running when it died."""
    return study.get_trials(deepcopy=False, states=[TrialState.RUNNING])


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: the done ones, and those that an error of their own ended."""
    ended = study.get_trials(deepcopy=False, states=[*DONE, TrialState.FAIL])
    return [each for each in ended if each.state in DONE or "error" in each.user_attrs]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the trial with the best validation accuracy; of equal ones the first."""
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return max(complete, key=accuracy_of, default=None)


def accuracy_of(trial: FrozenTrial) -> float:
    """Return the validation accuracy of a trial in [0, 1]; 0 if it has none."""
    return trial.value or 0.0


def trial_folder(number: int) -> str:
    """Return the name of a trial's run folder."""
    return f"trial_{number:04}"
