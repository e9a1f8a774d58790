"""Seeds, folds, learning curves, by objects and by flags; and frozen layers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, refusal, refused_line
from filelock import FileLock
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.model_selection import KFold, StratifiedKFold
from torch import nn

from mnist_lightning import CNN, MLP, DigitClassifier, UCIDigits, fit, load_run
from mnist_lightning.cli.flags import expand
from mnist_lightning.cli.main import main
from mnist_lightning.data.loader import split_rows
from mnist_lightning.export.write import export
from mnist_lightning.files import read_config
from mnist_lightning.recipe import Recipe, read
from mnist_lightning.studies.crossval import CrossValidation, cross_validate, learning_curve
from mnist_lightning.studies.crossval_report import curve_table, write_crossval
from mnist_lightning.studies.train import finish, train_seeds
from mnist_lightning.studies.tune import tune

LABELS = torch.arange(100) % 10
LOGS = Path("lightning_logs")
FLAGS = ["--data", "UCIDigits", "--net.hidden_sizes", "[16]", "--epochs", "1", "--device", "cpu"]
SHORT: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


def small() -> DigitClassifier:
    return DigitClassifier(MLP([16]))


def described(*words: str) -> Recipe:
    return read(expand("fit", [*FLAGS, *words]))


@pytest.mark.parametrize("stratified", [False, True])
def test_folds_are_those_of_scikit_learn(stratified: bool) -> None:
    kind = StratifiedKFold if stratified else KFold
    for fold, (train_rows, val_rows) in enumerate(
        kind(5, shuffle=True, random_state=3).split(LABELS, LABELS)
    ):
        train_set, val_set = split_rows(LABELS, 0.2, 3, 5, fold, stratified, None)
        assert val_set.tolist() == val_rows.tolist()
        assert sorted(train_set.tolist()) == train_rows.tolist()


def test_train_size_takes_the_first_images_and_keeps_the_validation_images() -> None:
    whole, val = split_rows(LABELS, 0.2, 0, 0, 0, False, None)
    some, same = split_rows(LABELS, 0.2, 0, 0, 0, False, 12)
    assert (some.tolist(), same.tolist()) == (whole[:12].tolist(), val.tolist())
    balanced, _ = split_rows(LABELS, 0.2, 0, 0, 0, True, 20)
    assert LABELS[balanced].bincount().tolist() == [2] * 10
    message = "train_size must be at most 80, the number of training images, got 81"
    assert refusal(split_rows, LABELS, 0.2, 0, 0, 0, False, 81) == message
    message = refusal(split_rows, LABELS, 0.2, 0, 101, 0, False, None)
    assert message.startswith("cannot make 101 folds of 100 images: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folds": 1}, "folds must be 0 or at least 2, got 1"),
        ({"folds": 3, "fold": 3}, "fold must be in [0, 3), got 3"),
        ({"train_size": 0}, "train_size must be at least 1, got 0"),
    ],
)
def test_invalid_folds(wrong: dict[str, int], message: str) -> None:
    assert refusal(UCIDigits, **wrong) == message


@pytest.mark.parametrize("by_flags", [True, False])
def test_a_run_is_read_or_resumed_or_refused(folder: Path, by_flags: bool) -> None:
    def arguments(**changes: Any) -> dict[str, Any]:
        if by_flags:
            words = [f"--trainer.{name}={value}" for name, value in changes.items()]
            return described(*words).for_study()
        return {"model": lambda: DigitClassifier(Notebook()), "data": UCIDigits()} | SHORT | changes

    class Notebook(MLP):
        """A class that cannot be imported."""

        def __init__(self) -> None:
            super().__init__([16])

    where = folder / "lightning_logs/a"
    first = finish(where, arguments())
    assert (first.folder, first.record["finished"]) == (where, True)
    before = (where / "run.json").stat().st_mtime_ns
    again = finish(where, arguments())
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert (where / "run.json").stat().st_mtime_ns == before
    message = refusal(finish, where, arguments(max_epochs=2))
    assert "has other settings (trainer.max_epochs 1, now 2): give another" in message
    message = refusal(finish, where, arguments(limit_val_batches=0))
    assert "has other settings (trainer.limit_val_batches None, now 0" in message
    record = (where / "run.json").read_text()
    (where / "run.json").write_text(record.replace('"finished": true', '"finished": false'))
    assert finish(where, arguments()).record["finished"]
    with FileLock(where.parent / ".a.lock"):
        message = refusal(finish, where, arguments())
    assert message.startswith(f"another process trains {where}: wait for it")


@pytest.mark.usefixtures("folder")
def test_settings_that_are_functions_are_compared_too() -> None:
    """An optimizer's settings, a schedule's code and what it encloses, and callbacks."""

    def study(lr: float = 0.01, gamma: float = 0.5, **given: Any) -> float:
        def model() -> DigitClassifier:
            return DigitClassifier(
                MLP([16]),
                lambda weights: torch.optim.Adam(weights, lr),
                lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma),
            )

        (run,) = train_seeds(model, UCIDigits(), [1], name="f", **SHORT, **given)
        assert run.best_val_acc is not None
        return run.best_val_acc

    first = study()
    config = read_config(LOGS / "f_1/config.yaml")
    assert config["model"]["optimizer"]["class_path"] == "torch.optim.Adam"
    settings = {"lr": 0.01, "betas": [0.9, 0.999], "weight_decay": 0}
    assert settings.items() <= config["model"]["optimizer"]["init_args"].items()
    assert study() == first
    assert "optimizer.lr 0.01, now 0.1" in refusal(study, lr=0.1)
    assert "has other settings (model.lr_scheduler <function" in refusal(study, gamma=0.1)
    stop = EarlyStopping("val/loss", min_delta=0.1)
    message = refusal(study, callbacks=[stop])
    assert "has other callbacks ([], now [\"EarlyStopping(monitor='val/loss', min_de" in message


def test_runs_of_a_study_share_no_network(folder: Path) -> None:
    one, net = small(), MLP([16])
    expected = "each run of a study needs a network of its own: give a function that makes it"
    for shared in (one, lambda: one, lambda: DigitClassifier(net)):
        assert refusal(cross_validate, shared, UCIDigits(), **SHORT).startswith(expected)
        assert refusal(train_seeds, shared, UCIDigits(), [1], **SHORT).startswith(expected)
        space = {"lr": {"low": 0.1, "high": 0.2}}

        def make(lr: float, model: Any = shared) -> dict[str, Any]:
            return {"model": model, "data": UCIDigits()}

        assert refusal(tune, space, make, 1).startswith(expected)
    assert not LOGS.exists()


class Few(UCIDigits):
    """It takes two arguments, and passes no others on."""

    def __init__(self, batch_size: int = 16, number: int = 200) -> None:
        super().__init__(batch_size)
        self.number = number


def test_data_that_take_no_folds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    words = ["--data", "test_studies.Few", "--epochs", "1", "--device", "cpu"]
    reason = "takes no {}: give its __init__ **kwargs, and pass them on"
    line = refused_line(capsys, "crossval", *words, "--folds", "2")
    assert line == f"Few {reason.format('folds')}"
    assert refusal(cross_validate, small, Few(), **SHORT) == line
    assert reason.format("train_size") in refusal(learning_curve, [20], small, Few(), **SHORT)
    assert not LOGS.exists()
    assert Few(number=9).copy_with(batch_size=8).number == 9
    assert main(["fit", *words, "--seeds", "1-2", "--name", "few"]) == 0


@pytest.mark.usefixtures("folder")
def test_numbers_of_numpy_continue_a_study() -> None:
    for _ in range(2):
        runs = train_seeds(small, UCIDigits(), np.arange(2), name="np", **SHORT)
        assert [run.record["seed"] for run in runs] == [0, 1]
    assert "seeds must be integers" in refusal(train_seeds, small, UCIDigits(), "42-46", **SHORT)
    message = refusal(fit, small, UCIDigits, **SHORT)
    assert message == "data must be a DigitDataModule, such as MNIST(), got UCIDigits"


def test_a_size_that_is_too_large_is_refused_before_training(folder: Path) -> None:
    message = refusal(learning_curve, [50, 9999], small, UCIDigits(), folds=2, **SHORT)
    assert message == "train_size must be at most 718, the number of training images, got 9999"
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_seeds_train_the_same_as_one_by_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *FLAGS, "--seeds", "1-2", "--name", "s"]) == 0
    assert "s" + "2".rjust(9) in capsys.readouterr().out
    alone = fit(small, UCIDigits(), seed=2, name="alone", **SHORT)
    (of_two,) = train_seeds(name="s", seeds=[2], **described().for_study())
    (python,) = train_seeds(small, UCIDigits(), [2], name="python", **SHORT)
    assert (of_two.folder, python.folder) == (LOGS / "s_2", LOGS / "python_2")
    for run in (of_two, python):
        for name, value in alone.model.state_dict().items():
            assert torch.equal(run.model.state_dict()[name], value)


@pytest.mark.usefixtures("folder")
def test_cross_validation_predicts_each_image_once() -> None:
    """The same by the verb and by objects, of which one is a network that only this test knows."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = MLP([16])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images)  # type: ignore[no-any-return]

    words = ["--folds", "3", "--repeats", "2", "--seed", "7", "--name", "cv"]
    assert main(["crossval", *FLAGS, *words]) == 0
    settings: dict[str, Any] = {"folds": 3, "repeats": 2, "seed": 7}
    result = cross_validate(
        lambda: DigitClassifier(Own()), UCIDigits(), name="own", **settings, **SHORT
    )
    assert (result.accuracies.shape, len(result.labels)) == ((2, 3), 1437)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)
    assert result.times_wrong.sum() == round(479 * (1 - result.accuracies).sum())
    by_flags = []
    for repeat, fold in np.ndindex(2, 3):
        run = load_run(LOGS / f"cv/repeat_{repeat}_fold_{fold}")
        by_flags.append(run.best_val_acc)
    assert result.accuracies.ravel().tolist() == pytest.approx(by_flags)
    run.data.setup("fit")
    images, labels = run.data.val_set.arrays()  # type: ignore[union-attr]
    assert result.accuracies[1, 2] == np.mean(run.predict(images).digits == labels)

    write_crossval(result)
    tables = []
    for name in ("cv", "own"):
        tables.append(np.loadtxt(LOGS / name / "out_of_fold.csv", delimiter=",", skiprows=1))
        assert (LOGS / name / "index.html").stat().st_size > 10_000
    np.testing.assert_allclose(*tables, atol=1e-5)
    assert tables[0][:, 0].tolist() == list(range(1437))
    assert tables[0][:, 1].tolist() == UCIDigits().load("train")[1].tolist()


