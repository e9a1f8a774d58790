"""What the run folders say, in one table; read without torch."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mnist_lightning.errors import InputError, printable
from mnist_lightning.report.text import text_table

LOG_DIR = "lightning_logs"
FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast, where PyYAML was built with libyaml
COLUMNS = {"name": str, "data": str, "network": str, "epochs": int, "validation": float, "test": float, "when": str}


def runs(log_dir: str | Path = LOG_DIR, sort: str = "when") -> list[dict[str, Any]]:
    """Return a row for each run in a folder; it imports neither torch nor Lightning.

    ``validation`` is the best validation accuracy and ``test`` the one in ``report/metrics.json``, both in [0, 1].
    ``when`` is the start. What is not known is None. Folders without a valid ``run.json`` are left out.

    Args:
        log_dir: The folder of runs.
        sort: The column to sort by: text from A to Z, the highest number first, the newest run first; None is last.
    """
    rows: list[dict[str, Any]] = []
    for folder, record in newest_first(log_dir):
        kept = [record.get(key) for key in ("dataset", "network", "epochs", "best_val_acc")]
        test = read_json(folder / "report" / "metrics.json").get("accuracy")
        values = dict(zip(COLUMNS, [folder.name, *kept, test, record.get("started")], strict=True))
        rows.append({name: value if isinstance(value, COLUMNS[name]) else None for name, value in values.items()})
    if sort != "when":
        rows.sort(key=lambda row: (row[sort] is None, row[sort] if isinstance(row[sort], str) else -(row[sort] or 0)))
    return rows


def newest_first(log_dir: str | Path = LOG_DIR) -> list[tuple[Path, dict[str, Any]]]:
    """Return the runs in a folder and their records, by their start: folders with a valid ``run.json``."""
    records = [(file.parent, read_json(file)) for file in sorted(Path(log_dir).glob("*/run.json"))]
    return sorted([each for each in records if each[1]], key=lambda each: _start(each[1]), reverse=True)


def _start(record: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(record["started"]).timestamp()
    except (KeyError, TypeError, ValueError):  # somebody edited the record
        return 0.0


def kept_checkpoint(folder: Path, which: str = "best") -> Path | None:
    """Return the ``best`` checkpoint of a run, or else the ``last`` one; None if there is none."""
    files = [folder / "checkpoints" / f"{name}.ckpt" for name in (which, "last")]
    return next((file for file in files if file.is_file()), None)


def runs_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of ``runs`` as a text table; accuracies are percentages."""
    cells = [list(COLUMNS)]
    for row in rows:
        known = {name: "-" if value is None else value for name, value in row.items()}
        known["when"] = known["when"][:16].replace("T", " ")
        cells.append(
            [f"{value:.2%}" if isinstance(value, float) else printable(str(value)) for value in known.values()]
        )
    return text_table(cells)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings in a configuration file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), FastLoader)
    except Exception as error:  # PyYAML raises AttributeError, KeyError and others for tags such as !!bool x
        raise InputError(f"cannot read the settings in {path}: {' '.join(str(error).split()):.200}") from error
    if config is not None and not isinstance(config, dict):
        raise InputError(f"expected settings by their names in {path}, got {config!r:.100}")
    return config or {}
