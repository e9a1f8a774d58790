"""What a search found: a text table, ``trials.csv``, ``best.yaml`` and a page."""

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from mnist_lightning.files import write_atomic, write_csv
from mnist_lightning.report.figures import CORRECT, WRONG, svg
from mnist_lightning.report.study import Picture, Table, write_page
from mnist_lightning.report.text import text_table

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
COLUMNS = ("trial", "validation", "epochs", "seconds")
CAPTION = (
    "A cross is a pruned trial with its last accuracy; those far below are on the edge. The line: the best so far."
)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the trial with the best validation accuracy; of equal ones the first."""
    return max(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]), key=_value, default=None)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that count: those that are done, and those that failed with an error, not with their worker."""
    ended = study.get_trials(deepcopy=False, states=[*DONE, TrialState.FAIL])
    return [each for each in ended if each.state in DONE or "error" in each.user_attrs]


def trial_folder(number: int) -> str:
    """Return the name of a trial's run folder."""
    return f"trial_{number:04}"


def tidy(value: Any) -> Any:
    """Return the value of a setting, without the rounding errors of steps such as 0.1."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def cells(trial: FrozenTrial) -> list[str]:
    """Return the number, the accuracy or the error, the epochs, the seconds and the settings of a finished trial."""
    epochs = 0 if trial.last_step is None else trial.last_step + 1
    accuracy = trial.user_attrs.get("error", f"{_value(trial):.2%}")
    settings = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in trial.params.values())
    words = f"{epochs}{', pruned' if trial.state == TrialState.PRUNED else ''}"
    return [str(trial.number), accuracy, words, f"{_seconds(trial):.1f}", *settings]


def study_table(study: optuna.Study) -> str:
    """Return the best ten trials as a text table, and those that failed as another one."""
    return "\n\n".join(map(text_table, _tables(study)))


def write_study(study: optuna.Study, folder: Path, space: Mapping[str, BaseDistribution]) -> None:
    """Write ``trials.csv``, ``best.yaml`` and ``index.html``; nothing if no trial is complete.

    Args:
        study: The study.
        folder: Its folder, with the runs.
        space: The distribution of each setting.
    """
    if (best := best_trial(study)) is None:
        return
    trials = [each for each in study.get_trials(deepcopy=False) if each.state.is_finished()]
    rows: list[dict[str, Any]] = []
    for each in trials:
        error = each.user_attrs.get("error")
        row = {"number": each.number, "state": each.state.name, "error": error, "accuracy": each.value}
        row |= {"seconds": round(_seconds(each), 2), **{name: tidy(each.params.get(name)) for name in space}}
        name = trial_folder(each.number)
        rows.append(row | {"folder": name if (folder / name).exists() else ""})
    write_csv(folder / "trials.csv", [*rows[0]], rows)
    found = ", ".join(f"{name} {cell}" for name, cell in zip(best.params, cells(best)[len(COLUMNS) :], strict=True))
    command = f"python -m mnist_lightning fit --config {shlex.quote(str(folder / 'best.yaml'))}"
    header = f"Trial {best.number} of the study {study.study_name}: validation {best.value:.2%}."
    recipe = (folder / trial_folder(best.number) / "config.yaml").read_text(encoding="utf-8")
    write_atomic(folder / "best.yaml", f"# {header}\n#\n#   {command}\n#\n# Found: {found}\n{recipe}")
    done = [each for each in trials if each.state in DONE]
    headline = {
        "Best validation accuracy": f"{best.value:.2%}",
        "Trials": str(len(done)),
        "Pruned": str(sum(each.state == TrialState.PRUNED for each in done)),
        "Seconds of all trials": f"{sum(map(_seconds, done)):,.0f}",
    }
    pictures = [Picture(svg(draw_trials(done, space)), "Validation accuracy of each trial", CAPTION, wide=True)]
    if len(space) > 1 and sum(each.state == TrialState.COMPLETE for each in done) > 1:
        lines, shares = plots.plot_parallel_coordinate, plots.plot_param_importances
        pictures.append(Picture(by_optuna(lines, study, 10), "Parallel coordinates of the complete trials", wide=True))
        pictures.append(Picture(by_optuna(shares, study, 7), "Importance of each setting", "Shares, by PED-ANOVA."))
    lead = f"Trial {best.number} is the best: {found}. To train with its settings: {command}"
    tables = [Table(columns, rows) for columns, *rows in _tables(study)]
    sections: dict[str, list[Any]] = {"Best trials": tables[:1], "Failed trials": tables[1:], "All trials": pictures}
    write_page(folder, f"Study {study.study_name}", lead, headline, sections)


def _tables(study: optuna.Study) -> list[list[Sequence[str]]]:
    """Return the headings and the rows of the best ten trials, and of those that failed."""
    trials = sorted(finished(study), key=lambda each: (each.state != TrialState.COMPLETE, -_value(each)))
    done = [each for each in trials if each.state in DONE][:10]
    failed = [each for each in trials if each.state == TrialState.FAIL]
    return [[[*COLUMNS, *some[0].params], *map(cells, some)] for some in (done, failed) if some]


def _value(trial: FrozenTrial) -> float:
    return trial.value or 0.0


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


def draw_trials(trials: Sequence[FrozenTrial], space: Mapping[str, BaseDistribution]) -> Figure:
    """Draw the accuracy of the trials in their order, and against each of their settings."""
    accuracies = np.array([*map(_value, trials)])
    pruned = np.array([each.state == TrialState.PRUNED for each in trials])
    median, best = np.median(accuracies), accuracies.max()
    accuracies = accuracies.clip(best - 4 * (best - median) - 0.001)
    rows = -(-(1 + len(space)) // 3)
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, sharey=True, squeeze=False).flat)
    for axis, name in zip(axes, ["trial", *space], strict=False):
        choices = list(getattr(space.get(name), "choices", ()))
        values = [each.params.get(name, each.number) for each in trials]
        places = np.array([choices.index(value) for value in values] if choices else values)
        for shown, style in ((pruned, {"color": "0.55", "marker": "x"}), (~pruned, {"color": CORRECT, "alpha": 0.7})):
            axis.scatter(places[shown], accuracies[shown], s=20, **style)
        if name == "trial":
            axis.step(places, np.fmax.accumulate(np.where(pruned, np.nan, accuracies)), where="post", color=WRONG)
        if choices:
            axis.set_xticks(range(len(choices)), [f"{choice!s:.14}" for choice in choices], rotation=20)
            axis.margins(x=0.2)
        if getattr(space.get(name), "log", False):
            axis.set_xscale("log")
        axis.set_xlabel(name)
        axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axis.grid(alpha=0.3)
    for axis in axes[1 + len(space) :]:
        axis.set_axis_off()
    return figure


def by_optuna(plot: Callable[[optuna.Study], Axes], study: optuna.Study, width: float) -> bytes:
    """Return one of Optuna's plots of a study as SVG, without its title."""
    import matplotlib.pyplot as plt  # here, since Optuna draws with its global state

    with warnings.catch_warnings(action="ignore"):  # about few trials, and that the plots are experimental
        axes = plot(study)
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.set_title("")
    figure.set_size_inches(width, 4)
    figure.subplots_adjust(left=0.56 / width**0.5, bottom=0.25)
    image = svg(figure)
    plt.close(figure)
    return image
