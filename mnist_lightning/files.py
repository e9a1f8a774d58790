"""Write files whole or not at all."""

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

os.umask(UMASK := os.umask(0))  # read once, at import: while it is 0, files of other threads would be writable for all


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing. A reader, or a crash, finds the old content or the new, never a part.

    The new content replaces the old when the context ends, and is dropped on an exception.

    Args:
        path: The file; its folder must exist.

    Raises:
        OSError: If it cannot be written; the old file is then untouched.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp makes 0600, which others in a shared folder could not read
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if (
            isinstance(error, OSError) and error.errno and error.filename is None
        ):  # the error of a full disk has no file name
            error.filename = str(path)
        raise


def write_atomic(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file whole, as ``open_atomic`` does; text is written as UTF-8."""
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file whole, as ``open_atomic`` does; a row's missing cells are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
