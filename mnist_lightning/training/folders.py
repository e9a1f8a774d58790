"""Run folders: make one that no other process has, lock it, and remove a useless one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_lightning.errors import InputError


def claim(log_dir: Path, name: str | None = None) -> Path:
    """Make and return a new run folder: ``name``, or the next free ``version_N``.

    Two processes never get the same.

    Raises:
        InputError: If it cannot be created, or exists.
    """
    if name is not None and (
        Path(name).name != name or name in ("best", "last") or not name.isprintable()
    ):
        raise InputError(f"a run's name must be one folder name, and not best or last, got {name}")
    names = [path.name.removeprefix("version_") for path in log_dir.glob("version_*")]
    highest = max([int(each) for each in names if each.isdecimal()], default=-1)
    free = (f"version_{number}" for number in count(highest + 1))
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        for each in [name] if name else free:
            folder = log_dir / each
            with suppress(FileExistsError):  # another process may have been faster
                folder.mkdir()
                return folder
    except OSError as error:
        raise InputError(
            f"cannot make a run folder in {log_dir}: {error.strerror}; "
            "choose another --trainer.default_root_dir"
        ) from error
    raise InputError(
        f"the run {folder} exists: choose another name, or resume it with --ckpt_path {folder}"
    )


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
        raise InputError(
            f"another process trains {folder}: wait for it, or give another name"
        ) from error
    try:
        yield
    finally:
        lock.release()
        if not lock.is_locked:  # a study that holds it too removes it later
            Path(lock.lock_file).unlink(missing_ok=True)
            remove_if_empty(folder.parent)


def keep_or_remove(folder: Path, error: BaseException, has_results: bool) -> None:
    """Add a note to an error that says how to resume; or remove a run folder that has no results.

    Args:
        folder: The run folder.
        error: What ended the training; a run that the user stopped is kept.
        has_results: Whether an epoch was finished, now or before.
    """
    is_wanted = has_results or isinstance(error, KeyboardInterrupt)
    if is_wanted and (folder / "checkpoints" / "last.ckpt").exists():
        if not isinstance(error, InputError):  # it says what to do
            error.add_note(f"To resume: python -m mnist_lightning fit --ckpt_path {folder}")
    elif not has_results:
        shutil.rmtree(folder, ignore_errors=True)
        remove_if_empty(folder.parent)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that has nothing in it."""
    with suppress(OSError):  # it has something
        folder.rmdir()
