"""The search for settings: its space, its trials, its files, and trials whose worker died."""

import csv
import html
import re
import subprocess
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from conftest import ROOT, refusal, refused_line
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from mnist_lightning import MLP, DigitClassifier, UCIDigits
from mnist_lightning.cli.main import main
from mnist_lightning.files import read_config, read_json
from mnist_lightning.recipe import read
from mnist_lightning.report.figures import WRONG
from mnist_lightning.studies import trials as trials_module
from mnist_lightning.studies import tune as tune_module
from mnist_lightning.studies.trials import DONE
from mnist_lightning.studies.tune import tune
from mnist_lightning.studies.tune_report import draw_together, draw_trials, study_table
from mnist_lightning.studies.tune_space import read_distributions

FLAGS = ["--data", "UCIDigits", "--device", "cpu", "--epochs", "2"]
SPACE = {
    "lr": {"low": "1e-4", "high": 0.01, "log": True},
    "net.hidden_sizes": {"choices": [[16], [16, 8]]},
}
STUDY = Path("lightning_logs/tune")


def search(trials: int, space: Any = None, **given: Any) -> optuna.Study:
    """A search by objects; some arguments are those of fit or of the data."""
    data = {name: given.pop(name) for name in ("val_fraction",) if name in given}
    own = ("name", "storage", "pruner", "callbacks", "workers")
    fits = {name: given.pop(name) for name in [*given] if name not in own}

    def make(lr: float, sizes: list[int], dropout: float = 0) -> dict[str, Any]:
        def model() -> DigitClassifier:
            return DigitClassifier(
                MLP(sizes, dropout), lambda weights: torch.optim.Adam(weights, lr)
            )

        settings = {"data": UCIDigits(**data), "max_epochs": 2, "accelerator": "cpu"}
        return {"model": model, **settings, **fits}

    usual = {"lr": SPACE["lr"], "sizes": SPACE["net.hidden_sizes"]}
    return tune(usual if space is None else space, make, trials, **given)


def numbers(study: optuna.Study, *states: TrialState) -> list[int]:
    return [trial.number for trial in study.get_trials(states=states)]


def states(study: optuna.Study) -> str:
    """The first letter of each trial's state."""
    return "".join(trial.state.name[0] for trial in study.trials)


def test_space_becomes_distributions() -> None:
    space = {
        **SPACE,
        "batch_size": {"low": 8, "high": 64},
        "net.dropout": {"low": 0, "high": 0.5, "step": 0.1},
    }
    assert read_distributions(space) == {
        "lr": FloatDistribution(1e-4, 0.01, log=True),
        "net.hidden_sizes": CategoricalDistribution(["[16]", "[16, 8]"]),
        "batch_size": IntDistribution(8, 64),
        "net.dropout": FloatDistribution(0, 0.5, step=0.1),
    }
    for path in (ROOT / "configs/tune").glob("*.yaml"):
        assert f"--space configs/tune/{path.name}" in path.read_text(encoding="utf-8")
        assert read_distributions(read_config(path))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, ["empty"]),
        ({"lr": {"low": 0, "high": -0.5, "log": True}}, ["--lr", "log", "-0.5"]),
        ({"lr": {"low": "slow", "hi": 1}}, ["--lr", "slow", "hi"]),
        ({"batch_size": {"low": 10, "high": 20, "step": 3}}, ["--batch_size", "step"]),
        ({"batch_size": {"choices": [8, "many"]}}, ["batch_size", "many"]),
        ({"batch_size": {"choices": []}}, ["--batch_size", "choices"]),
        ({"lrr": {"low": 0.1, "high": 1}}, ["--lrr"]),
        ({"net.dropout": {"low": 0.1, "high": 1.5}}, ["dropout", "1.5"]),
    ],
)
def test_invalid_space_is_one_line_and_writes_nothing(
    space: Any, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text(yaml.safe_dump(space))
    line = refused_line(capsys, "tune", "--space", "space.yaml", *FLAGS, "--trials", "1")
    assert all(word in line for word in words)
    assert [path.name for path in folder.iterdir()] == ["space.yaml"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 3}, "from 1 to 2, the number of CPU cores here, got 3"),
        ({"pruner": "some"}, "none; got 1 and some"),
        ({"storage": "other://x"}, "use the storage other://x"),
        ({"val_fraction": 0}, "validation images"),
        ({"devices": 2}, "has one device, got devices 2"),
    ],
)
def test_other_arguments_are_checked(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "count_cores", lambda: 2)
    assert message in refusal(search, 1, **given)


