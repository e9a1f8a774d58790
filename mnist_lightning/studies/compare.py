"""Compare runs: those with the same settings are a group, and one table shows all groups.

It imports neither torch nor NumPy.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mnist_lightning.errors import InputError, printable
from mnist_lightning.files import read_json, write_csv
from mnist_lightning.report.blocks import Table
from mnist_lightning.report.text import mean_std
from mnist_lightning.settings import meaning, settings_in
from mnist_lightning.training.runs import LOG_DIR

COLUMNS = ("name", "runs", "validation", "test", "seconds", "parameters")
WIDTH = 120  # characters of a terminal's line that a table may take
LONGEST = 20  # characters of a cell in the terminal
# The settings that people change first.
FIRST = (
    "net",
    "hidden_sizes",
    "width",
    "augmentation",
    "optimizer",
    "lr",
    "batch_size",
    "max_epochs",
    "lr_scheduler",
)


@dataclass
class Group:
    """Runs with the same settings: their records, with the test accuracy, by folder."""

    settings: Mapping[str, Any]
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The name of the data set; empty if it is not known."""
        record = next(iter(self.records.values()))
        return str(record.get("dataset") or self.settings.get("data") or "")

    def values(self, key: str) -> list[float]:
        """Return the numbers that the records have under a key."""
        found = [record.get(key) for record in self.records.values()]
        return [value for value in found if isinstance(value, int | float)]


def compare(paths: Sequence[str | Path] = (LOG_DIR,)) -> list[dict[str, Any]]:
    """Return a dict for each group of runs whose settings differ in the seed alone.

    The groups of a data set are together, and the best on validation comes first among them.
    Settings that cannot change the result, such as folders and the progress bar, are not compared.
    Null and a missing setting mean the default, which is in ``DEFAULTS``, or off, as false is. So 0
    is a value like any other. Left out are runs that are not finished, and folders without a valid
    ``run.json`` and ``config.yaml``.

    ``name`` is what the names of the ``runs`` have in common, ``data`` is their data set, and
    ``settings`` are those that differ between its groups; ``telling`` names those that do not just
    follow from another one. ``validation`` and ``test`` are mean accuracies in [0, 1], the latter
    of the runs that were tested, and ``seconds`` is the mean time of training, comparable on one
    machine only. ``validation_std`` and ``test_std`` are sample standard deviations over the ``n``
    runs, None for one run. What is not known is None.

    The best epoch of each run and the first group are chosen on the validation images, so these
    accuracies are a little too high: the more epochs and groups, the more. So test the group that
    you choose, and no other.

    Args:
        paths: Run folders, and folders of runs.

    Raises:
        InputError: If there is no run in one of them.
    """
    found = _groups([folder for path in paths for folder in _folders(Path(path))])
    if not found:
        raise InputError(
            f"no finished run in {', '.join(map(str, paths))}: "
            "train one, or resume it with --ckpt_path"
        )
    names = names_of([[*group.records] for group in found])
    datasets = [group.dataset for group in found]
    differences: list[dict[str, Any]] = [{} for _ in found]
    telling: dict[str, list[str]] = {}
    for dataset in dict.fromkeys(datasets):
        places = [place for place, other in enumerate(datasets) if other == dataset]
        own, telling[dataset] = _differences([found[place].settings for place in places])
        for place, different in zip(places, own, strict=True):
            differences[place] = different
    rows = []
    for name, different, group in zip(names, differences, found, strict=True):
        folders = [str(folder) for folder in group.records]
        row: dict[str, Any] = {"name": name, "n": len(folders), "runs": folders}
        row["data"] = group.dataset
        for measure, key in (
            ("validation", "best_val_acc"),
            ("test", "test"),
            ("seconds", "fit_seconds"),
        ):
            values = group.values(key)
            row[measure] = fmean(values) if values else None
            row[f"{measure}_std"] = stdev(values) if len(values) > 1 else None
        row["parameters"] = next(iter(group.records.values())).get("num_parameters")
        row["settings"], row["telling"] = different, telling[group.dataset]
        rows.append(row)
    rows.sort(key=lambda row: (row["validation"] is None, -(row["validation"] or 0)))
    return sorted(rows, key=lambda row: (-datasets.count(row["data"]), row["data"]))


def _folders(path: Path) -> list[Path]:
    if (path / "run.json").is_file():
        return [path]
    found = [file.parent for file in sorted(path.glob("*/run.json"))]
    if not found:
        raise InputError(f"no runs in {path}: give run folders, or a folder of runs")
    return found


def _groups(folders: Iterable[Path]) -> list[Group]:
    """Return the finished runs, those with the same settings together."""
    groups: dict[frozenset[tuple[str, str]], Group] = {}
    for folder in folders:
        record = read_json(folder / "run.json")
        try:
            settings = settings_in((folder / "config.yaml").read_text(encoding="utf-8"))
        except Exception:  # missing or damaged, which PyYAML may say with any error
            continue
        if not settings or not record.get("finished", len(record) > 0):
            continue
        test = read_json(folder / "report" / "metrics.json").get("accuracy")
        group = groups.setdefault(frozenset(meaning(settings).items()), Group(settings))
        group.records[folder] = record | {"test": test}
    return list(groups.values())


