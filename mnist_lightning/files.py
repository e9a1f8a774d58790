"""Files are written whole or not at all, and read only where they are files."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

PART = ".part"
os.umask(UMASK := os.umask(0))  # asked for once: files that other threads make meanwhile would be open to all


def sweep(folder: Path) -> None:
    """Remove, from a folder that nobody writes to, what a process that was killed had begun to write."""
    for path in folder.rglob(f".*{PART}"):
        path.unlink()


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing such that a reader, or a crash, meets the old content or the new, never a part.

    The new content takes the old one's place when the context is left, and is dropped on an exception.

    Args:
        path: The file; its folder must exist.

    Raises:
        OSError: If it cannot be written; the old file is then untouched.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp's 0600 would hide the file from a group that shares the folder
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):  # a signal may come when all is done
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a full disk does not say where
            error.filename = str(path)
        raise


def write_atomic(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file whole, as ``open_atomic`` does.

    Args:
        path: The file; its folder must exist.
        content: Its new content; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written; the old file is then untouched.
    """
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def kept_if_used(folder: Path) -> Iterator[None]:
    """Make a folder, and leave it and the parents made with it only if there is something in them afterwards.

    Raises:
        OSError: If it cannot be made.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()  # refuses once there is a file


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, but no folder, pipe, socket or device: to open a pipe, or to read a device, may not end.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If it cannot be opened, is no regular file, or has a name that no file can have.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a name with a null character, or half a surrogate pair
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")
