"""Write files whole or not at all, and read JSON and settings."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import yaml

import mnist_lightning
from mnist_lightning.errors import InputError

# Reads YAML eight times as fast, where PyYAML was built with libyaml.
FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_writable(folder: Path) -> Path:
    """Try to make a file in a folder, or where the folder would be made; return the folder.

    Raises:
        InputError: If that is not possible.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        hint = "choose another place, for results --output (output=)"
        raise InputError(f"cannot write to {folder}: {error.strerror}; {hint}") from error
    return folder


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing: a reader, or a crash, finds the old content or the new one whole.

    The new content replaces the old when the context ends, and is dropped on an exception.

    Args:
        path: The file; its folder must exist.

    Raises:
        OSError: If it cannot be written; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        # The error of a full disk names no file, and that of a read-only folder the hidden one.
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
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


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a configuration file; classes of this package by their present names.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        config = with_public_names(yaml.load(path.read_text(encoding="utf-8"), FastLoader))
    except Exception as error:  # PyYAML raises errors of many types, for example for !!bool x
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read the settings in {path}: {reason:.200}") from error
    if config is not None and not isinstance(config, dict):
        raise InputError(f"expected settings by their names in {path}, got {config!r:.100}")
    return config or {}


def with_public_names(settings: Any) -> Any:
    """Return settings in which each class path of this package is the public name.

    Earlier versions named modules, such as ``mnist_lightning.models.mlp.MLP``, that have moved.

    >>> with_public_names({"net": {"class_path": "mnist_lightning.models.mlp.MLP"}})
    {'net': {'class_path': 'mnist_lightning.MLP'}}
    """
    if isinstance(settings, dict):
        return {name: with_public_names(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [with_public_names(value) for value in settings]
    if isinstance(settings, str) and settings.startswith("mnist_lightning."):
        name = settings.rpartition(".")[2]
        return f"mnist_lightning.{name}" if name in mnist_lightning.__all__ else settings
    return settings