@pytest.mark.usefixtures("first")
def test_studies_refuse_a_start_that_has_seen_their_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run, a file, a teacher, or an ancestor; a run of other data may be the start."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    run = "lightning_logs/first"
    fit(lambda: DigitClassifier(MLP()), Other(), name="child", init_from=run, **SHORT)
    fit(small, Other(), name="pupil", teacher=run, **SHORT)
    fit(small, Other(), name="other", **SHORT)
    fit(small, Same(), name="same", **SHORT)
    Path("starts.yaml").write_text(f"init_from: {{choices: [lightning_logs/other, {run}]}}")
    shutil.copy(f"{run}/checkpoints/last.ckpt", "stray.ckpt")
    weights = torch.load("stray.ckpt", weights_only=True)["state_dict"]
    torch.save({"state_dict": weights}, "weights.ckpt")
    load_run(run).export("all.safetensors")
    Path("space.yaml").write_text("lr: {choices: [0.001, 0.002]}")
    seen, unknown = "was trained on UCIDigits too", "does not say what it was trained on"
    so = ", so it may know the images that are held out"
    verbs = (["crossval"], ["tune", "--space", "space.yaml"], ["crossval", "--train_sizes", "20"])
    for number, (flags, why) in enumerate(
        (
            (["--init_from", run], f"{run} {seen}"),
            (["--teacher", run], f"{run} {seen}"),
            (["--teacher", "lightning_logs/other", run], f"{run} {seen}"),
            (["--init_from", "stray.ckpt"], f"stray.ckpt {seen}"),
            (["--init_from", "lightning_logs/same"], f"lightning_logs/same {seen}"),
            (["--init_from", "lightning_logs/child"], f"lightning_logs/child {seen}"),
            (["--init_from", "lightning_logs/pupil"], f"lightning_logs/pupil {seen}"),
            (["--init_from", "weights.ckpt"], f"weights.ckpt {unknown}"),
            (["--init_from", "all.safetensors"], f"all.safetensors {seen}"),
        )
    ):
        verb = verbs[number % 3]
        assert why + so in refused_line(capsys, *verb, *FLAGS, *flags, "--name", "study")
    for teacher, why in ((load_run(run), seen), (MLP([16]), unknown)):
        message = refusal(cross_validate, small, UCIDigits(), teacher=teacher, name="study")
        assert why + so in message
    starts = ["tune", "--space", "starts.yaml", *FLAGS, "--name", "study"]
    assert f"{run} {seen}" in refused_line(capsys, *starts)
    refused_line(capsys, "crossval", *FLAGS, "--folds", "2000", "--name", "study")
    assert not (LOGS / "study").exists()
    words = ["--folds", "2", "--init_from", "lightning_logs/other", "--name", "study"]
    assert main(["crossval", *FLAGS, *words]) == 0


