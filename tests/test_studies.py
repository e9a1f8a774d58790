"""Training by flags, seeds, folds, learning curves and frozen layers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from filelock import FileLock
from sklearn.model_selection import KFold, StratifiedKFold

from mnist_lightning import CNN, MLP, DigitClassifier, UCIDigits, fit, load_run
from mnist_lightning.cli import main
from mnist_lightning.data.split import split_rows
from mnist_lightning.errors import InputError
from mnist_lightning.studies.crossval import CrossValidation, cross_validate, learning_curve
from mnist_lightning.studies.crossval_report import curve_table, write_crossval
from mnist_lightning.studies.train import finish, train, train_seeds
from mnist_lightning.training.runs import read_config

LABELS = torch.arange(100) % 10
FLAGS = ["--data", "UCIDigits", "--net.hidden_sizes", "[16]", "--epochs", "1", "--device", "cpu"]


@pytest.mark.parametrize("stratified", [False, True])
def test_folds_are_those_of_scikit_learn(stratified: bool) -> None:
    kind = StratifiedKFold if stratified else KFold
    for fold, (train_rows, val_rows) in enumerate(kind(5, shuffle=True, random_state=3).split(LABELS, LABELS)):
        train_set, val_set = split_rows(LABELS, 0.2, 3, 5, fold, stratified, None)
        assert val_set.tolist() == val_rows.tolist()
        assert sorted(train_set.tolist()) == train_rows.tolist()


def test_train_size_takes_the_first_images_and_keeps_the_validation_images() -> None:
    whole, val = split_rows(LABELS, 0.2, 0, 0, 0, False, None)
    some, same = split_rows(LABELS, 0.2, 0, 0, 0, False, 12)
    assert (some.tolist(), same.tolist()) == (whole[:12].tolist(), val.tolist())
    balanced, _ = split_rows(LABELS, 0.2, 0, 0, 0, True, 20)
    assert LABELS[balanced].bincount().tolist() == [2] * 10
    with pytest.raises(InputError, match="train_size must be at most 80, the number of training images, got 81"):
        split_rows(LABELS, 0.2, 0, 0, 0, False, 81)
    with pytest.raises(InputError, match="cannot make 101 folds of 100 images: "):
        split_rows(LABELS, 0.2, 0, 101, 0, False, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folds": 1}, "folds must be 0 or at least 2, got 1"),
        ({"folds": 3, "fold": 3}, "fold must be in [0, 3), got 3"),
        ({"train_size": 0}, "train_size must be at least 1, got 0"),
    ],
)
def test_invalid_folds(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as error:
        UCIDigits(**wrong)
    assert str(error.value) == message


def test_a_run_is_read_or_resumed_or_refused(folder: Path) -> None:
    where = folder / "lightning_logs/a"
    first = train([*FLAGS, "--name", "a"])
    assert (first.folder.resolve(), first.record["finished"]) == (where, True)
    weights = torch.load(where / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    before = (where / "run.json").stat().st_mtime_ns
    again = finish(FLAGS, where)
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in weights.items())
    assert (where / "run.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"has other settings \(trainer.max_epochs 1, now 2\): give another"):
        finish([*FLAGS, "--epochs", "2"], where)
    with pytest.raises(InputError, match=r"has other settings \(trainer.limit_val_batches None, now 0"):
        finish([*FLAGS, "--trainer.limit_val_batches", "0"], where)
    record = (where / "run.json").read_text()
    (where / "run.json").write_text(record.replace('"finished": true', '"finished": false'))
    assert finish(FLAGS, where).record["finished"]
    with FileLock(where.parent / ".a.lock"), pytest.raises(InputError, match=r"another process trains .*: wait for it"):
        finish(FLAGS, where)


def test_seeds_train_the_same_as_one_by_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *FLAGS, "--seeds", "1-2", "--name", "s"]) == 0
    assert "s     2" in capsys.readouterr().out
    alone = train([*FLAGS, "--seed", "2", "--name", "alone"])
    of_two = train_seeds(FLAGS, "s", [2])[0]
    assert of_two.folder == Path("lightning_logs/s_2")
    assert torch.equal(alone.model.net.layers[1].weight, of_two.model.net.layers[1].weight)
    for words, message in (
        (["fit", "--seeds", "1-x"], "--seeds takes numbers and ranges such as 42-46, got 1-x"),
        (["fit", "--seeds", "3-1"], "--seeds takes numbers and ranges such as 42-46, got 3-1"),
        (["crossval", "--seeds", "1-2"], "a study trains new runs and saves them: it takes no --ckpt_path, no --seeds"),
        (["fit", "--seeds", "1", "--init_from", "last"], "a study trains new runs and saves them"),
        (["crossval", "--stratified", "perhaps"], "argument --stratified: invalid boolean value: 'perhaps'"),
        (["crossval", "--name", ".."], "a study's name must be one folder name, got .."),
        (["tune"], "tune needs the settings to try: --space FILE"),
    ):
        assert main([*words, *FLAGS]) == 2
        error = capsys.readouterr().err
        assert (message in error, error.count("\n")) == (True, 1)


def test_cross_validation_predicts_each_image_once(folder: Path) -> None:
    result = cross_validate(FLAGS, "cv", folds=3, repeats=2)
    assert (result.accuracies.shape, len(result.labels)) == ((2, 3), 1437)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)
    sizes = np.full(3, 479)
    assert result.times_wrong.sum() == round(((1 - result.accuracies) * sizes).sum())
    run = finish([*FLAGS, *fold_flags(1, 1)], folder / "lightning_logs/cv/repeat_1_fold_1")
    run.data.setup("fit")
    assert run.data.val_set is not None
    images, labels = run.data.val_set.arrays()
    assert result.accuracies[1, 1] == np.mean(run.predict(images).digits == labels) == pytest.approx(run.best_val_acc)

    write_crossval(result)
    table = np.loadtxt("lightning_logs/cv/out_of_fold.csv", delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == list(range(1437))
    assert table[:, 1].tolist() == UCIDigits().load("train")[1].tolist()
    assert Path("lightning_logs/cv/index.html").stat().st_size > 10_000


def test_studies_refuse_a_start_that_has_seen_their_images(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run, a checkpoint file, a teacher, or an ancestor; a run of other data may be the start."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert main(["fit", *FLAGS, "--data.val_fraction", "0", "--name", "all"]) == 0
    run = "lightning_logs/all"
    assert main(["fit", *FLAGS, "--data", "test_studies.Other", "--init_from", run, "--name", "child"]) == 0
    assert main(["fit", *FLAGS, "--data", "test_studies.Other", "--teacher", run, "--name", "pupil"]) == 0
    assert main(["fit", *FLAGS, "--data", "test_studies.Other", "--name", "other"]) == 0
    assert main(["fit", *FLAGS, "--data", "test_studies.Same", "--name", "same"]) == 0
    Path("starts.yaml").write_text(f"init_from: {{choices: [lightning_logs/other, {run}]}}")
    shutil.copy(f"{run}/checkpoints/last.ckpt", "stray.ckpt")
    torch.save({"state_dict": torch.load("stray.ckpt", weights_only=True)["state_dict"]}, "weights.ckpt")
    load_run(run).export("all.safetensors")
    Path("space.yaml").write_text("lr: {choices: [0.001, 0.002]}")
    capsys.readouterr()
    seen, unknown = "was trained on UCIDigits too", "does not say what it was trained on"
    for flags, why in (
        (["--init_from", run], f"{run} {seen}"),
        (["--teacher", run], f"{run} {seen}"),
        (["--teacher", "lightning_logs/other", run], f"{run} {seen}"),
        (["--init_from", "stray.ckpt"], f"stray.ckpt {seen}"),
        (["--init_from", "lightning_logs/same"], f"lightning_logs/same {seen}"),
        (["--init_from", "lightning_logs/child"], f"lightning_logs/child {seen}"),
        (["--init_from", "lightning_logs/pupil"], f"lightning_logs/pupil {seen}"),
        (["--init_from", "weights.ckpt"], f"weights.ckpt {unknown}"),
        (["--init_from", "all.safetensors"], f"all.safetensors {unknown}"),
    ):
        for verb in (["crossval"], ["tune", "--space", "space.yaml"], ["crossval", "--train_sizes", "20"]):
            assert main([*verb, *FLAGS, *flags, "--name", "study"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"error: {why}, so it may know the images that are held out" in line
    assert main(["tune", "--space", "starts.yaml", *FLAGS, "--name", "study"]) == 2
    assert f"error: {run} {seen}" in capsys.readouterr().err
    assert main(["crossval", *FLAGS, "--folds", "2000", "--name", "study"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("lightning_logs/study").exists()
    assert main(["crossval", *FLAGS, "--folds", "2", "--init_from", "lightning_logs/other", "--name", "study"]) == 0


class Same(UCIDigits):
    """UCI's images under another name."""