def _differences(
    groups: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the settings of each group that differ between groups, under their last words.

    The Trainer's are last. The second of the results are those that tell something: what only
    follows from another one, such as the arguments of a class that other groups do not have, is
    left out.
    """
    every = {name: None for group in groups for name in group}  # a set that keeps the order
    meanings = [meaning(group) for group in groups]
    differ = []
    for name in sorted(every, key=lambda name: name.startswith("trainer.")):
        if len({group.get(name) for group in meanings}) > 1:
            differ.append(name)
    words = [re.sub(r".*\.(?=[a-z])", "", name) for name in differ]
    found: list[dict[str, Any]] = [{} for _ in groups]
    telling = []
    for name, word in zip(differ, words, strict=True):
        short = word if words.count(word) == 1 else name
        for own, group in zip(found, groups, strict=True):
            if name in group:
                own[short] = group[name]
        values = {group[name] for group in meanings if name in group}
        owner = name.rpartition(".")[0]  # a section, or a class that some groups may not have
        is_argument = len({group.get(owner) for group in groups}) > 1
        if len(values) > 1 or not is_argument:
            telling.append(short)
    telling.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return found, telling


def names_of(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Return how the folders' names in each group begin.

    It is the first folder if that is nothing, or not unique.

    >>> names_of([[Path("runs/fast_42"), Path("runs/fast_43")], [Path("runs/cnn_42")]])
    ['fast', 'cnn_42']
    >>> names_of([[Path("a/fast_1"), Path("a/fast_2")], [Path("b/fast_1"), Path("b/fast_2")]])
    ['a/fast_1 + 1', 'b/fast_1 + 1']
    """
    names, firsts = [], []
    for folders in groups:
        name = os.path.commonprefix([folder.name for folder in folders])  # noqa: RUF071
        others = len(folders) - 1
        names.append(re.sub(r"[_.-]?\d*$", "", name) if others else name)
        firsts.append(f"{folders[0]} + {others}" if others else str(folders[0]))
    return [
        name if name and names.count(name) == 1 else first
        for name, first in zip(names, firsts, strict=True)
    ]


def _tables(groups: Sequence[Mapping[str, Any]], width: int | None = None) -> list[Table]:
    """Return a table for each data set, with a row for each of its groups.

    Accuracies are mean ± standard deviation over the runs. Each setting that differs has a column;
    what only follows from another one, such as the arguments of a class, has none.

    Args:
        groups: Those of ``compare``.
        width: How many characters wide a table may be; without it, it may have any width.
    """
    tables = []
    for dataset in dict.fromkeys(group["data"] for group in groups):
        own = [group for group in groups if group["data"] == dataset]
        columns = [[_cell(group, column) for group in own] for column in COLUMNS]
        shown, left_out = [*COLUMNS], []
        for name in own[0]["telling"]:
            cells = []
            for group in own:
                value = group["settings"].get(name, "-")
                text = printable("none" if value is None else str(value))
                is_long = width is not None and len(text) > LONGEST
                cells.append(f"{text[: LONGEST - 3]}..." if is_long else text)
            wider = Table([*shown, name], [*zip(*columns, cells, strict=True)])
            if width is not None and wider.width > width:
                left_out.append(name)
            else:
                columns, shown = [*columns, cells], [*shown, name]
        caption = f"Not shown: {', '.join(left_out)}." if left_out else ""
        tables.append(Table(shown, [*zip(*columns, strict=True)], caption, title=dataset))
    return tables


def _cell(group: Mapping[str, Any], column: str) -> str:
    """Return what a column says of a group."""
    if column == "name":
        return printable(group["name"])
    if column == "runs":
        return str(group["n"])
    if column in ("validation", "test"):
        return mean_std(group[column], group[f"{column}_std"])
    return _number(group[column], ",.1f" if column == "seconds" else ",")


def _number(value: Any, style: str) -> str:
    return format(value, style) if isinstance(value, int | float) else "-"


def compare_table(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the groups of ``compare`` as text: a table for each data set, as wide as WIDTH."""
    return "\n\n".join(map(str, _tables(groups, WIDTH)))


def write_comparison(
    folder: Path, groups: Sequence[Mapping[str, Any]], contrast: Any = None
) -> Path:
    """Write ``compare.csv`` and ``index.html``, and return the latter's path.

    The CSV file has a column for each setting that differs.

    Args:
        folder: The folder to write to.
        groups: The groups of ``compare``.
        contrast: The ``Contrast`` of two of them, which is shown too.
    """
    from mnist_lightning.report.pages import write_page  # here, since NumPy takes a while

    lead = (
        "Runs whose settings differ in the seed alone are a group. "
        "Mean ± standard deviation over the runs."
    )
    sections: dict[str, list[Any]] = {"Groups": _tables(groups)}
    headline = {"Groups": f"{len(groups):,}", "Runs": f"{sum(group['n'] for group in groups):,}"}
    if contrast is not None:
        lead = contrast.sentence
        sections |= contrast.sections()
    page = write_page(folder, "Comparison of runs", lead, headline, sections)
    rows = []
    for group in groups:
        row = {**group["settings"], **group, "runs": " ".join(group["runs"])}
        del row["settings"], row["telling"]
        rows.append(row)
    columns = {name: None for row in rows for name in row}  # a set that keeps the order
    write_csv(folder / "compare.csv", [*columns], rows)
    return page