class Same(UCIDigits):
    """UCI's images under another name."""


class Other(UCIDigits):
    """Other images than UCI's."""

    def load(self, split: str) -> tuple[Any, Any]:  # type: ignore[override]
        images, labels = super().load(split)  # type: ignore[arg-type]
        return 255 - images, labels


def test_fit_says_that_validation_images_were_seen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts them: those of the own split that the other run was trained on."""

    def trained(name: str | None = None, **given: Any) -> tuple[str, int | None]:
        """What is printed of it, and what the record says."""
        own = {key: given.pop(key) for key in ("init_from", "teacher") if key in given}
        capsys.readouterr()
        run = fit(small, UCIDigits(**given), name=name, **own, **SHORT)
        lines = [line for line in capsys.readouterr().out.splitlines() if "learnt from" in line]
        return "".join(lines), run.record["validation_seen"]

    def rows(split: str, **given: Any) -> set[int]:
        data = UCIDigits(**given)
        data.setup("fit")
        return set(getattr(data, f"{split}_set").rows.tolist())

    others: dict[str, dict[str, Any]] = {
        "all": {"val_fraction": 0},
        "split": {"split_seed": 3},
        "fold": {"folds": 3, "fold": 1},
        "same": {},
        "half": {"val_fraction": 0.5},
    }
    for name, settings in others.items():
        assert trained(name, **settings) == ("", 0)
    for name in ("all", "split", "fold"):
        number = len(rows("val") & rows("train", **others[name]))
        for how in ("init_from", "teacher"):
            line, seen = trained(**{how: f"lightning_logs/{name}"})
            assert (seen, f"{number:,} of the 287 validation images" in line) == (number, True)
    # The same split, and a validation set that is a part of the other's, were not seen.
    assert trained(init_from="lightning_logs/same") == ("", 0)
    assert trained(init_from="lightning_logs/half") == ("", 0)
    assert trained(init_from="lightning_logs/same", train_size=50) == ("", 0)
    assert trained(teacher=load_run("lightning_logs/all"))[1] == 287

    def validated(*words: str) -> str:
        capsys.readouterr()
        assert main(["validate", "--ckpt_path", *words]) == 0
        return capsys.readouterr().out

    split = validated("lightning_logs/split", "--data.split_seed", "0")
    assert "may have learnt from 2" in split
    assert "learnt from" not in validated("lightning_logs/split")
    load_run("lightning_logs/all").export("all.safetensors")  # the file says it too
    assert trained(init_from="all.safetensors")[1] == 287
    assert "learnt from 287" in validated("all.safetensors", "--data", "UCIDigits")
    images = np.zeros((1, 28, 28), np.uint8)
    export(load_run("lightning_logs/all").model.net, "plain.safetensors", images)
    unknown = "It is not known which images"
    assert trained(init_from="plain.safetensors")[1] is None
    assert trained(teacher="plain.safetensors")[0].startswith(f"{unknown} the weights or the ")
    assert unknown in validated("plain.safetensors", "--data", "UCIDigits")
    # Nothing is validated.
    assert trained(init_from="plain.safetensors", val_fraction=0) == ("", 0)


def seeds_of(name: str, *keys: str) -> list[tuple[Any, ...]]:
    """The seed, and settings of the data, of each run of a study."""
    found = []
    for file in sorted((LOGS / name).glob("*/config.yaml")):
        config = read_config(file)
        data = config["data"]["init_args"]
        found.append((config["seed_everything"], *(data[key] for key in keys)))
    return found


def test_seeds_of_folds_count_from_the_given_ones(folder: Path) -> None:
    """On the line, in a file and in Python; a file's fraction for validation is the default."""
    (folder / "own.yaml").write_text(
        "data: {class_path: UCIDigits, init_args: {split_seed: 5, stratified: true}}"
    )
    default = str(ROOT / "configs/default.yaml")
    line = ["--config", default, "--config", "own.yaml", *FLAGS[2:]]
    words = ["--seed", "7", "--folds", "2", "--repeats", "2", "--name", "line"]
    assert main(["crossval", *line, *words]) == 0
    keys = ("split_seed", "fold", "stratified")
    expected = [(7, 5, 0, True), (8, 5, 1, True), (9, 6, 0, True), (10, 6, 1, True)]
    assert seeds_of("line", *keys) == expected
    data = UCIDigits(split_seed=5, stratified=True)
    given: dict[str, Any] = {"folds": 2, "seed": 9, "split_seed": 3, "stratified": False}
    cross_validate(small, data, name="python", **given, **SHORT)
    assert seeds_of("python", *keys) == [(9, 3, 0, False), (10, 3, 1, False)]


