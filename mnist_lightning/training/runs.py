"""What the run folders say, in one table; read without torch."""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mnist_lightning.errors import InputError, printable
from mnist_lightning.files import read_config, read_json, write_atomic
from mnist_lightning.report.blocks import Table

LOG_DIR = "lightning_logs"
COLUMNS = {
    "name": str,
    "data": str,
    "network": str,
    "epochs": int,
    "validation": float,
    "test": float,
    "when": str,
}


def runs(
    log_dir: str | Path = LOG_DIR, sort: str = "when", tagged: str | None = None
) -> list[dict[str, Any]]:
    """Return a row for each run in a folder; it imports neither torch nor Lightning.

    ``validation`` is the best validation accuracy and ``test`` the one in ``report/metrics.json``,
    both in [0, 1]. ``when`` is the start. What is not known is None. ``tags`` and ``note`` are
    those that ``annotate`` gave it. Folders without a valid ``run.json`` are left out.

    Args:
        log_dir: The folder of runs.
        sort: The column to sort by: text from A to Z, the highest number first, the newest run
            first; None is last.
        tagged: Only the runs with this tag.
    """
    rows: list[dict[str, Any]] = []
    for folder, record in newest_first(log_dir):
        kept = [record.get(key) for key in ("dataset", "network", "epochs", "best_val_acc")]
        test = read_json(folder / "report" / "metrics.json").get("accuracy")
        values = [folder.name, *kept, test, record.get("started")]
        row: dict[str, Any] = {}
        for (name, kind), value in zip(COLUMNS.items(), values, strict=True):
            row[name] = value if isinstance(value, kind) else None
        tags = tags_of(record)
        row |= {"tags": tags, "note": str(record.get("note") or "")}
        if tagged is None or tagged in tags:
            rows.append(row)
    if sort == "when":
        return rows

    def place(row: dict[str, Any]) -> tuple[bool, Any]:
        value = row[sort]
        return value is None, value if isinstance(value, str) else -(value or 0)

    return sorted(rows, key=place)


def tags_of(record: Mapping[str, Any]) -> list[str]:
    """Return the tags in a ``run.json``."""
    tags = record.get("tags")
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def _records(folders: Sequence[str | Path]) -> dict[Path, dict[str, Any]]:
    """Return the records of run folders.

    Raises:
        InputError: If one of them is no run folder.
    """
    found = {}
    for folder in map(Path, folders):
        record = read_json(folder / "run.json")
        if not record or folder.is_symlink():
            raise InputError(f"{folder} is no run folder: expected a folder with a run.json")
        found[folder] = record
    return found


def annotate(
    folders: Sequence[str | Path],
    tags: Sequence[str] = (),
    untag: Sequence[str] = (),
    note: str | None = None,
) -> None:
    """Give tags and a note to runs: they are kept in ``run.json``.

    Args:
        folders: The run folders.
        tags: Tags to add.
        untag: Tags to take away.
        note: A text that replaces the runs' note; an empty one removes it.

    Raises:
        InputError: If one of them is no run folder; nothing is changed then.
    """
    for folder, record in _records(folders).items():
        kept = dict.fromkeys([*tags_of(record), *tags])
        record["tags"] = [tag for tag in kept if tag not in untag]
        if note is not None:
            record["note"] = note
        write_atomic(folder / "run.json", json.dumps(record, indent=2) + "\n")


def delete(folders: Sequence[str | Path]) -> None:
    """Delete runs with all their files.

    Raises:
        InputError: If one of them is no run folder; nothing is deleted then.
    """
    for folder in _records(folders):
        # Another name first: a folder that is deleted by half is no run any more.
        doomed = folder.with_name(f".{folder.name}.deleted")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def newest_first(log_dir: str | Path = LOG_DIR) -> list[tuple[Path, dict[str, Any]]]:
    """Return the folders with a valid ``run.json`` and their records, the last started first."""
    found = []
    for file in sorted(Path(log_dir).glob("*/run.json")):
        if record := read_json(file):
            found.append((file.parent, record))
    return sorted(found, key=lambda each: _start(each[1]), reverse=True)


def _start(record: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(record["started"]).timestamp()
    except (KeyError, TypeError, ValueError):  # somebody edited the record
        return 0.0


def kept_checkpoint(folder: Path, which: str = "best") -> Path | None:
    """Return the ``best`` checkpoint of a run, or else the ``last`` one; None if there is none."""
    files = [folder / "checkpoints" / f"{name}.ckpt" for name in (which, "last")]
    return next((file for file in files if file.is_file()), None)


def config_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return the settings of the run that a checkpoint file is part of; None if it is of none."""
    path = checkpoint.parent.parent / "config.yaml"
    return read_config(path) if checkpoint.parent.name == "checkpoints" and path.is_file() else None


def runs_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of ``runs`` as a text table; accuracies are percentages."""
    cells = []
    columns = [*COLUMNS, *[name for name in ("tags", "note") if any(row[name] for row in rows)]]
    for row in rows:
        line = []
        for name in columns:
            value = row[name]
            if value is None:
                line.append("-")
            elif name == "tags":
                line.append(printable(", ".join(value)))
            elif name == "when":
                line.append(printable(value[:16].replace("T", " ")))
            elif isinstance(value, float):
                line.append(f"{value:.2%}")
            else:
                line.append(printable(str(value)))
        cells.append(line)
    return str(Table(columns, cells))