class Other(UCIDigits):
    """Other images than UCI's."""

    def load(self, split: str) -> tuple[Any, Any]:  # type: ignore[override]
        images, labels = super().load(split)  # type: ignore[arg-type]
        return 255 - images, labels


def test_fit_says_that_validation_images_were_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It counts them: those of the own split that the other run was trained on."""

    def trained(*flags: str) -> tuple[str, int | None]:
        capsys.readouterr()
        assert main(["fit", *FLAGS, *flags]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "learnt from" in line]
        return "".join(lines), load_run().record["validation_seen"]

    assert trained("--data.val_fraction", "0", "--name", "all") == ("", 0)
    assert trained("--name", "same") == ("", 0)
    assert trained("--data.val_fraction", "0.5", "--name", "half") == ("", 0)
    assert trained("--data.split_seed", "3", "--name", "split") == ("", 0)
    assert trained("--data.folds", "3", "--data.fold", "1", "--name", "fold") == ("", 0)
    data = UCIDigits()
    data.setup("fit")
    own = set(data.val_set.rows.tolist())  # type: ignore[union-attr]
    for name, settings in (
        ("all", {"val_fraction": 0}),
        ("split", {"split_seed": 3}),
        ("fold", {"folds": 3, "fold": 1}),
    ):
        other = UCIDigits(**settings)  # type: ignore[arg-type]
        other.setup("fit")
        number = len(own & set(other.train_set.rows.tolist()))  # type: ignore[union-attr]
        for flag in ("--init_from", "--teacher"):
            line, seen = trained(flag, f"lightning_logs/{name}")
            assert (seen, f"{number:,} of the 287 validation images" in line) == (number, True)
    # The same split, and a validation set that is a part of the other's, were not seen.
    assert trained("--init_from", "lightning_logs/same") == trained("--init_from", "lightning_logs/half") == ("", 0)
    assert trained("--init_from", "lightning_logs/same", "--data.train_size", "50") == ("", 0)
    run = fit(DigitClassifier(MLP([16])), UCIDigits(), teacher=load_run("lightning_logs/all"), max_epochs=1)
    assert run.record["validation_seen"] == 287
    capsys.readouterr()
    assert main(["validate", "--ckpt_path", "lightning_logs/split", "--data.split_seed", "0"]) == 0
    assert "may have learnt from 2" in capsys.readouterr().out
    assert main(["validate", "--ckpt_path", "lightning_logs/split"]) == 0
    assert "learnt from" not in capsys.readouterr().out
    load_run("lightning_logs/all").export("all.safetensors")
    assert trained("--init_from", "all.safetensors")[1] is None
    assert trained("--teacher", "all.safetensors")[0].startswith("It is not known which images the weights or the ")
    assert main(["validate", "--ckpt_path", "all.safetensors", "--data", "UCIDigits"]) == 0
    assert "It is not known which images" in capsys.readouterr().out
    assert trained("--init_from", "all.safetensors", "--data.val_fraction", "0") == ("", 0)  # nothing is validated


def fold_flags(repeat: int, fold: int) -> list[str]:
    settings = {"folds": 3, "fold": fold, "split_seed": repeat, "stratified": "false"}
    flags = [f"--data.{name}={value}" for name, value in settings.items()]
    return [*flags, "--seed", str(42 + 3 * repeat + fold)]


def test_seeds_of_folds_count_from_the_given_ones(folder: Path) -> None:
    """On the line, in a file and in Python; a file's fraction for validation is the default, and no obstacle."""
    (folder / "own.yaml").write_text("data: {class_path: UCIDigits, init_args: {split_seed: 5, stratified: true}}")
    line = ["--config", str(ROOT / "configs/default.yaml"), "--config", "own.yaml", *FLAGS[2:]]
    assert main(["crossval", *line, "--seed", "7", "--folds", "2", "--repeats", "2", "--name", "line"]) == 0
    cross_validate(line, "python", folds=2, seed=9, split_seed=3, stratified=False)
    found = []
    for name in ("line", "python"):
        for file in sorted((folder / "lightning_logs" / name).glob("*/config.yaml")):
            config = read_config(file)
            data = config["data"]["init_args"]
            found.append((config["seed_everything"], data["split_seed"], data["fold"], data["stratified"]))
    assert found[:4] == [(7, 5, 0, True), (8, 5, 1, True), (9, 6, 0, True), (10, 6, 1, True)]
    assert found[4:] == [(9, 3, 0, False), (10, 3, 1, False)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("crossval --data.folds 3", "--data.folds would be overruled: "),
        ("crossval --data.init_args.fold=0", "--data.init_args.fold=0 would be overruled: "),
        ("crossval --data.val_fraction 0.2", "--data.val_fraction would be overruled: "),
        ("crossval --data.stratified true", "--data.stratified would be overruled: "),
        ("crossval --config own.yaml", "data.val_fraction 0.1 would be overruled: "),
        ("crossval --train_sizes 20 --data.train_size 10", "--data.train_size would be overruled: "),
        ("crossval --trainer.devices 2", "each run of a study has one device, got devices 2, num_nodes 1"),
        ("fit --seeds 1-3 --seed 9", "--seed_everything would be overruled: each run has one of the given seeds"),
        ("fit --seeds 1-3 --seed_everything=9", "--seed_everything=9 would be overruled: "),
        ("fit --seeds 1-3 --trainer.num_nodes 2", "got devices auto, num_nodes 2: leave out"),
        ("tune --space space.yaml --epochs 2 --lr 0.1", "--model.optimizer.lr would be overruled: the space tries it"),
        ("tune --space space.yaml --model.net.init_args.dropout=0", "--model.net.init_args.dropout=0 would be over"),
    ],
)
def test_a_study_refuses_what_it_would_overrule(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "own.yaml").write_text("data: {class_path: UCIDigits, init_args: {val_fraction: 0.1}}")
    (folder / "space.yaml").write_text("lr: {low: 0.01, high: 0.1}\nnet.dropout: {low: 0.0, high: 0.5}")
    assert main([*words.split(), "--data", "UCIDigits"]) == 2
    error = capsys.readouterr().err
    assert (message in error, error.count("\n"), (folder / "lightning_logs").exists()) == (True, 1, False)


