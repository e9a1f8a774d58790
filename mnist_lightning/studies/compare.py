"""Compare runs: those with the same settings are a group, and one table shows all groups; read without torch."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from mnist_lightning.errors import InputError, printable
from mnist_lightning.files import write_csv
from mnist_lightning.report.text import spread, text_table
from mnist_lightning.training.runs import LOG_DIR, FastLoader, read_json

# The seed, and settings that cannot change the result.
IGNORED = re.compile(
    r"seed_everything|seeds|name|ckpt_path|data\.(data_dir|mirrors|eval_batch_size)|"
    r"trainer\.(default_root_dir|logger|profiler|log_every_n_steps|num_sanity_val_steps|model_registry|enable_\w+)"
)
# What a setting means that is missing or null, where that is not "off".
DEFAULTS: dict[str, Any] = {"data.folds": 0, "data.fold": 0, "trainer.max_epochs": 10, "trainer.max_steps": -1}
DEFAULTS |= {"trainer.limit_train_batches": 1.0, "trainer.limit_val_batches": 1.0, "trainer.overfit_batches": 0}
COLUMNS = ("name", "runs", "validation", "test", "seconds", "parameters", "settings")  # of the table
LONGEST = 100  # characters of settings in the terminal


def compare(paths: Sequence[str | Path] = (LOG_DIR,)) -> list[dict[str, Any]]:
    """Return a dict for each group of runs whose settings differ in the seed alone, the best on validation first.

    It imports neither torch nor NumPy. Settings that cannot change the result, such as folders and the progress bar,
    are not compared. Null and a missing setting mean the default, which is in ``DEFAULTS``, or off, as false is. So 0
    is a value like any other. Left out are runs that are not finished, and folders without a valid ``run.json`` and
    ``config.yaml``.

    ``name`` is what the names of the ``runs`` have in common, and ``settings`` are those that differ between the
    groups. ``validation`` and ``test`` are mean accuracies in [0, 1], the latter of the runs that were tested, and
    ``seconds`` is the mean time of training, comparable on one machine only. ``validation_std`` and ``test_std`` are
    sample standard deviations over the ``n`` runs, None for one run. What is not known is None.

    The best epoch of each run and the first group are chosen on the validation images, so these accuracies are a
    little too high: the more epochs and groups, the more. So test the group that you choose, and no other.

    Args:
        paths: Run folders, and folders of runs.

    Raises:
        InputError: If there is no run in one of them.
    """
    found: dict[Any, tuple[dict[str, Any], dict[Path, dict[str, Any]]]] = {}
    for folder in (folder for path in paths for folder in _folders(Path(path))):
        record = read_json(folder / "run.json")
        try:
            settings = settings_in((folder / "config.yaml").read_text(encoding="utf-8"))
        except Exception:  # missing or damaged, which PyYAML may say with any error
            continue
        if settings and record.get("finished", len(record) > 0):
            same = frozenset(meaning(settings).items())
            test = read_json(folder / "report" / "metrics.json").get("accuracy")
            found.setdefault(same, (settings, {}))[1][folder] = record | {"test": test}
    if not found:
        raise InputError(f"no finished run in {', '.join(map(str, paths))}: train one, or resume it with --ckpt_path")
    names = names_of([[*runs] for _, runs in found.values()])
    differences = _differences([settings for settings, _ in found.values()])
    groups = []
    for name, different, (_, runs) in zip(names, differences, found.values(), strict=True):
        group = {"name": name, "n": len(runs), "runs": [str(folder) for folder in runs]}
        for measure, key in (("validation", "best_val_acc"), ("test", "test"), ("seconds", "fit_seconds")):
            values = [record[key] for record in runs.values() if isinstance(record.get(key), (int, float))]
            group[measure] = fmean(values) if values else None
            group[f"{measure}_std"] = stdev(values) if len(values) > 1 else None
        group["parameters"] = next(iter(runs.values())).get("num_parameters")
        groups.append(group | {"settings": different})
    return sorted(groups, key=lambda group: (group["validation"] is None, -(group["validation"] or 0)))


def _folders(path: Path) -> list[Path]:
    found = [path] if (path / "run.json").is_file() else [file.parent for file in sorted(path.glob("*/run.json"))]
    if not found:
        raise InputError(f"no runs in {path}: give run folders, or a folder of runs")
    return found


def settings_in(config: str) -> dict[str, Any]:
    """Return the settings in a ``config.yaml`` by their dotted names, but for the seed and what cannot change a result.

    Sections that runs share are parsed once: that is what takes time.
    """
    sections = [config] if re.search(r"[&*]\w", config) else re.split(r"^(?=\w)", config, flags=re.MULTILINE)
    return dict(setting for section in sections for setting in _section(section))


@cache
def _section(text: str) -> list[tuple[str, Any]]:
    return list(_flatten(dict(yaml.load(text, FastLoader) or {})))


def _flatten(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting and its value. The value of an object is its class; ours and torch's need no module."""
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield place, value
        return
    for key, part in value.items():
        if key == "class_path":
            yield place, re.sub(r"^(mnist_lightning|torch|lightning)\.(.*\.)?", "", str(part))
            continue
        inner = place if key == "init_args" else f"{place}.{key}".lstrip(".")
        if not IGNORED.fullmatch(inner):
            yield from _flatten(part, inner)