FRACTION = "data: {class_path: UCIDigits, init_args: {val_fraction: 0.1}}"
SPACE = "lr: {low: 0.01, high: 0.1}\nnet.dropout: {low: 0.0, high: 0.5}"
OVERRULED = " would be overruled: "


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("crossval --data.folds 3", f"--data.folds{OVERRULED}"),
        ("crossval --data.init_args.fold=0", f"--data.init_args.fold=0{OVERRULED}"),
        ("crossval --data.val_fraction 0.2", f"--data.val_fraction{OVERRULED}"),
        ("crossval --data.stratified true", f"--data.stratified{OVERRULED}"),
        ("crossval --config own.yaml", f"data.val_fraction 0.1{OVERRULED}"),
        ("crossval --train_sizes 20 --data.train_size 10", f"--data.train_size{OVERRULED}"),
        ("crossval --trainer.devices 2", "has one device, got devices 2, num_nodes 1"),
        ("crossval --seeds 1-2", "a study trains new runs and saves them: it takes no --ckpt_path"),
        ("crossval --stratified perhaps", "--stratified"),
        ("crossval --name ..", "a study's name must be one folder name, got .."),
        ("fit --seeds 1-x", "--seeds takes numbers and ranges such as 42-46, got 1-x"),
        ("fit --seeds 3-1", "--seeds takes numbers and ranges such as 42-46, got 3-1"),
        ("fit --seeds 1 --init_from last", "a study trains new runs and saves them"),
        ("fit --seeds 1-3 --seed 9", f"--seed_everything{OVERRULED}each run has one of the given"),
        ("fit --seeds 1-3 --seed_everything=9", f"--seed_everything=9{OVERRULED}"),
        ("fit --seeds 1-3 --trainer.num_nodes 2", "got devices auto, num_nodes 2: leave out"),
        ("tune", "tune needs the settings to try: --space FILE"),
        ("tune --space space.yaml --lr 0.1", f"--model.optimizer.lr{OVERRULED}the space tries it"),
        (
            "tune --space space.yaml --model.net.init_args.dropout=0",
            f"--model.net.init_args.dropout=0{OVERRULED}",
        ),
    ],
)
def test_a_study_refuses_what_it_would_overrule(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "own.yaml").write_text(FRACTION)
    (folder / "space.yaml").write_text(SPACE)
    assert message in refused_line(capsys, *words.split(), "--data", "UCIDigits")
    assert not LOGS.exists()


