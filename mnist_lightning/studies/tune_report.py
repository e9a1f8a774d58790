"""What a search found: a text table, ``trials.csv``, ``best.yaml`` and a page."""

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from mnist_lightning.files import read_json, write_atomic, write_csv
from mnist_lightning.report.blocks import Block, Picture, Table
from mnist_lightning.report.figures import CORRECT, WRONG, svg
from mnist_lightning.report.pages import write_page
from mnist_lightning.studies.trials import DONE, accuracy_of, best_trial, finished, trial_folder
from mnist_lightning.studies.tune_space import rounded

COLUMNS = ("trial", "validation", "epochs", "seconds")
SHOWN = 10  # trials in the table of the best
CAPTION = (
    "A cross is a pruned trial with its last accuracy; those far below are on the edge. "
    "The line: the best so far."
)


def cells(trial: FrozenTrial) -> list[str]:
    """Return the number of a finished trial, its accuracy or error, epochs, seconds, settings."""
    epochs = 0 if trial.last_step is None else trial.last_step + 1
    is_pruned = trial.state == TrialState.PRUNED
    return [
        str(trial.number),
        trial.user_attrs.get("error", f"{accuracy_of(trial):.2%}"),
        f"{epochs}, pruned" if is_pruned else str(epochs),
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
        "Pruned": str(len(done) - len(complete)),
        "Seconds of all trials": f"{sum(map(_seconds, done)):,.0f}",
    }
    drawing = svg(draw_trials(done, space))
    pictures = [Picture(drawing, "Validation accuracy of each trial", CAPTION, wide=True)]
    if len(space) > 1 and len(complete) > 1:
        pictures += _by_optuna(study)
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
        distribution = space.get(name)
        values = [each.params.get(name, each.number) for each in trials]
        if isinstance(distribution, CategoricalDistribution):
            choices = list(distribution.choices)
            values = [choices.index(value) for value in values]
            labels = [f"{choice!s:.14}" for choice in choices]
            axis.set_xticks(range(len(choices)), labels, rotation=20)
            axis.margins(x=0.2)
        elif getattr(distribution, "log", False):
            axis.set_xscale("log")
        places = np.array(values)
        axis.scatter(places[is_pruned], accuracies[is_pruned], s=20, color="0.55", marker="x")
        axis.scatter(places[~is_pruned], accuracies[~is_pruned], s=20, color=CORRECT, alpha=0.7)
        axis.set_xlabel(name)
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axis.grid(alpha=0.3)
    so_far = np.fmax.accumulate(np.where(is_pruned, np.nan, accuracies))
    axes[0].step([each.number for each in trials], so_far, where="post", color=WRONG)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    return figure


def _by_optuna(study: Study) -> list[Picture]:
    """Return Optuna's plots of several settings together."""
    lines = _svg(plots.plot_parallel_coordinate, study, 10)
    shares = _svg(plots.plot_param_importances, study, 7)
    return [
        Picture(lines, "Parallel coordinates of the complete trials", wide=True),
        Picture(shares, "Importance of each setting", "Shares, by PED-ANOVA."),
    ]


def _svg(plot: Callable[[Study], Axes], study: Study, width: float) -> bytes:
    """Return one of Optuna's plots of a study as SVG, without its title."""
    import matplotlib.pyplot as plt  # here, since Optuna draws with its global state

    # Optuna chooses a style for all figures, and warns of few trials and experimental plots.
    with rc_context(), warnings.catch_warnings(action="ignore"):
        axes = plot(study)
        figure = axes.get_figure(root=True)
        assert figure is not None
        axes.set_title("")
        figure.set_size_inches(width, 4)
        figure.subplots_adjust(left=0.56 / width**0.5, bottom=0.25)
        image = svg(figure)
        plt.close(figure)
    return image
