"""What a search found: a text table, ``trials.csv``, ``best.yaml`` and a page."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from mnist_lightning.files import read_json, write_atomic, write_csv
from mnist_lightning.report.blocks import Block, Picture, Table
from mnist_lightning.report.figures import CORRECT, WRONG, single, svg
from mnist_lightning.report.pages import write_page
from mnist_lightning.studies.trials import DONE, accuracy_of, best_trial, finished, trial_folder
from mnist_lightning.studies.tune_space import rounded

COLUMNS = ("trial", "validation", "epochs", "seconds")
SHOWN = 10  # trials in the table of the best
TRIALS_CAPTION = (
    "Each point is a trial. A cross is one that was stopped early because others were better, with "
    "its last accuracy. Those far below are drawn at the edge. The line is the best so far."
)
TOGETHER_CAPTION = (
    "Each line is a trial that ran to its end: follow it from setting to setting to its accuracy. "
    "The stronger its blue, the better; the best one is orange."
)
SHARES_CAPTION = (
    "How much each setting told good trials from others, as a share of 100% (PED-ANOVA, Watanabe "
    "et al. 2023). After few trials it is a guess."
)
BLUES = LinearSegmentedColormap.from_list("accuracy", ["#d5dde5", CORRECT])


def cells(trial: FrozenTrial) -> list[str]:
    """Return the number of a finished trial, its accuracy or error, epochs, seconds, settings."""
    epochs = 0 if trial.last_step is None else trial.last_step + 1
    is_pruned = trial.state == TrialState.PRUNED
    return [
        str(trial.number),
        trial.user_attrs.get("error", f"{accuracy_of(trial):.2%}"),
        f"{epochs}, stopped early" if is_pruned else str(epochs),
        f"{_seconds(trial):.1f}",
        *_settings(trial),
    ]


def _settings(trial: FrozenTrial) -> list[str]:
    settings = []
    for value in trial.params.values():
        settings.append(f"{value:.3g}" if isinstance(value, float) else str(value))
    return settings


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


def best_table(study: Study) -> Table:
    """Return the best ten trials."""
    done = [each for each in finished(study) if each.state in DONE]
    done.sort(key=lambda each: (each.state != TrialState.COMPLETE, -accuracy_of(each)))
    return _table(done[:SHOWN])


def failed_table(study: Study) -> Table:
    """Return the trials that an error ended."""
    return _table([each for each in finished(study) if each.state == TrialState.FAIL])


def _table(trials: Sequence[FrozenTrial]) -> Table:
    names = trials[0].params if trials else ()
    return Table([*COLUMNS, *names], [cells(each) for each in trials])


def study_table(study: Study) -> str:
    """Return the best ten trials as a text table, and those that failed as another one."""
    tables = [best_table(study), failed_table(study)]
    return "\n\n".join(str(table) for table in tables if table)


def write_study(study: Study, folder: Path, space: Mapping[str, BaseDistribution]) -> None:
    """Write ``trials.csv``, ``best.yaml`` and ``index.html``; nothing if no trial is complete.

    Args:
        study: The study.
        folder: Its folder, with the runs.
        space: The distribution of each setting.
    """
    best = best_trial(study)
    if best is None:
        return
    trials = [each for each in study.get_trials(deepcopy=False) if each.state.is_finished()]
    _write_trials(trials, folder, space)
    settings = zip(best.params, _settings(best), strict=True)
    found = ", ".join(f"{name} {value}" for name, value in settings)
    lead = f"Trial {best.number} is the best: {found}."
    run_folder = folder / trial_folder(best.number)
    if read_json(run_folder / "run.json").get("command"):  # its config.yaml repeats it
        command = f"python -m mnist_lightning fit --config {shlex.quote(str(folder / 'best.yaml'))}"
        header = f"Trial {best.number} of the study {study.study_name}: validation {best.value:.2%}"
        comment = f"# {header}.\n#\n#   {command}\n#\n# Found: {found}\n"
        recipe = (run_folder / "config.yaml").read_text(encoding="utf-8")
        write_atomic(folder / "best.yaml", comment + recipe)
        lead += f" To train with its settings: {command}"
    done = [each for each in trials if each.state in DONE]
    complete = [each for each in done if each.state == TrialState.COMPLETE]
    headline = {
        "Best validation accuracy": f"{best.value:.2%}",
        "Trials": str(len(done)),
        "Stopped early": str(len(done) - len(complete)),
        "Seconds of all trials": f"{sum(map(_seconds, done)):,.0f}",
    }
    drawing = svg(draw_trials(done, space))
    pictures = [Picture(drawing, "Validation accuracy of each trial", TRIALS_CAPTION, wide=True)]
    if len(space) > 1 and len(complete) > 1:
        together = svg(draw_together(complete, space))
        alt = "A line for each trial through its settings, ending at its accuracy"
        pictures.append(Picture(together, alt, TOGETHER_CAPTION, wide=True))
        shares = svg(draw_shares(get_param_importances(study)))
        pictures.append(Picture(shares, "A bar for each setting", SHARES_CAPTION))
    sections: dict[str, list[Block]] = {
        "Best trials": [best_table(study)],
        "Failed trials": [failed_table(study)],
        "All trials": [*pictures],
    }
    write_page(folder, f"Study {study.study_name}", lead, headline, sections)


def _write_trials(
    trials: Sequence[FrozenTrial], folder: Path, space: Mapping[str, BaseDistribution]
) -> None:
    rows = []
    for each in trials:
        run_folder = trial_folder(each.number)
        row = {
            "number": each.number,
            "state": each.state.name,
            "error": each.user_attrs.get("error"),
            "accuracy": each.value,
            "seconds": round(_seconds(each), 2),
        }
        for name in space:
            row[name] = rounded(each.params.get(name))
        row["folder"] = run_folder if (folder / run_folder).exists() else ""
        rows.append(row)
    write_csv(folder / "trials.csv", [*rows[0]], rows)


def draw_trials(trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]) -> Figure:
    """Draw the accuracy of the trials in their order, and against each of their settings.

    Optuna's ``plot_slice`` leaves out pruned trials, which are most of a long search.
    """
    accuracies = np.array([accuracy_of(each) for each in trials])  # (N,), in [0, 1]
    is_pruned = np.array([each.state == TrialState.PRUNED for each in trials])
    best, median = accuracies.max(), np.median(accuracies)
    accuracies = accuracies.clip(min=best - 4 * (best - median) - 0.001)
    names = ["trial", *space]
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, sharey=True, squeeze=False).flat)
    for axis, name in zip(axes, names, strict=False):
        distribution: Any = space.get(name)
        values = [each.params.get(name, each.number) for each in trials]
        if isinstance(distribution, CategoricalDistribution):
            choices = list(distribution.choices)
            values = [choices.index(value) for value in values]
            labels = [f"{choice!s:.14}" for choice in choices]
            axis.set_xticks(range(len(choices)), labels, rotation=20)
            axis.margins(x=0.2)
        elif getattr(distribution, "log", False):
            axis.set_xscale("log")
            # Ticks at powers of ten would run into each other, or be none.
            ticks = np.geomspace(distribution.low, distribution.high, 3)
            axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            axis.minorticks_off()
        places = np.array(values)
        axis.scatter(places[is_pruned], accuracies[is_pruned], s=20, color="0.55", marker="x")
        axis.scatter(places[~is_pruned], accuracies[~is_pruned], s=20, color=CORRECT, alpha=0.7)
        axis.set_xlabel(name)
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axis.grid(alpha=0.3)
    so_far = np.fmax.accumulate(np.where(is_pruned, np.nan, accuracies))
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].step([each.number for each in trials], so_far, where="post", color=WRONG)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    return figure


def draw_together(trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]) -> Figure:
    """Draw each trial as a line through its settings, from left to right, to its accuracy.

    Args:
        trials: Complete trials.
        space: The distribution of each setting.
    """
    accuracies = np.array([accuracy_of(each) for each in trials])  # (N,), in [0, 1]
    low, high = accuracies.min(), accuracies.max()
    shares = (accuracies - low) / max(high - low, 1e-9)  # (N,), in [0, 1]
    figure, axis = single(10, 3.8)
    heights = []  # of each trial on each upright line, in [0, 1]
    for place, (name, distribution) in enumerate(space.items()):
        values, ticks = _scale(name, distribution, trials)
        heights.append(values)
        for tick, text in ticks.items():
            axis.text(place - 0.03, tick, text, ha="right", va="center", size=9)
    heights.append(shares)
    for share in (0.0, 0.5, 1.0):
        text = f"{low + share * (high - low):.2%}"
        axis.text(len(space) + 0.03, share, text, ha="left", va="center", size=9)
    best = int(accuracies.argmax())
    for number in np.argsort(shares):  # the best ones last, so that they are on top
        line = [values[number] for values in heights]
        is_best = number == best
        colour = WRONG if is_best else BLUES(shares[number])
        axis.plot(line, color=colour, linewidth=2.5 if is_best else 1.2, alpha=0.9)
    for place in range(len(heights)):
        axis.axvline(place, color="0.6", linewidth=1, zorder=0)
    axis.set_xticks(range(len(heights)), [*space, "validation accuracy"])
    axis.set(yticks=[], xlim=(-0.5, len(space) + 0.5), ylim=(-0.08, 1.08))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return figure


def _scale(
    name: str, distribution: Any, trials: Sequence[FrozenTrial]
) -> tuple[NDArray[np.float64], dict[float, str]]:
    """Return the height of each trial's value in [0, 1], and the texts at some heights."""
    given = [each.params[name] for each in trials]
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        steps = max(len(choices) - 1, 1)
        texts = {place / steps: f"{choice!s:.14}" for place, choice in enumerate(choices)}
        return np.array([choices.index(value) for value in given]) / steps, texts
    ends = np.array([distribution.low, distribution.high], float)
    values = np.array(given, float)
    if distribution.log:
        ends, values = np.log10(ends), np.log10(values)
    size = max(ends[1] - ends[0], 1e-12)
    texts = {}
    for height in (0.0, 0.5, 1.0):
        value = ends[0] + height * size
        texts[height] = f"{10**value if distribution.log else value:.2g}"
    return (values - ends[0]) / size, texts


def draw_shares(shares: Mapping[str, float]) -> Figure:
    """Draw how much each setting mattered, in [0, 1], the most important one first."""
    figure, axis = single(6, 0.8 + 0.4 * len(shares))
    bars = axis.barh([*shares], [*shares.values()], color=CORRECT)
    axis.bar_label(bars, [f" {share:.0%}" for share in shares.values()])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.1 * max(shares.values(), default=1) + 0.05), xticks=[])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
