"""What the run folders say, in one table; read without torch."""

import json
from collections.abc import Sequence
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
    for file in sorted(Path(log_dir).glob("*/run.json")):
        if record := read_json(file):
            kept = [record.get(key) for key in ("dataset", "network", "epochs", "best_val_acc")]
            test = read_json(file.parent / "report" / "metrics.json").get("accuracy")
            values = dict(zip(COLUMNS, [file.parent.name, *kept, test, record.get("started")], strict=True))
            rows.append({name: value if isinstance(value, COLUMNS[name]) else None for name, value in values.items()})
    rows.sort(key=lambda row: row["when"] or "", reverse=True)
    if sort != "when":
        rows.sort(key=lambda row: (row[sort] is None, row[sort] if isinstance(row[sort], str) else -(row[sort] or 0)))
    return rows


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
    return config if isinstance(config, dict) else {}
