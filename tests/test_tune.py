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
from conftest import ROOT
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.studies import tune as module
from mnist_lightning.studies.tune import tune
from mnist_lightning.studies.tune_report import DONE, study_table
from mnist_lightning.studies.tune_space import read_distributions
from mnist_lightning.training.runs import read_config, read_json

FLAGS = ["--data", "UCIDigits", "--device", "cpu", "--epochs", "2"]
SPACE = {"lr": {"low": "1e-4", "high": 0.01, "log": True}, "net.hidden_sizes": {"choices": [[16], [16, 8]]}}
STUDY = Path("lightning_logs/tune")


def numbers(study: optuna.Study, *states: TrialState) -> list[int]:
    return [trial.number for trial in study.get_trials(states=states)]


def test_space_becomes_distributions() -> None:
    space = {**SPACE, "batch_size": {"low": 8, "high": 64}, "net.dropout": {"low": 0, "high": 0.5, "step": 0.1}}
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
def test_invalid_space_is_one_line_and_writes_nothing(space: Any, words: list[str], folder: Path) -> None:
    with pytest.raises(InputError) as error:
        tune(space, FLAGS, 1)
    assert all(word in str(error.value) for word in words)
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("folder")
def test_other_arguments_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "count_cores", lambda: 2)
    invalid: dict[str, Any] = {"from 1 to 2, the number of CPU cores here, got 3": {"workers": 3}}
    invalid |= {"none; got 1 and some": {"pruner": "some"}, "use the storage other://x": {"storage": "other://x"}}
    invalid |= {"validation images": {"flags": [*FLAGS, "--data.val_fraction", "0"]}}
    for message, given in invalid.items():
        with pytest.raises(InputError, match=message):
            tune(SPACE, trials=1, **{"flags": FLAGS} | given)


@pytest.mark.usefixtures("folder")
def test_study_ends_with_its_trials_and_continues(capsys: pytest.CaptureFixture[str]) -> None:
    study = tune(SPACE, FLAGS, 4, pruner="none")
    assert numbers(study, TrialState.COMPLETE) == [0, 1, 2, 3]
    assert [text.split()[1] for text in capsys.readouterr().out.splitlines()] == ["0", "1", "2", "3"]
    best = max(study.trials, key=lambda trial: trial.value or 0)
    assert [path.parent.name for path in STUDY.glob("*/checkpoints")] == [f"trial_000{best.number}"]
    settings = yaml.safe_load((STUDY / "best.yaml").read_text())
    assert "trial_" not in str(settings)
    lr = settings["model"]["optimizer"]["init_args"]["lr"]
    sizes = settings["model"]["net"]["init_args"]["hidden_sizes"]
    assert {"lr": pytest.approx(lr), "net.hidden_sizes": str(sizes)} == best.params
    rows = csv.DictReader((STUDY / "trials.csv").open())
    assert [float(row["accuracy"]) for row in rows] == [trial.value for trial in study.trials]
    assert f"<dd>{best.value:.2%}</dd>" in (STUDY / "index.html").read_text()

    assert numbers(tune(SPACE, FLAGS, 4), TrialState.COMPLETE) == [0, 1, 2, 3]
    with (STUDY / "journal.log").open("a") as journal:
        journal.write('{"op_code":4,"wor')  # a full disk cuts a line
    assert numbers(tune(SPACE, FLAGS, 5), TrialState.COMPLETE) == [0, 1, 2, 3, 4]
    for space, flags in ((SPACE, [*FLAGS, "--epochs", "3"]), ({"lr": SPACE["lr"]}, FLAGS)):
        with pytest.raises(InputError, match=r"has a study with another (space|trainer.max_epochs 2, now 3): give"):
            tune(space, flags, 5)
    assert main(["fit", "--config", str(STUDY / "best.yaml"), "--name", "again"]) == 0
    with pytest.raises(InputError, match="is a run: give another --name"):
        tune(SPACE, FLAGS, 1, name="again")
    with pytest.raises(InputError, match="and the storage have different studies"):
        tune(SPACE, FLAGS, 5, storage="other.log")


