"""The library: fit, load_run, Run and recognize, as in a notebook, a thread or an own Trainer."""

import io
import json
import math
import re
import subprocess
import sys
import threading
import time
import warnings
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import files_in, refusal, refused_line
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn

import mnist_lightning
from mnist_lightning import (
    MLP,
    MNIST,
    DigitClassifier,
    Ensemble,
    UCIDigits,
    fit,
    load_run,
    recognize,
)
from mnist_lightning.checkpoints import to_settings
from mnist_lightning.cli.main import main
from mnist_lightning.inference import classify, layer_table
from mnist_lightning.training.callbacks import ValidationFigures
from mnist_lightning.training.loggers import show_pictures
from mnist_lightning.training.resume import ResumePoint

EVENTS = r"events\.out\.tfevents\..*"


class Net(nn.Module):
    """A network of one's own, which keeps no arguments."""

    def __init__(self, outputs: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.BatchNorm1d(20), nn.GELU())
        self.head = nn.Linear(20, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))


QUIET: dict[str, Any] = {"enable_progress_bar": False}


def train(net: nn.Module | None = None, data: Any = None, **settings: Any) -> Any:
    """A short run of a small network on UCI's digits."""
    model = DigitClassifier(MLP([8]) if net is None else net)
    return fit(model, data or UCIDigits(), **{"max_epochs": 1} | QUIET | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three epochs."""
    torch.manual_seed(0)
    return train(MLP([32]), log_dir=tmp_path_factory.mktemp("trained"), max_epochs=3)


def kinds(folder: Path) -> set[str]:
    return {"events" if re.fullmatch(EVENTS, name) else name for name in files_in(folder)}


FILES = {"config.yaml", "run.json", "metrics.csv", "curves.png", "events"}
FILES |= {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}


ARGUMENTS = {"hidden_sizes": [8], "dropout": 0.2, "activation": "ReLU", "batch_norm": False}


def test_files_and_record(trained: Any) -> None:
    assert kinds(trained.folder) >= FILES
    record = trained.record
    settings = {
        "dataset": "UCIDigits",
        "seed": 42,
        "device": "cpu",
        "epochs": 3,
        "global_step": 108,
        "num_parameters": 784 * 32 + 32 + 320 + 10,
        "weights": "best",
        "devices": 1,
        "precision": "32-true",
        "network": "MLP",
        "optimizer": "Adam",
        "lr": 0.001,
        "lr_scheduler": None,
        "batch_size": 32,
        "net_arguments": ARGUMENTS | {"hidden_sizes": [32]},
        "max_epochs": 3,
        "augmentation": None,
    }
    assert record["layers"] == layer_table(trained.model.net).splitlines()
    assert {name: record[name] for name in settings} == settings
    assert (
        record["command"]
        == f"python -m mnist_lightning fit --config {trained.folder / 'config.yaml'}"
    )
    assert abs(datetime.fromisoformat(record["started"]).timestamp() - time.time()) < 600
    assert torch.__version__.startswith(record["versions"]["torch"])
    history = trained.history
    assert [row["step"] for row in history] == [35, 71, 107]
    metrics = {f"{stage}/{name}" for stage in ("train", "val") for name in ("acc", "loss")}
    assert set(history[0]) == {"epoch", "step", "lr"} | metrics
    assert trained.best_val_acc == pytest.approx(max(row["val/acc"] for row in history))


def test_epoch_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line per epoch with the values of metrics.csv; on a terminal a bar, which is removed."""

    class Pause(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            time.sleep(0.11 * (batch_idx == 20))

        def on_train_batch_end(self, *args: Any) -> None:
            losses.append(args[2]["loss"].item())

    losses: list[float] = []
    model = DigitClassifier(MLP([8]))
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        run = fit(model, UCIDigits(), callbacks=[Pause()], max_epochs=10, max_steps=72)
        out = capsys.readouterr().out
        lines = [line.split("\r")[-1] for line in out.splitlines() if " train loss " in line]
        assert [re.sub(r"\d+\.\d s$", "", line) for line in lines] == [
            f"Epoch {row['epoch'] + 1:>2.0f}/10  "
            f"train loss {row['train/loss']:.4f} acc {row['train/acc']:6.2%}  "
            f"val loss {row['val/loss']:.4f} acc {row['val/acc']:6.2%}  "
            for row in run.history
        ]
        drawn = re.findall(
            r"\rEpoch +(\d)/10  loss (\S+) acc \d+\.\d%   58% \|.*?\| 00:0\d left, run 00:\d\d", out
        )
        means = {str(first // 36 + 1): np.mean(losses[first : first + 21]) for first in (0, 36)}
        expected = {(epoch, f"{mean:.3f}") for epoch, mean in means.items()}
        assert set(drawn) == (expected if is_terminal else set())  # a slow machine draws it twice
        losses.clear()
        assert "\r" not in lines[0]
    assert out.split(lines[0])[0].endswith("\r")


def test_tensorboard(folder: Path) -> None:
    """HPARAMS names what runs differ in; a test stands at the end of the axis."""
    run = train(max_epochs=2, log_every_n_steps=20)
    (file,) = run.folder.glob("events*")
    content = EventAccumulator(str(file)).Reload().summary_metadata
    start = HParamsPluginData.FromString(
        content["_hparams_/session_start_info"].plugin_data.content
    )
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"].plugin_data.content)
    values = {
        name: getattr(it, it.WhichOneof("kind"))
        for name, it in start.session_start_info.hparams.items()
    }
    assert values == {
        "architecture": "MLP [8]",
        "net_hidden_sizes": "[8]",
        "net_dropout": 0.2,
        "net_activation": "ReLU",
        "net_batch_norm": False,
        "augmentation": "none",
        "batch_size": 32,
        "epochs": 2,
        "lr": 0.001,
        "lr_scheduler": "none",
        "optimizer": "Adam",
        "seed": 42,
        "trained_on": "UCIDigits",
    }
    tags = [info.name.tag for info in experiment.experiment.metric_infos]
    assert tags == ["val/best_acc", "val/acc", "val/loss", "test/acc"]
    accuracy = run.test()["accuracy"]
    png = io.BytesIO()
    Image.new("L", (9, 9)).save(png, "png")
    show_pictures(run.folder, 72, {"photo": png.getvalue()})
    events = EventMultiplexer().AddRunsFromDirectory(str(run.folder)).Reload().GetAccumulator(".")

    def scalars(tag: str) -> list[tuple[int, Any]]:
        return [(each.step, pytest.approx(each.value)) for each in events.Scalars(tag)]

    assert scalars("val/acc") == [(row["step"], row["val/acc"]) for row in run.history]
    assert scalars("test/acc") == [(72, accuracy)]
    assert [events.Images(tag)[0].step for tag in ("test/roc", "pictures/photo")] == [72, 72]
    assert scalars("val/best_acc")[-1] == (72, run.best_val_acc)
    assert {step for step, _ in scalars("train/loss_step")} == {0, 20, 36, 56}  # of 72 updates
    assert "epoch" not in events.Tags()["scalars"]
    (written, *_) = events.Tensors("custom_scalars__config__")
    charts = Layout.FromString(written.tensor_proto.string_val[0]).category[0].chart
    shown = {}
    for chart in charts:
        (pattern,) = chart.multiline.tag
        shown[chart.title] = {tag for tag in events.Tags()["scalars"] if re.match(pattern, tag)}
    assert shown == {
        "loss": {"train/loss", "val/loss"},
        "accuracy": {"train/acc", "val/acc"},
        "training loss of single batches": {"train/loss_step"},
    }


def test_readme_example(folder: Path, trained: Any) -> None:
    """The Python of the README, as it stands there, with a picture in the place of yours."""
    images, _ = UCIDigits().load("test")
    photo = 255 - np.kron(images[0], np.ones((4, 4), np.uint8))
    Image.fromarray(photo).save(folder / "photo.jpg")
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "run = fit(" in block
    )
    code = code.replace("MNIST(", "UCIDigits(").replace(
        "import MLP, MNIST,", "import MLP, UCIDigits,"
    )
    names: dict[str, Any] = {"images": images}
    exec(code, names)
    assert isinstance(names["run"], mnist_lightning.Run)
    assert files_in(folder / "lightning_logs/version_0/report") >= {"index.html", "metrics.json"}


def test_test(trained: Any) -> None:
    metrics = trained.test()
    images, labels = UCIDigits().load("test")
    probabilities = trained.predict(images).probabilities.astype(np.float64)
    assert metrics == json.loads((trained.folder / "report/metrics.json").read_text())
    assert metrics["accuracy"] == accuracy_score(labels, probabilities.argmax(1))
    assert metrics["confusion_matrix"] == confusion_matrix(labels, probabilities.argmax(1)).tolist()
    assert metrics["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    assert trained.model.test_confusion.compute().tolist() == metrics["confusion_matrix"]
    assert trained.validate()["accuracy"] == pytest.approx(trained.best_val_acc)


def test_predict(trained: Any) -> None:
    images, _ = UCIDigits().load("test")
    whole = trained.predict()
    rows = np.genfromtxt(trained.folder / "predictions.csv", delimiter=",", skip_header=1)
    header = (trained.folder / "predictions.csv").read_text().splitlines()[0]
    assert header == "index,digit,confidence," + ",".join(f"p{digit}" for digit in range(10))
    np.testing.assert_array_equal(rows[:, 0], range(360))
    np.testing.assert_array_equal(rows[:, 1], whole.digits)
    np.testing.assert_array_equal(rows[:, 3:].astype(np.float32), whole.probabilities)
    for given in (images, images[:, None], images / np.float32(255), torch.from_numpy(images)):
        np.testing.assert_allclose(
            trained.predict(given).probabilities, whole.probabilities, atol=1e-6
        )
    assert trained.predict(images[:0]).probabilities.shape == (0, 10)
    assert "must be (N, 28, 28), got (8, 8)" in refusal(trained.predict, images[0, :8, :8])
    line = refusal(trained.predict, images.astype(float))
    assert "must be uint8, or float in [0, 1], got torch.float64 up to 255" in line


def test_load_run(trained: Any, tmp_path: Path) -> None:
    """The newest run, a folder, a file; best and last; and a file that lies elsewhere."""
    root = trained.folder.parent
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    expected = trained.predict(images).probabilities
    for run in (
        load_run(log_dir=root),
        load_run(trained.folder),
        load_run(trained.folder / "checkpoints/best.ckpt"),
    ):
        np.testing.assert_array_equal(run.predict(images).probabilities, expected)
        assert run.folder == trained.folder
        assert (run.data.batch_size, type(run.data)) == (32, UCIDigits)
    assert load_run("last", log_dir=root).checkpoint.name == "last.ckpt"  # type: ignore[union-attr]
    stray = tmp_path / "stray.ckpt"
    stray.write_bytes((trained.folder / "checkpoints/best.ckpt").read_bytes())
    run = load_run(stray, log_dir=tmp_path, data=UCIDigits())
    np.testing.assert_array_equal(run.predict(images).probabilities, expected)
    run.predict()
    run.test(logger=False)
    assert files_in(tmp_path / "stray.results") >= {"predictions.csv", "report/metrics.json"}


def test_recognize_without_lightning(trained: Any, tmp_path: Path) -> None:
    """A plain network reads pictures in an interpreter that has not imported Lightning."""
    torch.save(trained.model.net, tmp_path / "net.pt")
    page = np.full((60, 150), 255, np.uint8)
    page[10:50, 40:44] = page[10:50, 100:104] = 0
    Image.fromarray(page).save(tmp_path / "page.png")
    code = (
        "import sys, torch; from mnist_lightning import recognize;"
        f"net = torch.load({str(tmp_path / 'net.pt')!r}, weights_only=False);"
        f"digits = recognize({str(tmp_path / 'page.png')!r}, net);"
        "assert 'lightning' not in sys.modules; print([digit.box for digit in digits])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = recognize(page, trained.model.net)
    assert done.stdout.strip() == str([digit.box for digit in found])
    assert [digit.box[0] // 10 for digit in found] == [3, 9] or len(found) == 2
    for digit in found:
        assert digit.confidence == digit.probabilities.max() == digit.probabilities[digit.digit]
        np.testing.assert_allclose(
            trained.predict(digit.pixels[None]).probabilities[0], digit.probabilities, atol=1e-6
        )


def test_twice_and_in_a_thread(folder: Path) -> None:
    """The same seeds give the same history, also in a thread; no random state is changed."""
    runs: list[Any] = []

    def one() -> None:
        torch.manual_seed(3)
        net = MLP([8], dropout=0.5)
        before = torch.get_rng_state()
        runs.append(train(net, seed=7))
        assert torch.equal(torch.get_rng_state(), before)

    one()
    one()
    thread = threading.Thread(target=one)
    thread.start()
    thread.join()
    assert [run.folder.name for run in runs] == ["version_0", "version_1", "version_2"]
    assert runs[0].history == runs[1].history == runs[2].history


def test_notebook(folder: Path) -> None:
    """In a running event loop, as a notebook's, and after a Ctrl-C, which raises and goes on."""

    class CtrlC(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyboardInterrupt

    import asyncio

    async def cell() -> Any:
        with pytest.raises(KeyboardInterrupt):
            train(callbacks=[CtrlC()], max_epochs=2)
        return train(resume="last")

    assert asyncio.run(cell()).record["epochs"] == 1


def test_own_trainer(folder: Path) -> None:
    """A plain Trainer works with our module and data, and what it saves can be loaded."""
    model = DigitClassifier(MLP([8]))
    trainer = L.Trainer(
        max_epochs=1, default_root_dir=folder, enable_progress_bar=False, logger=False
    )
    trainer.fit(model, datamodule=UCIDigits(batch_size=64))
    (saved,) = folder.rglob("*.ckpt")
    loaded = DigitClassifier.load_from_checkpoint(saved)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert isinstance(loaded.net, MLP)
    assert loaded.net.hidden_sizes == [8]
    assert trainer.test(loaded, datamodule=UCIDigits(), verbose=False)[0].keys() == {
        "test/loss",
        "test/acc",
    }


def test_own_network(folder: Path) -> None:
    """One that does not keep its arguments is trained, and loaded again with net=."""
    run = train(Net(), name="mine")
    assert run.folder == Path("lightning_logs/mine")
    line = refusal(load_run, "lightning_logs/mine")
    assert "does not name its network: in Python, load_run(path, net=" in line
    images = np.zeros((1, 28, 28), np.uint8)
    again = load_run("lightning_logs/mine", net=Net()).predict(images)
    np.testing.assert_array_equal(again.probabilities, run.predict(images).probabilities)
    line = refusal(load_run, "lightning_logs/mine", net=Net(9))
    assert "is for another network: size mismatch for net.head" in line
    line = refusal(train, name="mine")
    assert line.startswith("the run lightning_logs/mine exists: choose another name, or resume it")
    assert "a run's name must be one folder name" in refusal(train, name="../mine")


def test_objects_without_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line does not resume a run whose optimizer it cannot know; test still works."""
    model, data = (
        DigitClassifier(MLP([8]), partial(torch.optim.SGD, lr=0.5)),
        UCIDigits(augmentation=nn.Sequential()),
    )
    fit(model, data, max_epochs=1, enable_progress_bar=False)
    assert "unknown class <" in refused_line(capsys, "fit", "--ckpt_path", "last")
    assert main(["test"]) == 0
    assert to_settings(nn.Sequential(nn.Flatten())) is None


def test_init_from(folder: Path, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of the same shape are copied, the rest is fresh and named; the optimizer is new."""
    net = MLP([32])
    net.layers[3] = nn.Linear(32, 10, bias=False)
    seen: list[dict[str, torch.Tensor]] = []

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            seen.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})
            assert not trainer.optimizers[0].state

    model = MLP([32, 5])
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, init_from=trained.folder, callbacks=[Start()], max_steps=1)
    source = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    for name in ("layers.1.weight", "layers.1.bias"):
        torch.testing.assert_close(seen[0][name], source[f"net.{name}"], rtol=0, atol=0)
    for name in ("layers.4.weight", "layers.7.weight"):
        torch.testing.assert_close(seen[0][name], fresh[name], rtol=0, atol=0)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Not in"))
    assert line.endswith(
        "keep their new values: layers.4.bias, layers.4.weight, layers.7.bias, layers.7.weight"
    )
    assert "best.ckpt fits this network" in refusal(train, Net(), init_from=trained.folder)


def test_loggers_are_added(folder: Path) -> None:
    run = train(logger=CSVLogger("csv"))
    assert kinds(run.folder) >= FILES
    assert "csv/lightning_logs/version_0/metrics.csv" in files_in(folder)
    assert kinds(train(logger=False).folder) == FILES - {"metrics.csv", "curves.png", "events"}


def test_own_best_checkpoint(folder: Path) -> None:
    """A ModelCheckpoint without a folder replaces the run's own; without any, nothing is saved."""
    lowest = ModelCheckpoint(
        monitor="val/loss", mode="min", filename="best", enable_version_counter=False
    )
    run = train(callbacks=[lowest], max_epochs=2)
    assert lowest.best_model_score == min(row["val/loss"] for row in run.history)
    assert kinds(run.folder) == FILES
    none = train(enable_checkpointing=False)
    assert kinds(none.folder) == {name for name in FILES if "ckpt" not in name}
    assert not train(fast_dev_run=True).folder.exists()


def test_nan_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=1e30)

    run = fit(DigitClassifier(MLP([8]), optimizer), UCIDigits(), max_epochs=1, **QUIET)
    assert np.isnan(run.history[0]["train/loss"])
    assert (
        "Training diverged: the training loss is nan. Try a smaller learning rate"
        in capsys.readouterr().out
    )


def test_evaluation_mode(folder: Path) -> None:
    """What fit and load_run return drops no units; fit then trains it as before."""
    data, images = UCIDigits(batch_size=100), torch.rand(5, 1, 28, 28)
    first = train(MLP([16], dropout=0.5, batch_norm=True), data)
    both = load_run([first.folder, first.folder])
    for run in (first, load_run(first.folder), load_run(first.folder, tta=2), both):
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        once, again = (run.model.net(images) for _ in range(2))
        torch.testing.assert_close(once, again, rtol=0, atol=0)
        torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)
        run.validate()
        assert not any(module.training for module in run.model.modules())
    modes: list[bool] = []

    class Modes(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            modes.append(all(module.training for module in pl_module.modules()))

    train(load_run(first.folder).model.net, data, callbacks=[Modes()])
    own = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[Modes()])
    own.fit(load_run(first.folder).model, datamodule=data)
    assert modes == [True] * 24
    partly = MLP([16], batch_norm=True)
    partly.layers[2].eval()  # by its owner
    train(partly, data, callbacks=[Modes()])
    assert modes[24:] == [False] * 12


@pytest.mark.parametrize("call", ["classify", "recognize"])
def test_threads_get_the_same_answers(call: str) -> None:
    """A network in training mode: no thread switches dropout on while another one classifies."""
    torch.manual_seed(0)
    net = MLP([64], dropout=0.5)
    net.register_forward_pre_hook(lambda *_: time.sleep(0.001))  # lets another thread begin
    page = np.zeros((60, 150), np.uint8)
    page[10:50, 40:44] = page[10:50, 100:104] = 255
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)

    def answer() -> Any:
        return (
            classify(net, images) if call == "classify" else recognize(page, net)[0].probabilities
        )

    expected, answers = answer(), list[Any]()
    threads = [
        threading.Thread(target=lambda: answers.extend(answer() for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    np.testing.assert_allclose(
        answers, np.broadcast_to(expected, (80, *expected.shape)), rtol=0, atol=1e-6
    )
    assert all(module.training for module in net.modules())


class Varying(Net):
    """A network whose answers are changed by noise of this strength, in evaluation mode too."""

    def __init__(self, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.noise, self.dropout = noise, dropout

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.head(nn.functional.dropout(self.layers(images), self.dropout))
        return logits + self.noise * torch.randn_like(logits)


@pytest.mark.parametrize(
    ("net", "warns"),
    [
        (Varying(dropout=0.25), True),
        (Varying(noise=1.0), True),
        (Varying(noise=1e-6), False),  # as rounding does
        (Varying(noise=math.nan), False),  # as a network that diverged
        (MLP([8], dropout=0.5), False),
    ],
)
def test_two_answers(net: nn.Module, warns: bool, folder: Path) -> None:
    """One line says it at the start of fit, and with each verb; export gives it as its reason."""
    line = (
        "the network gives the same images two answers in evaluation mode: "
        "dropout that is always on?"
    )

    def said(verb: Any) -> tuple[Any, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = verb()
        return result, [
            str(warning.message) for warning in caught if "two answers" in str(warning.message)
        ]

    expected = [line] * warns
    run, lines = said(partial(train, net))
    assert lines == expected
    images = np.zeros((3, 28, 28), np.uint8)
    test = partial(run.test, logger=False) if warns else run.validate  # a report takes seconds
    for verb in (run.validate, test, run.predict, partial(run.predict, images)):
        assert said(verb)[1] == expected
    if warns:
        assert line in refusal(run.export, "a.safetensors")


def test_not_logits(folder: Path) -> None:
    """A network that gives anything else is refused in one line, wherever it is used."""

    class Pair(MLP):
        def forward(self, images: torch.Tensor) -> Any:
            return super().forward(images), images

    class Dict(MLP):
        def forward(self, images: torch.Tensor) -> Any:
            return {"logits": super().forward(images)}

    images = np.zeros((3, 28, 28), np.uint8)
    for net, got in (
        (Pair([4]), "tuple"),
        (Dict([4]), "dict"),
        (Net(9), r"\(\d+, 9\)"),
        (Net(11), r"\(\d+, 11\)"),
    ):
        run = mnist_lightning.Run(folder, None, DigitClassifier(net), UCIDigits())
        for call in (
            run.validate,
            partial(run.test, logger=False),
            run.predict,
            partial(run.predict, images),
            partial(classify, net, images),
            partial(layer_table, net),
            partial(train, net),
        ):
            line = rf"expected logits \(B, 10\) of the network, got {got} for \d+ images"
            assert re.search(line, refusal(call))
    assert not files_in(folder)


def test_compiled_network(folder: Path) -> None:
    """It is saved under its plain names, alone or as a part, and can be loaded."""
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch.manual_seed(0)
    net = torch.compile(MLP([8]), backend=backend)
    run = train(net, logger=False)
    assert compiled
    assert run.record["network"] == "MLP"
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    expected = run.predict(images).probabilities
    for again in (load_run(run.folder), load_run(run.checkpoint)):
        np.testing.assert_allclose(again.predict(images).probabilities, expected, rtol=0, atol=1e-6)
    assert run.export("a.safetensors")[-1].difference < 1e-5

    def eager() -> Any:
        return torch.compile(MLP([8]), backend="eager")

    assert train(eager(), resume="last", logger=False).record["epochs"] == 1
    train(teacher=eager(), logger=False)

    class Own(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.compile(self.layers, backend="eager")  # type: ignore[assignment]

    for part in (Own(), Ensemble([eager()]), nn.Sequential(net)):
        assert not any("_orig_mod" in name for name in DigitClassifier(part).state_dict())
    run = train(Own(), name="own", logger=False)
    again = load_run("lightning_logs/own", net=Net())
    expected = run.predict(images).probabilities
    np.testing.assert_allclose(again.predict(images).probabilities, expected, rtol=0, atol=1e-6)


def test_images_in_memory(trained: Any) -> None:
    """Strides and byte order of the images do not matter."""
    images = UCIDigits().load("test")[0]
    expected = trained.predict(images.copy()).probabilities
    wide = np.zeros((360, 28, 56), np.uint8)
    wide[:, :, ::2] = images
    for given in (
        images[::-1][::-1],
        np.asfortranarray(images),
        wide[:, :, ::2],
        (images / 255).astype(">f4"),
    ):
        np.testing.assert_allclose(
            trained.predict(given).probabilities, expected, rtol=0, atol=1e-6
        )
    np.testing.assert_allclose(
        trained.predict(images[::-1]).probabilities, expected[::-1], rtol=0, atol=1e-6
    )
    turned = trained.predict(images[:, ::-1]).probabilities
    np.testing.assert_array_equal(turned, trained.predict(images[:, ::-1].copy()).probabilities)


def test_a_refused_verb_is_forgotten(folder: Path) -> None:
    """A Trainer that has ended, or refused, does not decide what export may read."""

    class Unlabelled(UCIDigits):
        has_test_labels = False

    for data, refused in ((UCIDigits(val_fraction=0.0), "validate"), (Unlabelled(), "test")):
        run = train(data=data)
        assert re.search("val_fraction is 0|has no labels", refusal(getattr(run, refused)))
        assert run.export(f"{refused}.safetensors")[-1].images == (
            360 if refused == "validate" else 287
        )
        data.prepare_data()
        refusal(getattr(run, refused))


def test_untraceable_network(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    """A network that TensorBoard cannot draw, such as a compiled one, is trained all the same."""

    class Odd(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not torch.jit.is_tracing(), "not traceable"
            return super().forward(images)

    train(Odd())
    assert any("TensorBoard shows no graph of Odd" in str(warning.message) for warning in recwarn)


def test_learning_rate_finder(folder: Path) -> None:
    model = DigitClassifier(MLP([8]))
    finder = LearningRateFinder(num_training_steps=20)
    run = fit(model, UCIDigits(), callbacks=[finder], max_epochs=1, **QUIET)
    assert run.history[0]["lr"] == pytest.approx(model.lr, rel=1e-6)


def test_validation_figures(folder: Path) -> None:
    run = train(callbacks=[ValidationFigures(every_n_epochs=2)], max_epochs=2)
    (file,) = run.folder.glob("events*")
    events = EventAccumulator(str(file)).Reload()
    shown = {tag: len(events.Images(tag)) for tag in events.Tags()["images"]}
    assert shown == {"val/confusion": 1, "val/misclassified": 1}
    assert events.Tags()["graph"]
    assert refusal(ValidationFigures, 0) == "every_n_epochs must be at least 1, got 0"


def test_augmentation_is_moved_and_seeded(folder: Path) -> None:
    """It is called with float images of many batches in [0, 1], in training only."""
    shapes: list[tuple[int, ...]] = []

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("offset", torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.min() >= 0
            assert images.max() <= 1
            shapes.append(tuple(images.shape))
            return images + self.offset

    train(data=UCIDigits(augmentation=Shift()))
    assert shapes == [(1150, 1, 28, 28)]


def test_numbers_of_numpy_and_paths(folder: Path) -> None:
    """They train, and become plain values in every file, so that the run can be loaded."""
    settings = {"batch_size": np.int64(64), "val_fraction": np.float64(0.25)}
    net = MLP(np.array([8]), dropout=np.linspace(0, 0.5, 3)[1])  # type: ignore[arg-type]
    model = DigitClassifier(
        net, partial(torch.optim.Adam, lr=np.float64(2e-3)), label_smoothing=np.float32(0.5)
    )
    run = fit(model, UCIDigits(**settings), seed=np.int64(3), max_epochs=np.int64(1), **QUIET)  # type: ignore[arg-type]
    record = run.record
    found = [record[name] for name in ("batch_size", "lr", "seed", "max_epochs")]
    assert found == [64, 2e-3, 3, 1]
    assert record["net_arguments"] == ARGUMENTS | {"dropout": 0.25}
    torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    again = load_run(run.folder)
    assert (again.data.val_fraction, again.model.net.hidden_sizes) == (0.25, [8])
    again.test(limit_test_batches=np.int64(1))
    assert UCIDigits(folds=np.int64(3), stratified=np.bool_(True)).trained_on["stratified"] is True  # type: ignore
    more = fit(
        DigitClassifier(net, model.optimizer, label_smoothing=0.5),
        UCIDigits(**settings),
        seed=3,
        resume=run.folder,
    )
    assert more.record["epochs"] == 10

    class Folder(UCIDigits):
        def __init__(self, data_dir: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.data_dir = data_dir

    assert to_settings(Folder(Path("a/b")))["init_args"]["data_dir"] == "a/b"  # type: ignore[index]
    assert to_settings(MNIST(Path("data"), mirrors=[Path("x")]))["init_args"]["mirrors"] == ["x"]  # type: ignore


@pytest.mark.parametrize(
    "given",
    [
        {"monitor": "val/loss", "mode": "min"},
        {"monitor": "val/acc", "mode": "min"},
        {"monitor": "val/acc", "mode": "max", "every_n_epochs": 2},
        {"monitor": "val/acc", "mode": "max", "save_top_k": -1},
        {"monitor": None},
        {"monitor": "val/acc", "mode": "max", "filename": "other"},
        {"monitor": "val/acc", "mode": "max", "save_weights_only": True},
    ],
    ids=str,
)
def test_the_record_says_what_the_kept_checkpoint_is(given: dict[str, Any], folder: Path) -> None:
    """Whatever the settings are: best_val_acc is that of best.ckpt, or else of last.ckpt."""
    torch.manual_seed(0)
    saving = ModelCheckpoint(**{"filename": "best", "enable_version_counter": False} | given)
    data = UCIDigits(val_fraction=0.05)  # so few images that accuracy and loss choose other epochs
    rate = partial(torch.optim.Adam, lr=0.05)
    run = fit(DigitClassifier(MLP([8]), rate), data, callbacks=[saving], max_epochs=6, **QUIET)
    expected = {row["step"]: row for row in run.history if "val/acc" in row}
    saved = torch.load(run.checkpoint, weights_only=True)  # type: ignore[arg-type]
    row = expected[saved["global_step"] - 1]
    assert run.record["best_val_acc"] == pytest.approx(row["val/acc"])
    assert run.record["best_epoch"] == row["epoch"]
    assert run.validate()["accuracy"] == pytest.approx(run.best_val_acc)
    assert load_run(run.folder).checkpoint == run.checkpoint


def test_averages_that_would_be_lost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """StochasticWeightAveraging saves its average nowhere; that of EMAWeightAveraging is tested."""
    flags = "--trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.01"
    for line in (
        refusal(train, callbacks=[StochasticWeightAveraging(0.01)]),
        refused_line(capsys, "fit", "--data", "UCIDigits", *flags.split()),
    ):
        assert "average would not be saved: use EMAWeightAveraging" in line
    assert files_in(folder) == set()
    run = train(callbacks=[EMAWeightAveraging(decay=0.9)], max_epochs=2)
    saved = torch.load(run.checkpoint, weights_only=True)
    average, last = saved["state_dict"], saved["current_model_state"]
    name = "layers.1.weight"
    assert not torch.equal(average[f"net.{name}"], last[f"net.{name}"])
    loaded = load_run(run.folder).model.net.state_dict()
    assert torch.equal(loaded[name], average[f"net.{name}"])


def test_a_factory_is_repeated_by_the_command(folder: Path) -> None:
    """With a function that makes the model the seed sets the first weights; the record says so."""
    run = fit(lambda: DigitClassifier(MLP([8])), UCIDigits(), seed=7, max_epochs=2, **QUIET)
    assert run.record["first_weights"] == "seed"
    words = run.record["command"].removeprefix("python -m mnist_lightning ").split()
    assert main([*words, "--name", "again"]) == 0
    again = load_run("lightning_logs/again")
    assert again.history == run.history
    torch.testing.assert_close(again.model.state_dict(), run.model.state_dict(), rtol=0, atol=0)
    assert again.record["first_weights"] == "seed"
    for wrong in (MLP([8]), lambda: MLP([8])):
        line = "model must be a DigitClassifier, or a function that makes one, got MLP"
        assert refusal(fit, wrong, UCIDigits()) == line
    given = train(seed=7)
    assert given.record["first_weights"] == "given"
    rate = partial(torch.optim.SGD, lr=0.1)
    own = fit(lambda: DigitClassifier(MLP([8]), rate), UCIDigits(), max_epochs=1, **QUIET)
    words = own.record["command"].removeprefix("python -m mnist_lightning ").split()
    assert main([*words, "--name", "same"]) == 0
    assert load_run("lightning_logs/same").history == own.history
    # config.yaml cannot hold a function that makes a schedule, nor callbacks that Python gave.
    every = partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    own = fit(lambda: DigitClassifier(MLP([8]), rate, every), UCIDigits(), max_epochs=1, **QUIET)
    assert own.record["command"] is None
    stop = [EarlyStopping("val/loss")]
    own = fit(DigitClassifier(MLP([8])), UCIDigits(), max_epochs=1, callbacks=stop, **QUIET)
    assert own.record["command"] is None
    assert own.record["callbacks"][0].startswith("EarlyStopping(monitor='val/loss', ")
    given.test()
    assert "but with other first weights" in (given.folder / "report/index.html").read_text()


class Doubled(nn.Module):
    """A network whose attribute is not the argument."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = 2 * width
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, self.width), nn.Linear(self.width, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)  # type: ignore[no-any-return]


def test_a_run_that_cannot_be_loaded_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Local(Doubled):
        pass

    for net, reason in (
        (
            Net(),
            "keep each argument of test_library.Net in an attribute of its name, "
            "or give load_run(folder, net=...)",
        ),
        (Doubled(), "keep each argument of test_library.Doubled in an attribute of its name"),
        (Local(), ".Local cannot be imported: move it to a file"),
        (MLP([4]), None),
    ):
        run = train(net)
        (line,) = capsys.readouterr().out.splitlines() or [""]
        images = np.zeros((1, 28, 28), np.uint8)
        assert load_run(run.folder, net=net).predict(images).digits.shape == (1,)
        if reason is None:
            assert line == ""
            load_run(run.folder)
        else:
            assert line.startswith("This run cannot be loaded by its folder alone: ")
            assert reason in line
            refusal(load_run, run.folder)


def test_seeds_of_an_epoch() -> None:
    """Each epoch and rank has random numbers of its own, whatever came before."""
    from types import SimpleNamespace

    def draw(seed: int, epoch: int, rank: int) -> float:
        trainer: Any = SimpleNamespace(
            current_epoch=epoch, global_rank=rank, save_checkpoint=lambda *_, **__: None
        )
        ResumePoint(Path("unused"), seed).on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
        return torch.rand(()).item()

    numbers = [draw(seed, epoch, rank) for seed in (42, 43) for epoch in (0, 1) for rank in (0, 1)]
    assert len(set(numbers)) == 8
    assert numbers[0] == draw(42, 0, 0)