def test_a_fraction_that_is_a_fold_is_obeyed(folder: Path) -> None:
    (folder / "own.yaml").write_text("data: {class_path: UCIDigits, init_args: {val_fraction: 0.5, folds: 2}}")
    assert cross_validate(["--config", "own.yaml", *FLAGS[2:]], folds=2).accuracies.shape == (1, 2)


def test_suspects_are_wrong_in_every_repeat_and_certain() -> None:
    labels, times_wrong = np.array([0, 1, 2, 3]), np.array([2, 1, 2, 0])
    probabilities = np.full((4, 10), 0.01)
    probabilities[[0, 1, 2, 3], [5, 5, 5, 3]] = [0.8, 0.99, 0.9, 0.9]
    nothing = np.zeros((4, 28, 28), np.uint8)
    result = CrossValidation(
        Path(), np.zeros((2, 5)), np.zeros((2, 5)), nothing, labels, probabilities, times_wrong, ()
    )
    assert result.suspects().tolist() == [2, 0]


def test_learning_curve(folder: Path) -> None:
    curve = learning_curve([20, 400], [*FLAGS, "--epochs", "8"], "lc", folds=2, stratified=True)
    assert {size: len(accuracies) for size, accuracies in curve.items()} == {20: 2, 400: 2}
    assert curve[400].min() > curve[20].max()
    assert curve_table({20: np.array([0.5, 0.7])}).splitlines()[1].split() == ["20", "60.00", "±", "14.14%", "2"]
    assert read_config(Path("lightning_logs/lc_20/repeat_0_fold_1/config.yaml"))["data"]["init_args"]["fold"] == 1