def test_python_is_refused_the_same(folder: Path) -> None:
    def refused(data: UCIDigits, **given: Any) -> str:
        return refusal(cross_validate, small, data, **given)

    assert "it resumes no other run" in refused(UCIDigits(), resume="last")
    assert "has one device" in refused(UCIDigits(), devices=2)
    assert f"data.val_fraction 0.1{OVERRULED}" in refused(UCIDigits(val_fraction=0.1))
    assert "got 1 and 1" in refused(UCIDigits(), folds=1)
    assert not LOGS.exists()
    obeyed = UCIDigits(val_fraction=0.5, folds=2)  # a fraction that is a fold
    assert cross_validate(small, obeyed, folds=2, **SHORT).accuracies.shape == (1, 2)


def test_suspects_are_wrong_in_every_repeat_and_certain() -> None:
    labels, times_wrong = np.array([0, 1, 2, 3]), np.array([2, 1, 2, 0])
    probabilities = np.full((4, 10), 0.01)
    probabilities[[0, 1, 2, 3], [5, 5, 5, 3]] = [0.8, 0.99, 0.9, 0.9]
    nothing = np.zeros((4, 28, 28), np.uint8)
    result = CrossValidation(
        Path(), np.zeros((2, 5)), np.zeros((2, 5)), nothing, labels, probabilities, times_wrong, ()
    )
    assert result.suspects().tolist() == [2, 0]