@pytest.mark.usefixtures("folder")
def test_trial_of_a_dead_worker_is_tried_once_more() -> None:
    space = {"lr": SPACE["lr"]}
    study = tune(space, FLAGS, 1)
    for number in (1, 2):
        assert study.ask(dict(read_distributions(space))).number == number
        (STUDY / f"trial_000{number}").mkdir()
    program = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(STUDY / ".trial_0001.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == b"1\n"
        tune(space, FLAGS, 4)
        assert "".join(trial.state.name[0] for trial in study.trials) == "CRFCC"
        worker.kill()
    assert numbers(tune(space, FLAGS, 4), TrialState.COMPLETE) == [0, 3, 4, 5]
    study.enqueue_trial({}, {"retry_of": 0})
    assert study.ask().number == 6
    tune(space, FLAGS, 5)
    trials = study.trials
    assert "".join(trial.state.name[0] for trial in trials) == "CFFCCCFC"
    assert [trial.user_attrs.get("retry_of") for trial in trials] == [None, None, None, 2, None, 1, 0, None]
    assert [trials[3].params, trials[5].params] == [trials[2].params, trials[1].params]
    assert {path.name for path in STUDY.glob(".*")} == {".lock"}
    assert {path.name for path in STUDY.glob("trial_*")} == {f"trial_000{number}" for number in (0, 3, 4, 5, 7)}


class Fails(Callback):
    """Raise an error in some trials, counted from 0."""

    def __init__(self, trials: Container[int], error: BaseException) -> None:
        self.trials, self.error, self.seen = trials, error, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen += 1
        if self.seen in self.trials:
            raise self.error


@pytest.mark.usefixtures("folder")
def test_a_trial_that_fails_is_listed_and_the_study_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate <b>")
    study = tune(SPACE, FLAGS, 4, callbacks=[Fails([0, 2], error)], pruner="none")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    reason = r"OutOfMemoryError: CUDA out of memory.\nTried to allocate <b>"
    rows = [*csv.DictReader((STUDY / "trials.csv").open())]
    assert [(row["state"], row["error"]) for row in rows[:2]] == [("FAIL", reason), ("COMPLETE", "")]
    assert [row["folder"] for row in rows] == ["", "trial_0001", "", "trial_0003"]
    assert f"trial  0  {reason}  0  " in capsys.readouterr().out
    best, failed = study_table(study).split("\n\n")
    assert (len(best.splitlines()), best.split()[0]) == (3, "trial")
    assert [re.split("  +", line)[:3] for line in failed.splitlines()[1:]] == [["0", reason, "0"], ["2", reason, "0"]]
    page = html.unescape((STUDY / "index.html").read_text())
    assert (page.count(reason), ">Failed trials</h2>" in page) == (2, True)
    assert len(tune(SPACE, FLAGS, 4).trials) == 4  # they count, and are not tried again
    assert {path.name for path in STUDY.glob(".*")} == {".lock"}


@pytest.mark.usefixtures("folder")
def test_an_interrupted_trial_stops_its_worker_and_is_tried_once_more() -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(SPACE, FLAGS, 2, callbacks=[Fails([0], KeyboardInterrupt())])
    study = tune(SPACE, FLAGS, 2)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert (study.trials[1].user_attrs, study.trials[1].params) == ({"retry_of": 0}, study.trials[0].params)


@pytest.mark.usefixtures("folder")
def test_a_mistake_that_fails_every_trial_stops_the_study() -> None:
    message = "trials fail, 5 in a row: RuntimeError: no GPU; to go on all the same, repeat the command"
    with pytest.raises(InputError, match=message):
        tune(SPACE, FLAGS, 1000, callbacks=[Fails(range(1000), RuntimeError("no GPU"))])
    study = tune(SPACE, FLAGS, 7)
    assert numbers(study, TrialState.COMPLETE) == [5, 6]
    with pytest.raises(InputError, match="trials fail, 1 in a row: InputError: no epoch was validated"):
        tune(SPACE, [*FLAGS, "--trainer.check_val_every_n_epoch", "5"], 1, name="blind")
    assert (
        study_table(tune(SPACE, [*FLAGS, "--trainer.check_val_every_n_epoch", "5"], 1, name="blind")).count("\n") == 1
    )


@pytest.mark.usefixtures("folder")
def test_hopeless_trial_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class StopSecond(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.number == 1

    monkeypatch.setitem(module.PRUNERS, "median", StopSecond)
    study = tune(SPACE, [*FLAGS, "--epochs", "3"], 2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    assert [list(trial.intermediate_values) for trial in study.trials] == [[0, 1, 2], [0]]
    pruned = study.trials[1]
    assert pruned.value == read_json(STUDY / "trial_0001/run.json")["best_val_acc"]
    assert f"{pruned.value:.2%}      1, pruned  " in study_table(study).splitlines()[2]


@pytest.mark.long
@pytest.mark.usefixtures("folder")
def test_two_workers_share_the_trials(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(module, "count_cores", lambda: 2)
    done = numbers(tune(SPACE, FLAGS, 6, workers=2, storage="sqlite:///study.db"), *DONE)
    assert done == [0, 1, 2, 3, 4, 5]
    assert len(capfd.readouterr().out.splitlines()) == 6
    assert (STUDY / "best.yaml").exists()