def meaning(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what settings mean, as texts: those that are off are left out, as they are in older configurations."""
    given = {name: value for name, value in settings.items() if value is not None}
    return {name: repr(value or 0) for name, value in (DEFAULTS | given).items() if value is not False}


def _differences(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings of each group that differ between groups, under their last words; the Trainer's are last."""
    every = sorted({name: 0 for group in groups for name in group}, key=lambda name: name.startswith("trainer."))
    meanings = [*map(meaning, groups)]
    differ = [name for name in every if len({group.get(name) for group in meanings}) > 1]
    last = [re.sub(r".*\.(?=[a-z])", "", name) for name in differ]
    short = {name: end if last.count(end) == 1 else name for name, end in zip(differ, last, strict=True)}
    return [{short[name]: group[name] for name in differ if name in group} for group in groups]


def names_of(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Return how the folders' names in each group begin; the first folder if that is nothing, or not unique.

    >>> names_of([[Path("runs/fast_42"), Path("runs/fast_43")], [Path("runs/cnn_42")]])
    ['fast', 'cnn_42']
    >>> names_of([[Path("a/fast_1"), Path("a/fast_2")], [Path("b/fast_1"), Path("b/fast_2")]])
    ['a/fast_1 + 1', 'b/fast_1 + 1']
    """
    starts = [os.path.commonprefix([it.name for it in folders]) for folders in groups]  # noqa: RUF071  of names
    names = [re.sub(r"[_.-]?\d*$" if len(it) > 1 else "$", "", name) for it, name in zip(groups, starts, strict=True)]
    firsts = [f"{folders[0]} + {len(folders) - 1}".removesuffix(" + 0") for folders in groups]
    return [name if name and names.count(name) == 1 else first for name, first in zip(names, firsts, strict=True)]


def cells(group: Mapping[str, Any]) -> list[str]:
    """Return the cells of a group under COLUMNS; accuracies are mean ± standard deviation over the runs."""
    texts = [group["name"], str(group["n"])]
    texts += [spread(group[split], group[f"{split}_std"]) for split in ("validation", "test")]
    for value, form in ((group["seconds"], ",.1f"), (group["parameters"], ",")):
        texts.append(format(value, form) if isinstance(value, (int, float)) else "-")
    settings = (f"{name} {'none' if value is None else value}" for name, value in group["settings"].items())
    return [printable(text) for text in (*texts, ", ".join(settings))]


def compare_table(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the groups of ``compare`` as a text table; long settings are cut."""
    rows = [cells(group) for group in groups]
    return text_table([COLUMNS, *([*row, f"{text[:LONGEST]}{'...' * (len(text) > LONGEST)}"] for *row, text in rows)])


def write_comparison(folder: Path, groups: Sequence[Mapping[str, Any]], contrast: Any = None) -> Path:
    """Write ``compare.csv``, with a column for each setting that differs, and ``index.html``; return the latter's path.

    Args:
        folder: The folder to write to.
        groups: The groups of ``compare``.
        contrast: The ``Contrast`` of two of them, which is shown too.
    """
    from mnist_lightning.report.study import Table, write_page  # here, since NumPy takes a while to import

    sections = {"Groups": [Table(COLUMNS, [cells(group) for group in groups])]}
    headline = {"Groups": f"{len(groups):,}", "Runs": f"{sum(group['n'] for group in groups):,}"}
    lead = "Runs whose settings differ in the seed alone are a group. Mean ± standard deviation over the runs."
    if contrast is not None:
        lead = contrast.sentence
        sections |= contrast.sections()
    page = write_page(folder, "Comparison of runs", lead, headline, sections)
    rows = [group["settings"] | {**group, "runs": " ".join(group["runs"])} for group in groups]
    for row in rows:
        del row["settings"]
    write_csv(folder / "compare.csv", [*{name: 0 for row in rows for name in row}], rows)
    return page