@pytest.mark.usefixtures("folder")
def test_study_ends_with_its_trials_and_continues(capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text(yaml.safe_dump(SPACE))
    command = ["tune", "--space", "space.yaml", *FLAGS]
    assert main([*command, "--trials", "4", "--pruner", "none"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^trial  (\d)", out, re.MULTILINE) == ["0", "1", "2", "3"]
    assert "Page and best.yaml: lightning_logs/tune/" in out
    rows = list(csv.DictReader((STUDY / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["COMPLETE"] * 4
    best = max(rows, key=lambda row: float(row["accuracy"]))
    folder = f"trial_000{best['number']}"
    assert [path.parent.name for path in STUDY.glob("*/checkpoints")] == [folder]
    assert read_json(STUDY / folder / "run.json")["best_val_acc"] == float(best["accuracy"])
    settings = yaml.safe_load((STUDY / "best.yaml").read_text())
    assert "trial_" not in str(settings)
    lr = settings["model"]["optimizer"]["init_args"]["lr"]
    sizes = settings["model"]["net"]["init_args"]["hidden_sizes"]
    assert (float(best["lr"]), best["net.hidden_sizes"]) == (pytest.approx(lr), str(sizes))
    assert f"<dd>{float(best['accuracy']):.2%}</dd>" in (STUDY / "index.html").read_text()
    other = refused_line(capsys, *command, "--epochs", "3")
    assert "has a study with another trainer.max_epochs 2, now 3: give" in other
    assert main(["fit", "--config", str(STUDY / "best.yaml"), "--name", "again"]) == 0
    assert "is a run: give another name" in refused_line(capsys, *command, "--name", "again")


@pytest.mark.usefixtures("folder")
def test_a_search_by_objects_continues() -> None:
    study = search(3, pruner="none")
    assert numbers(study, TrialState.COMPLETE) == [0, 1, 2]
    best = study.best_trial
    config = read_config(STUDY / f"trial_000{best.number}/config.yaml")
    assert str(config["model"]["net"]["init_args"]["hidden_sizes"]) == best.params["sizes"]
    model = read(["--config", str(STUDY / "best.yaml")]).for_study()["model"]()
    optimizer = model.optimizer(model.net.parameters())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(best.params["lr"], rel=0.01)
    assert numbers(search(3), TrialState.COMPLETE) == [0, 1, 2]
    assert "2 workers need the command of one" in refusal(search, 5, workers=2)
    with (STUDY / "journal.log").open("a") as journal:
        journal.write('{"op_code":4,"wor')  # a full disk cuts a line
    assert numbers(search(4), TrialState.COMPLETE) == [0, 1, 2, 3]
    another = "has a study with another "
    assert f"{another}trainer.max_epochs 2, now 3: give" in refusal(search, 5, max_epochs=3)
    space = {"lr": {"choices": [1e-4]}, "sizes": {"choices": [[16]]}}
    assert f"{another}space: give" in refusal(search, 5, space=space)
    message = refusal(search, 5, storage="other.log")
    assert "and the storage have different studies" in message


@pytest.mark.usefixtures("folder")
def test_trial_of_a_dead_worker_is_tried_once_more() -> None:
    study = search(1)
    (trial,) = study.trials
    for number in (1, 2):
        assert study.ask(trial.distributions).number == number
        (STUDY / f"trial_000{number}").mkdir()
    program = (
        "import filelock, sys\n"
        "with filelock.FileLock(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(STUDY / ".trial_0001.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == b"1\n"
        search(4)
        assert states(study) == "CRFCC"
        worker.kill()
    assert numbers(search(4), TrialState.COMPLETE) == [0, 3, 4, 5]
    study.enqueue_trial({}, {"retry_of": 0})
    assert study.ask().number == 6
    search(5)
    assert states(study) == "CFFCCCFC"
    trials = study.trials
    retries = [trial.user_attrs.get("retry_of") for trial in trials]
    assert retries == [None, None, None, 2, None, 1, 0, None]
    assert [trials[3].params, trials[5].params] == [trials[2].params, trials[1].params]
    assert {path.name for path in STUDY.glob(".*")} == {".lock"}
    assert {path.name for path in STUDY.glob("trial_*")} == {
        f"trial_000{number}" for number in (0, 3, 4, 5, 7)
    }


class Fails(Callback):
    """Raise an error in some trials."""

    def __init__(self, trials: Container[int], error: BaseException) -> None:
        self.trials, self.error = trials, error

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if int(trainer.default_root_dir[-4:]) in self.trials:
            raise self.error


@pytest.mark.usefixtures("folder")
def test_a_trial_that_fails_is_listed_and_the_study_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate <b>")
    study = search(4, callbacks=[Fails([0, 2], error)], pruner="none")
    assert states(study) == "FCFC"
    reason = r"OutOfMemoryError: CUDA out of memory.\nTried to allocate <b>"
    rows = [*csv.DictReader((STUDY / "trials.csv").open())]
    assert (rows[0]["error"], rows[1]["error"]) == (reason, "")
    assert [row["folder"] for row in rows] == ["", "trial_0001", "", "trial_0003"]
    assert f"trial  0  {reason}  0  " in capsys.readouterr().out
    best, failed = study_table(study).split("\n\n")
    assert (len(best.splitlines()), best.split()[0]) == (3, "trial")
    found = [re.split("  +", line.strip())[:3] for line in failed.splitlines()[1:]]
    assert found == [["0", reason, "0"], ["2", reason, "0"]]
    page = html.unescape((STUDY / "index.html").read_text())
    assert (page.count(reason), ">Failed trials</h2>" in page) == (2, True)
    assert len(search(4).trials) == 4  # they count, and are not tried again
    assert {path.name for path in STUDY.glob(".*")} == {".lock"}


@pytest.mark.usefixtures("folder")
def test_an_interrupted_trial_stops_its_worker_and_is_tried_once_more() -> None:
    with pytest.raises(KeyboardInterrupt):
        search(2, callbacks=[Fails([0], KeyboardInterrupt())])
    study = search(2)
    assert states(study) == "FCC"
    first, second, _ = study.trials
    assert (second.user_attrs, second.params) == ({"retry_of": 0}, first.params)


@pytest.mark.usefixtures("folder")
def test_a_mistake_that_fails_every_trial_stops_the_study() -> None:
    fails = Fails(range(1000), RuntimeError("no GPU"))
    message = refusal(search, 1000, callbacks=[fails])
    again = "to go on all the same, repeat the command"
    assert message == f"trials fail, 5 in a row: RuntimeError: no GPU; {again}"
    assert numbers(search(7), TrialState.COMPLETE) == [5, 6]
    blind: dict[str, Any] = {"check_val_every_n_epoch": 5, "name": "blind"}
    message = refusal(search, 1, **blind)
    assert message.startswith("trials fail, 1 in a row: InputError: no epoch was validated")
    assert len(study_table(search(1, **blind)).splitlines()) == 2


@pytest.mark.usefixtures("folder")
def test_hopeless_trial_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class StopSecond(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.number == 1

    monkeypatch.setitem(trials_module.PRUNERS, "median", StopSecond)
    study = search(2, max_epochs=3)
    assert states(study) == "CP"
    assert [list(trial.intermediate_values) for trial in study.trials] == [[0, 1, 2], [0]]
    pruned = study.trials[1]
    assert pruned.value == read_json(STUDY / "trial_0001/run.json")["best_val_acc"]
    words = study_table(study).splitlines()[2].split()
    assert words[:5] == ["1", f"{pruned.value:.2%}", "1,", "stopped", "early"]


@pytest.mark.long
@pytest.mark.usefixtures("folder")
def test_two_workers_share_the_trials(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tune_module, "count_cores", lambda: 2)
    Path("space.yaml").write_text(yaml.safe_dump(SPACE))
    words = ["--trials", "6", "--workers", "2", "--storage", "sqlite:///study.db"]
    assert main(["tune", "--space", "space.yaml", *FLAGS, *words]) == 0
    study = optuna.load_study(study_name="tune", storage="sqlite:///study.db")
    assert numbers(study, *DONE) == [0, 1, 2, 3, 4, 5]
    assert capfd.readouterr().out.count("trial  ") >= 6
    assert (STUDY / "best.yaml").exists()


def test_the_line_of_each_trial_goes_through_its_settings() -> None:
    space: dict[str, Any] = {
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "size": CategoricalDistribution([8, 16, 32]),
        "dropout": FloatDistribution(0.0, 0.4),
    }
    trials = []
    for lr, size, dropout, accuracy in ((1e-3, 8, 0.1, 0.9), (1e-2, 32, 0.4, 0.8)):
        given = {"lr": lr, "size": size, "dropout": dropout}
        trials.append(create_trial(params=given, distributions=space, value=accuracy))
    (axis,) = draw_together(trials, space).axes
    lines = [line for line in axis.lines if len(line.get_ydata()) == 4]
    assert lines[0].get_ydata() == pytest.approx([1, 1, 1, 0])  # the worse one first
    assert lines[1].get_ydata() == pytest.approx([0.5, 0, 0.25, 1])
    assert lines[1].get_color() == WRONG
    texts = [text.get_text() for text in axis.texts]
    assert texts[:6] == ["0.0001", "0.001", "0.01", "8", "16", "32"]
    assert texts[-3:] == ["80.00%", "85.00%", "90.00%"]
    axes = draw_trials(trials, space).axes
    labels = [text.get_text() for text in axes[1].get_xticklabels(which="both")]
    assert labels == ["0.0001", "0.001", "0.01"]