def test_frozen_layers_keep_weights_and_statistics(folder: Path) -> None:
    net = CNN(width=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = fit(DigitClassifier(net), UCIDigits(), max_epochs=1, freeze="layers.[0-9]", enable_progress_bar=False)
    after = run.model.net.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name for name in changed if len(name.split(".")[1]) == 1} == set()
    assert {"layers.10.weight", "layers.11.running_mean", "layers.23.weight"} <= changed
    assert all(weight.requires_grad for weight in net.parameters())
    assert read_config(run.folder / "config.yaml")["freeze"] == ["layers.[0-9]"]
    with pytest.raises(InputError, match=r"no layer to freeze is called conv\*: the layers are layers.0, layers.1, "):
        fit(DigitClassifier(net), UCIDigits(), freeze=["conv*"])
    with pytest.raises(InputError, match="nothing is left to train when layers are frozen"):
        fit(DigitClassifier(net), UCIDigits(), freeze="layers")
    assert all(weight.requires_grad for weight in net.parameters())


def test_transfer_validates_once_at_the_end(folder: Path) -> None:
    short = ["--net.width", "2", "--data.train_size", "20"]
    short += ["--trainer.max_steps", "4", "--trainer.val_check_interval", "4"]
    run = train(["--config", str(ROOT / "configs/transfer_uci.yaml"), *short], enable_progress_bar=False)
    (validated,) = (row for row in run.history if "val/acc" in row)
    assert (validated["step"], run.record["epochs"], run.record["global_step"]) == (3, 4, 4)
    assert run.best_val_acc == pytest.approx(validated["val/acc"])