@pytest.mark.usefixtures("folder")
def test_learning_curve() -> None:
    given = SHORT | {"max_epochs": 8, "folds": 2, "stratified": True}
    curve = learning_curve([400, 20], small, UCIDigits(), name="lc", **given)
    assert {size: len(accuracies) for size, accuracies in curve.items()} == {20: 2, 400: 2}
    assert curve[400].min() > curve[20].max()
    table = curve_table({20: np.array([0.5, 0.7])})
    assert table.rows == [["20", "60.00 ± 14.14%", "2"]]
    assert seeds_of("lc_20", "fold", "train_size") == [(42, 0, 20), (43, 1, 20)]
    assert main(["crossval", *FLAGS, "--train_sizes", "20", "--folds", "2", "--name", "line"]) == 0
    assert seeds_of("line_20", "fold", "train_size") == [(42, 0, 20), (43, 1, 20)]
    assert (LOGS / "line/index.html").exists()


@pytest.mark.usefixtures("folder")
def test_frozen_layers_keep_weights_and_statistics() -> None:
    net = CNN(width=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = fit(DigitClassifier(net), UCIDigits(), freeze="layers.[0-9]", **SHORT)
    after = run.model.net.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not [name for name in changed if len(name.split(".")[1]) == 1]
    assert {"layers.10.weight", "layers.11.running_mean", "layers.23.weight"} <= changed
    assert read_config(run.folder / "config.yaml")["freeze"] == ["layers.[0-9]"]
    message = refusal(fit, DigitClassifier(net), UCIDigits(), freeze=["conv*"])
    names = "the layers are layers.0, layers.1, "
    assert message.startswith(f"no layer to freeze is called conv*: {names}")
    message = refusal(fit, DigitClassifier(net), UCIDigits(), freeze="layers")
    assert "nothing is left to train when layers are frozen" in message
    assert all(weight.requires_grad for weight in net.parameters())


@pytest.mark.usefixtures("folder")
def test_transfer_validates_once_at_the_end() -> None:
    words = ["--config", str(ROOT / "configs/transfer_uci.yaml"), "--net.width", "2"]
    words += ["--data.train_size", "20", "--trainer.max_steps", "4"]
    recipe = read(expand("fit", [*words, "--trainer.val_check_interval", "4"]))
    run = recipe.fit(enable_progress_bar=False)
    (validated,) = (row for row in run.history if "val/acc" in row)
    assert (validated["step"], run.record["epochs"], run.record["global_step"]) == (3, 4, 4)
    assert run.best_val_acc == pytest.approx(validated["val/acc"])
