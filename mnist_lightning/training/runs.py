"""What the run folders say, in one table; read without torch."""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mnist_lightning.errors import InputError, printable

LOG_DIR = "lightning_logs"
COLUMNS = ("name", "data", "network", "epochs", "validation", "test", "when")


def runs(log_dir: str | Path = LOG_DIR, sort: str = "when") -> list[dict[str, Any]]:
    """Return a row for each run in a folder; it imports neither torch nor Lightning.

    ``validation`` is the best validation accuracy and ``test`` the one in ``report/metrics.json``, both in [0, 1].
    ``when`` is the start, or for an older run the last change of ``run.json``. What is not known is None. Folders
    without a valid ``run.json`` are left out.

    Args:
        log_dir: The folder of runs.
        sort: The column to sort by: text from A to Z, the highest number first, the newest run first; None is last.
    """
    rows: list[dict[str, Any]] = []
    for file in Path(log_dir).glob("*/run.json"):
        if record := read_json(file):
            test = read_json(file.parent / "report" / "metrics.json").get("accuracy")
            texts = {"data": record.get("dataset"), "network": record.get("network") or _network(file.parent)}
            numbers = {"epochs": record.get("epochs"), "validation": record.get("best_val_acc"), "test": test}
            row = {name: value if isinstance(value, str) else None for name, value in texts.items()}
            row |= {name: value if _is_number(value) else None for name, value in numbers.items()}
            rows.append({"name": file.parent.name, **row, "when": _start(record, file)})
    rows.sort(key=lambda row: datetime.fromisoformat(row["when"]), reverse=True)
    if sort != "when":
        rows.sort(key=lambda row: (row[sort] is None, row[sort] if isinstance(row[sort], str) else -(row[sort] or 0)))
    return rows


def runs_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of ``runs`` as a text table; accuracies are percentages."""
    cells = [list(COLUMNS)]
    for row in rows:
        shown = {**row, "when": row["when"][:16].replace("T", " ")}.values()
        known = ["-" if value is None else value for value in shown]
        cells.append([f"{value:.2%}" if isinstance(value, float) else printable(str(value)) for value in known])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


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
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the settings in {path}: {' '.join(str(error).split()):.200}") from error
    return config if isinstance(config, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e9  # not NaN, which is not JSON


def _network(folder: Path) -> str | None:
    """Return the network that ``config.yaml`` names; searched as text, since parsing YAML takes much longer."""
    try:
        config = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^  net:\n    class_path: (?:[\w.]+\.)?(\w+)$", config, re.M)
    return found[1] if found else None


def _start(record: dict[str, Any], file: Path) -> str:
    """Return the local time when a run started."""
    try:
        start = datetime.fromisoformat(record["started"]).astimezone()
    except (KeyError, TypeError, ValueError, OverflowError):
        start = datetime.fromtimestamp(file.stat().st_mtime).astimezone()
    return start.isoformat(timespec="seconds")
