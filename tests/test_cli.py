"""The command line: verbs, flags, one-line errors, exit codes, and what it prints."""

import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, files_in, refused_line
from lightning.pytorch import Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from mnist_lightning import (
    MLP,
    MNIST,
    DigitClassifier,
    UCIDigits,
    __main__,
    __version__,
    load_run,
)
from mnist_lightning.cli import main as cli
from mnist_lightning.cli.flags import SYNONYMS, TABLE, flags_of
from mnist_lightning.cli.main import main
from mnist_lightning.data.drawings import keep

Capture = pytest.CaptureFixture[str]
FIT = ["fit", "--data", "UCIDigits", "--model.net.hidden_sizes", "[16]"]


class Configurable(nn.Module):
    """A network whose arguments are plain values of all kinds."""

    def __init__(
        self, activation: str = "ReLU", sizes: dict[str, int] | None = None, path: str = "a/b.C"
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, (sizes or {"x": 4})["x"]), getattr(nn, activation)()
        )
        self.head = nn.Linear((sizes or {"x": 4})["x"], 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))


def run(capsys: Capture, *args: str, code: int = 0) -> str:
    """Call the command line, check the exit code, and return what it printed on stdout."""
    capsys.readouterr()
    result = main(args)
    out, err = capsys.readouterr()
    assert result == code, err
    return out


def paint_one() -> None:
    """Write ``one.png``, which shows a 1."""
    page = np.full((60, 60), 255, np.uint8)
    page[10:50, 25:33] = 0
    Image.fromarray(page).save("one.png")


def test_whole_way(folder: Path, capsys: Capture) -> None:
    """fit, test, validate, predict, resume: what each prints, and the files it leaves."""
    lines = run(capsys, *FIT, "--trainer.max_epochs", "2").splitlines()
    record = json.loads((folder / "lightning_logs/version_0/run.json").read_text())
    assert lines[:4] == [
        "UCIDigits: 1,150 training and 287 validation images",
        "MLP: 12,730 parameters on cpu",
        "Run folder: lightning_logs/version_0",
        "",
    ]
    assert lines[4:12] == [*record["layers"], ""]
    assert lines[10] == f"total{12730:>32,}  0.05 MB, 12,730 trained, 0 frozen"
    assert [line.split("  ")[0] for line in lines[12:14]] == ["Epoch 1/2", "Epoch 2/2"]
    assert lines[15].startswith(f"Best validation accuracy  {record['best_val_acc']:.2%}")
    assert lines[17:19] == ["Epochs                    2", "Updates                   72"]
    assert lines[-1] == "Next: python -m mnist_lightning test"

    out = run(capsys, "test")
    checkpoint = Path("lightning_logs/version_0/checkpoints/best.ckpt")
    assert out.splitlines()[0] == f"Checkpoint: {checkpoint} (the best of the newest run)"
    metrics = json.loads((folder / "lightning_logs/version_0/report/metrics.json").read_text())
    assert re.search(rf"^accuracy +{metrics['accuracy']:.2%}$", out, re.M)
    assert out.splitlines()[-1] == f"Report: {Path('lightning_logs/version_0/report/index.html')}"

    out = run(capsys, "validate", "--ckpt_path", "lightning_logs/version_0")
    assert f"validation accuracy {record['best_val_acc']:.2%}" in out
    assert "Written: lightning_logs/version_0/predictions.csv" in run(capsys, "predict")
    assert (
        len((folder / "lightning_logs/version_0/predictions.csv").read_text().splitlines()) == 361
    )

    out = run(capsys, "fit", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert "Epoch 3/3 " in out
    assert "Epoch 2/3 " not in out
    assert load_run().record["global_step"] == 108
    out = run(capsys, "fit", "--ckpt_path", "last")
    assert "Nothing was left to train; to train on, raise --epochs above 3." in out
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def test_pictures_have_files_of_their_own(first: Path, folder: Path, capsys: Capture) -> None:
    paint_one()
    Image.fromarray(np.full((60, 60), 255, np.uint8)).save("none.png")
    run(capsys, "predict")
    before = (first / "predictions.csv").read_bytes()
    lines = run(capsys, "predict", "one.png", "none.png", "gone.png", code=1).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["one.png", "none.png", "gone.png"]
    assert [line.split("  ")[-1] for line in lines[3:5]] == ["no digit found", "no such file"]
    assert re.fullmatch(r"Digits: 1( \(1 doubtful\))?   pictures: 3   without a digit: 2", lines[6])
    assert (first / "predictions.csv").read_bytes() == before
    rows = (first / "pictures.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["file", "one.png", "none.png", "gone.png"]
    assert "pictures: 1 " in run(capsys, "predict", "--images", "one.png")
    events = EventAccumulator("lightning_logs/first").Reload()
    assert events.Tags()["images"] == ["pictures/001_one"]
    assert events.Images("pictures/001_one")[0].step == load_run().record["global_step"]


def test_name_and_init_from(first: Path, capsys: Capture) -> None:
    start = ["--name", "second", "--init_from", "lightning_logs/first"]
    out = run(capsys, *FIT[:3], "--epochs", "1", *start)
    assert "keep their new values" not in out
    config = yaml.safe_load(Path("lightning_logs/second/config.yaml").read_text())
    assert (config["name"], config["ckpt_path"]) == (None, None)
    assert config["init_from"] == "lightning_logs/first"
    message = refused_line(capsys, *FIT, "--name", "first")
    assert "exists: choose another name, or resume it with --ckpt_path" in message
    file = "lightning_logs/first/checkpoints/best.ckpt"
    message = f"only a run can be resumed: give 'last' or a run folder, got {file}"
    assert refused_line(capsys, "fit", "--ckpt_path", file) == message
    message = "a run that is resumed takes no other name and no init_from, got b"
    assert refused_line(capsys, "fit", "--ckpt_path", "last", "--name", "b") == message


def test_own_network_with_plain_values(folder: Path, capsys: Capture) -> None:
    """Arguments of any plain value come back, also through a checkpoint file elsewhere."""
    net = "--net test_cli.Configurable --net.activation GELU --net.sizes.x 6 --epochs 1"
    run(capsys, *FIT[:3], *net.split())
    run(capsys, "test")
    assert isinstance(load_run().model.net.layers[2], nn.GELU)
    Path("stray.ckpt").write_bytes(
        Path("lightning_logs/version_0/checkpoints/best.ckpt").read_bytes()
    )
    assert (
        "test_cli.Configurable is not a class of torch.nn, torch.optim or mnist_lightning"
        in refused_line(capsys, "test", "--ckpt_path", "stray.ckpt", "--data", "UCIDigits")
    )


def test_stranger_runs_no_code(folder: Path, capsys: Capture) -> None:
    """Class paths that are not of torch.nn, torch.optim or this package."""

    def refused(settings: Any) -> str:
        torch.save(
            {"state_dict": {}, "hyper_parameters": {"net": settings}, "global_step": 0}, "x.ckpt"
        )
        return refused_line(capsys, "test", "--ckpt_path", "x.ckpt", "--data", "UCIDigits")

    for path in (
        "os.mkdir",
        "subprocess.Popen",
        "torch.hub.load",
        "lightning.pytorch.Trainer",
        "tests.conftest.X",
    ):
        message = refused({"class_path": path, "init_args": {"path": "evil"}})
        assert message.startswith(
            f"{path} is not a class of torch.nn, torch.optim or mnist_lightning"
        )
    for path in (
        "mnist_lightning.cli.main",
        "mnist_lightning.fit",
        "torch.nn.init.os",
        "torch.optim.swa_utils.math",
    ):
        assert refused({"class_path": path}).startswith(f"cannot make {path}: ")
    nested = {"class_path": "torch.nn.Sequential", "init_args": {"x": {"class_path": "os.mkdir"}}}
    assert refused(nested).startswith("os.mkdir is not a class")
    assert files_in(folder) == {"x.ckpt"}


def test_settings_beside_a_stranger(folder: Path, capsys: Capture) -> None:
    """Settings that lie near a checkpoint file are not its run's: they could name any class."""
    model = DigitClassifier(MLP([2]))
    Path("config.yaml").write_text(
        "data: {class_path: os.mkdir}\nmodel: {net: {class_path: os.mkdir}}"
    )
    Path("downloads").mkdir()
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "global_step": 1,
    }
    torch.save(content, "downloads/x.ckpt")
    assert "validation accuracy" in run(
        capsys, "validate", "--ckpt_path", "downloads/x.ckpt", "--data", "UCIDigits"
    )
    assert files_in(folder) == {"config.yaml", "downloads/x.ckpt"}


def test_augmentation_that_cannot_be_read_back(folder: Path, capsys: Capture) -> None:
    """It is refused before training. One that can is for training alone: test does not make it."""
    v2 = "torchvision.transforms.v2"
    Path("a.yaml").write_text(
        "data: {class_path: UCIDigits, init_args: {augmentation: "
        f"{{class_path: {v2}.RandomAffine, init_args: {{degrees: 10}}}}}}}}"
    )
    message = refused_line(capsys, "fit", "--config", "a.yaml")
    assert message == (
        "this setting cannot be written to config.yaml and read back: "
        "degrees: Unable to serialize instance 10"
    )
    assert files_in(folder) == {"a.yaml"}
    blur = [
        "--data.augmentation",
        f"{v2}.GaussianBlur",
        "--data.augmentation.kernel_size",
        "[3, 3]",
    ]
    run(capsys, *FIT, *blur, "--trainer.max_epochs", "1")
    config = Path("lightning_logs/version_0/config.yaml")
    config.write_text(config.read_text().replace("GaussianBlur", "Gone"))
    run(capsys, "test")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "fly",
            "the first argument must be one of fit, validate, .*, serve, got fly; .*",
        ),
        ("tests", r"the first argument must be .*, got tests; did you mean test\?"),
        ("train", r"the first argument must be .*, got train; did you mean fit\?"),
        ("Fit", r"the first argument must be .*, got Fit; did you mean fit\?"),
        ("help Train", r"the first argument must be .*, got Train; did you mean fit\?"),
        ("fit --epoch 3", r"unknown argument --epoch; did you mean --epochs\?"),
        ("fit --Learning-Rate=3", r"unknown argument --Learning_Rate; did you mean --lr\?"),
        ("tune --gpu", r"unknown argument --gpu; did you mean --device gpu\?"),
        ("fit --model CNN", r"unknown argument --model; did you mean --net\?"),
        ("test --model=a", r"unknown argument --model; did you mean --ckpt_path\?"),
        ("fit --checkpoint a", r"unknown argument --checkpoint; did you mean --ckpt_path\?"),
        ("test --dropout 0", "unknown argument --dropout; see --help"),
        (
            "fit --net.hidden_sizes 256,9",
            r"--model.net.hidden_sizes: expected a list, such as \[256,9\], got 256,9",
        ),
        ("fit --net cnn", r"--model.net: unknown class cnn; did you mean CNN\?"),
        ("fit --data mnist", r"--data: unknown class mnist; did you mean MNIST\?"),
        ("fit --learning_rate=3", r"unknown argument --learning_rate; did you mean --lr\?"),
        ("fit --modle.net CNN", r"unknown argument --modle.net; did you mean --model.net\?"),
        ("test --lr 1", "unknown argument --lr; see --help"),
        ("describe --ckpt_path x", "unknown argument --ckpt_path; see --help"),
        ("runs --json extra", "extra is no run folder: expected a folder with a run.json"),
        ("runs --jsn", r"unknown argument --jsn; did you mean --json\?"),
        ("fit --folds 5", r"unknown argument --folds; did you mean --data.folds\?"),
        ("fit --Split_Seed 5", r"unknown argument --Split_Seed; did you mean --data.split_seed\?"),
        ("runs --sort speed", "argument --sort: invalid choice: 'speed' .*'validation'.*"),
        ("fit extra", "unknown argument extra; see --help"),
        (
            "fit --trainer.max_epoch 1",
            r"unknown argument --trainer.max_epoch; did you mean --trainer.max_epochs\?",
        ),
        (
            "fit --data.batchsize 3",
            r"unknown argument --data.batchsize; did you mean --data.batch_size\?",
        ),
        (
            "fit --net.hiden_sizes [3]",
            r"unknown argument --model.net.hiden_sizes; .* --model.net.hidden_sizes\?",
        ),
        (
            "fit --model.optimizer.lrr 1",
            r"unknown argument --model.optimizer.lrr; .* --model.optimizer.lr\?",
        ),
        ("fit --net MLPP", r"--model.net: unknown class MLPP; did you mean MLP\?"),
        (
            "fit --data FashonMNIST",
            r"--data: unknown class FashonMNIST; did you mean FashionMNIST\?",
        ),
        ("fit --model.optimizer Adm", r"--model.optimizer: unknown class Adm; did you mean Adam\?"),
        ("fit --net Qwertyuiop", "--model.net: unknown class Qwertyuiop; see --help"),
        (
            "predict",
            "no run with best.ckpt in lightning_logs: train one first, .* fit, or .* pretrained",
        ),
        ("fit --ckpt_path last", "no run with last.ckpt in lightning_logs: train one first.*"),
        (
            "test --ckpt_path nowhere",
            "no checkpoint at nowhere: give a run folder or a checkpoint file",
        ),
        ("test --ckpt_path file", "cannot read the checkpoint file: it is damaged, .*"),
        ("fit --data.batch_size abc", "--data.batch_size: expected int, got abc"),
        ("fit --data.batch_size 0", "batch_size must be at least 1, got 0"),
        ("fit --data.val_fraction 1", r"val_fraction must be in \[0, 1\), got 1.0"),
        ("fit --model.net.dropout 1", r"dropout must be in \[0, 1\), got 1.0"),
        (
            "fit --model.optimizer SGD --lr -1",
            "the optimizer or .* was refused: Invalid learning rate: -1.0",
        ),
        ("fit --seed -1", "-1 is not in bounds, .* from 0 to 4294967295"),
        ("fit --precision 7", "--trainer.precision: expected one of .*, got 7"),
        ("fit --device gpu", ".*gpu.*|.*CUDA.*|.*GPU.*"),
        ("fit --config nowhere.yaml", ".*nowhere.yaml.*"),
        ("fit --config text", "expected settings by their names in text, got 'hello'"),
        ("describe --config text", "expected settings by their names in text, got 'hello'"),
        (
            "describe --config nowhere.yaml",
            "cannot read the settings in nowhere.yaml: .*No such file.*",
        ),
        ("describe --output file", "file.*: (File exists|Not a directory)"),
        (
            "fit --trainer.precision bf16-mixed --trainer.gradient_clip_val 1",
            ".*--model.optimizer Adam --model.optimizer.fused false",
        ),
        (
            "fit --model.lr_scheduler OneCycleLR --model.lr_scheduler.max_lr .1 --epochs -1",
            ".*refused: .*total_steps.*",
        ),
        (
            "fit --trainer.default_root_dir file",
            "cannot make a run folder in file.lightning_logs: .*",
        ),
        ("fit --name a/b", "a run's name must be one folder name, .* got a/b"),
        ("fit --name a\x07b", r"a run's name must be one folder name, .* got a\\x07b"),
    ],
)
def test_one_line_errors(args: str, message: str, folder: Path, capsys: Capture) -> None:
    (folder / "file").write_text("")
    (folder / "text").write_text("hello")
    words = args.split()
    if words[0] in ("fit", "describe") and "--data" not in words and "last" not in words:
        words += ["--data", "UCIDigits"]
    line = refused_line(capsys, *words)
    assert re.fullmatch(message, line), line
    assert files_in(folder) == {"file", "text"}


def test_script_finds_the_current_folder(folder: Path) -> None:
    """As python -m does; and it calls itself by its own name."""
    Path("mynet.py").write_text("from mnist_lightning import MLP\nclass CNN(MLP): pass\n")
    script = Path(sys.executable).parent / "mnist-lightning"
    args = [str(script), *FIT[:3], "--model.net", "mynet.CNN", "--trainer.max_epochs", "1"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "CNN: 109,386 parameters" in done.stdout
    assert done.stdout.endswith("Next: mnist-lightning test\n")


def test_describe(folder: Path, capsys: Capture) -> None:
    out = run(capsys, "describe", "--data", "UCIDigits", "--output", "seen")
    assert re.search(r"^images +1,150 +287 +360$", out, re.M)
    assert files_in(folder) == {
        f"seen/{name}"
        for name in ("description.json", "digit_counts.png", "mean_digits.png", "samples.png")
    }
    described = json.loads(Path("seen/description.json").read_text())
    assert sum(split["num_examples"] for split in described.values()) == 1797


def printed(capsys: Capture, *args: str) -> str:
    """What the command line prints before it exits with 0, as a parser does."""
    with pytest.raises(SystemExit) as done:
        main(args)
    assert done.value.code == 0
    return capsys.readouterr().out


def settings(capsys: Capture, *args: str) -> dict[str, Any]:
    """The settings of ``fit`` with these arguments."""
    config: dict[str, Any] = yaml.safe_load(printed(capsys, "fit", *args, "--print_config"))
    return config


@pytest.mark.parametrize("verb", TABLE)
def test_help_names_the_flags_that_exist(verb: str, capsys: Capture) -> None:
    lines = run(capsys, verb, "--help").splitlines()
    assert lines[0].startswith(f"usage: python -m mnist_lightning {verb} ")
    assert (len(lines) <= 40, max(map(len, lines)) <= 100) == (True, True)
    assert all(line[28:30] + line[38:40] == "    " for line in lines if line.startswith("  --"))
    if "sections" not in TABLE[verb]:
        assert run(capsys, verb, "--help-all").splitlines() == lines
        return
    everything = printed(capsys, verb, "--help-all")
    assert everything.splitlines()[: len(lines)] == lines
    assert len(everything.splitlines()) < 750
    real = set(re.findall(r"^  (?:-\w.*, )?--(\w+)", everything, re.M))
    long = {row["name"] for row in flags_of(verb).values() if "long" in row or "own" in row}
    assert set(flags_of(verb)) - long | set(TABLE[verb]["sections"]) <= real


def test_help_states_the_real_defaults(capsys: Capture) -> None:
    """Those of the long flags: a verb's own flags have the defaults of the table."""
    real = settings(capsys)
    usual = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    expected = {
        "epochs": real["trainer"]["max_epochs"],
        "batch_size": real["data"]["init_args"]["batch_size"],
        "lr": real["model"]["optimizer"]["init_args"]["lr"],
        "net": real["model"]["net"]["class_path"].removeprefix("mnist_lightning."),
        "data": real["data"]["class_path"].removeprefix("mnist_lightning."),
        "data_dir": "data",
        "seed": real["seed_everything"],
        "device": real["trainer"]["accelerator"],
        "precision": usual.precision,
    }
    for verb, entry in TABLE.items():
        for row in entry["flags"]:
            if "own" not in row and "default" in row:
                assert row["default"] == str(expected[row["name"]]), verb
    folder = os.environ.get("MNIST_LIGHTNING_DATA", "data")
    assert inspect.signature(MNIST).parameters["data_dir"].default == folder


def test_short_forms(capsys: Capture) -> None:
    short = "--epochs=3 --batch_size 7 --lr 0.02 --seed 5 --net CNN --net.width=4"
    long = (
        "--trainer.max_epochs=3 --data.batch_size 7 --model.optimizer.lr 0.02 "
        "--seed_everything 5 --model.net mnist_lightning.CNN --model.net.width 4"
    )
    given = settings(capsys, *short.split())
    assert given == settings(capsys, *long.split()) != settings(capsys)
    for line in (
        "--lr 0.02",
        "--lr=0.02 --model.optimizer SGD",
        "--model.optimizer SGD --lr 0.02",
        f"--config {ROOT}/configs/fast.yaml --lr 0.02",
    ):
        found = settings(capsys, *line.split())
        assert found["model"]["optimizer"]["init_args"]["lr"] == 0.02


class Own(MLP):
    """A network of one's own: arguments of MLP's names with other defaults."""

    def __init__(
        self,
        hidden_sizes: tuple[int, ...] = (3,),
        dropout: float = 0.5,
        activation: str = "Sigmoid",
    ) -> None:
        super().__init__(hidden_sizes, dropout)
        self.activation = activation  # type: ignore[assignment]


class Letters(UCIDigits):
    """A data module of one's own, with a folder of its own."""

    def __init__(self, data_dir: str = "letters", batch_size: int = 7, **kwargs: Any) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.data_dir = data_dir


def test_a_chosen_class_has_its_own_defaults(folder: Path, capsys: Capture) -> None:
    """On the line and in a file; what is written for it stays, and for another class does not."""

    def arguments(place: str, *args: str) -> dict[str, Any]:
        section, _, name = place.partition(".")
        config = settings(capsys, *args)[section]
        return (config[name] if name else config)["init_args"]  # type: ignore[no-any-return]

    def file(content: str) -> list[str]:
        Path("a.yaml").write_text(content)
        return ["--config", "a.yaml"]

    def defaults(cls: type) -> dict[str, Any]:
        parameters = inspect.signature(cls).parameters.values()
        values = {
            each.name: each.default for each in parameters if each.kind is not each.VAR_KEYWORD
        }
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    own, letters = ["--net", "test_cli.Own"], ["--data", "test_cli.Letters"]
    assert arguments("model.net", "--net", "CNN") == {"width": 32, "dropout": 0.3}
    assert (
        arguments("model.net", *own)
        == arguments("model.net", *file("model: {net: test_cli.Own}"))
        == defaults(Own)
    )
    assert arguments("model.net", *file("model: {net: {class_path: CNN}}"))["dropout"] == 0.3
    assert (
        arguments("model.net", *file("model: {net: CNN}"), "--net.dropout", "0.1")["dropout"] == 0.1
    )
    assert arguments("data", *letters).items() >= defaults(Letters).items()
    assert arguments("data", *file("data: test_cli.Letters")).items() >= defaults(Letters).items()
    for name in ("AdamW", "SGD", "RMSprop"):
        given = arguments("model.optimizer", "--model.optimizer", name)
        assert given == {
            key: value
            for key, value in {**given, **defaults(getattr(torch.optim, name))}.items()
            if key in given
        }
    assert (
        arguments("model.optimizer", "--lr", "0.1", "--model.optimizer", "AdamW")["weight_decay"]
        == 0.01
    )
    assert (
        arguments("model.optimizer", "--model.optimizer", "Adam")["fused"] is True
    )  # the default's class

    recipe = ["--config", str(ROOT / "configs/cnn.yaml")]
    assert arguments("model.net", *recipe)["dropout"] == 0.3
    assert arguments("model.net", *recipe, "--net", "MLP") == defaults(MLP)
    assert (
        arguments("model.optimizer", *recipe, "--model.optimizer", "Adam", "--lr", "1e-3")[
            "weight_decay"
        ]
        == 0
    )
    assert (
        arguments("model.lr_scheduler", *recipe, "--model.lr_scheduler", "Cosine")["warmup"] == 0.05
    )
    assert (
        arguments(
            "model.net",
            *file("model: {net: {class_path: mnist_lightning.MLP, init_args: {dropout: 0.4}}}"),
            *own,
        )["dropout"]
        == 0.5
    )
    # The arguments of every data module mean the same in each, so a recipe's stay.
    uci = arguments("data", *recipe, "--data", "UCIDigits")
    assert (uci["batch_size"], uci["augmentation"]["init_args"]["rotation"]) == (128, 10)
    assert refused_line(capsys, "fit", "--net.hidden_sizes", "[3]", "--net", "CNN").startswith(
        "unknown argument --model.net.hidden_sizes"
    )


def test_one_parser_reads_the_data_of_a_file(first: Path, capsys: Capture) -> None:
    """What fit takes in a YAML file, describe and test take too, with the same result."""
    images = {}
    for number, content in enumerate(
        ("data: UCIDigits", "data: {val_fraction: 0.5}", "data: {class_path: UCIDigits}")
    ):
        Path("a.yaml").write_text(content)
        config = [
            "--config",
            "a.yaml",
            *(["--data", "UCIDigits"] if "class" not in content and number else []),
        ]
        assert settings(capsys, *config)["data"]["class_path"] == "mnist_lightning.UCIDigits"
        images[content] = re.search(r"images +([\d,]+)", run(capsys, "describe", *config))[1]  # type: ignore[index]
        assert "validation accuracy" in run(capsys, "validate", *config)
    assert list(images.values()) == ["1,150", "719", "1,150"]


def test_results_of_other_data_stand_beside_the_own(
    first: Path, folder: Path, capsys: Capture
) -> None:
    """So do those of views and of the last checkpoint; runs and compare show the run's own."""
    run(capsys, "test")
    run(capsys, "predict")
    Path("lightning_logs/first/report/robustness.png").write_text("measured once")
    own = {name: (first / name).read_bytes() for name in OWN}
    events = EventAccumulator("lightning_logs/first").Reload().Scalars("test/acc")

    report = run(capsys, "test", "--data", "test_cli.Letters").splitlines()[-1]
    assert report == "Report: lightning_logs/first/report_Letters/index.html"
    run(capsys, "predict", "--data", "test_cli.Letters")
    run(capsys, "test", "--tta", "2")
    run(capsys, "test", "--ckpt_path", "lightning_logs/first/checkpoints/last.ckpt")
    assert {name: (first / name).read_bytes() for name in OWN} == own
    assert EventAccumulator("lightning_logs/first").Reload().Scalars("test/acc") == events
    reports = {path.parent.name for path in Path("lightning_logs/first").glob("*/metrics.json")}
    assert reports == {"report", "report_Letters", "report_tta2", "report_last"}
    assert Path("lightning_logs/first/predictions_Letters.csv").exists()
    accuracy = json.loads(own["report/metrics.json"])["accuracy"]
    assert json.loads(run(capsys, "runs", "--json"))[0]["test"] == accuracy
    assert (
        load_run(
            "lightning_logs/first", data=UCIDigits(eval_batch_size=7, val_fraction=0.5)
        ).results_name()
        == ""
    )


OWN = ("report/metrics.json", "report/robustness.png", "report/index.html", "predictions.csv")


def test_other_data_do_not_inherit_a_folder(folder: Path, capsys: Capture) -> None:
    """A run's data_dir is for its own class: the drawings are looked for in their own place."""
    letters = "--data test_cli.Letters --data.data_dir mine --epochs 1 --name a"
    run(capsys, *FIT, *letters.split())
    keep(Path("data/Drawings"), np.full((28, 28), 9, np.uint8), 3, 10)
    out = run(capsys, "test", "--data", "Drawings", "--data.test_share", "1")
    assert "accuracy" in out
    metrics = json.loads(Path("lightning_logs/a/report_Drawings/metrics.json").read_text())
    assert (metrics["dataset"], metrics["num_examples"]) == ("Drawings", 1)


def test_results_elsewhere(first: Path, folder: Path, capsys: Capture) -> None:
    """--output, and one line without it for a run folder that cannot be written to."""
    paint_one()
    before = files_in(folder / "lightning_logs")
    # A folder in whose place is a file refuses to root too.
    Path("full").write_text("")
    for args in (["test"], ["predict"], ["predict", "one.png"]):
        message = refused_line(capsys, *args, "--output", "full/x")
        assert message == (
            "cannot write to full/x: Not a directory; "
            "choose another place, for results --output (output=)"
        )
    assert files_in(folder / "lightning_logs") == before
    report = run(capsys, "test", "--output", "out/here").splitlines()[-1]
    assert report == f"Report: {Path('out/here/report/index.html')}"
    assert "Written: out/here/predictions.csv" in run(capsys, "predict", "--output", "out/here")
    assert "Written: out/here/pictures.csv" in run(
        capsys, "predict", "one.png", "--output", "out/here"
    )
    assert {"report/metrics.json", "predictions.csv", "pictures.csv"} <= files_in(Path("out/here"))
    assert files_in(folder / "lightning_logs") == before


def test_nothing_is_written_before_the_work_is_accepted(
    first: Path, folder: Path, capsys: Capture
) -> None:
    paint_one()
    run(capsys, "predict", "one.png")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert refused_line(capsys, "predict", "typo.jpg") == "no such file: typo.jpg"
    assert refused_line(capsys, "predict", "typo.jpg", "another.jpg") == "no such file: typo.jpg"
    message = refused_line(capsys, "fit", "--ckpt_path", "lightning_logs/first", "--epochs", "1")
    assert message == "the run has 2 epochs already: max_epochs must be at least that, got 1"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    record = Path("lightning_logs/first/run.json")
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    assert refused_line(capsys, "compare").startswith("no finished run in lightning_logs: ")
    assert not Path("lightning_logs/compare").exists()


def test_words_that_end_in_help(first: Path, capsys: Capture) -> None:
    first.rename("lightning_logs/selfhelp")
    Path("scans/help").mkdir(parents=True)
    Image.new("L", (60, 60), 255).save("scans/help/none.png")
    assert "without a digit: 1" in run(capsys, "predict", "scans/help", code=1)
    assert "accuracy" in run(capsys, "validate", "--ckpt_path", "lightning_logs/selfhelp")


def test_settings_that_ended_in_a_traceback(folder: Path, capsys: Capture) -> None:
    run(capsys, *FIT, "--epochs", "1", "--trainer.callbacks+=Timer")
    assert (
        refused_line(capsys, *FIT, "--batch_size", "null")
        == "batch_size must be at least 1, got None"
    )
    assert (
        refused_line(capsys, *FIT, "--data.eval_batch_size", "null")
        == "eval_batch_size must be at least 1, got None"
    )
    for strategy in ("ddp_spawn", "ddp_fork"):
        message = refused_line(capsys, *FIT, "--trainer.strategy", strategy, "--device", "cpu")
        assert (
            message
            == f"the strategy {strategy} loses what its processes write: use ddp, in a script"
        )
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def test_a_terminal_that_lacks_letters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compare and fit --seeds print is escaped there, and no error."""
    for args, escaped in (
        (
            [*FIT, "--epochs", "1", "--device", "cpu", "--seeds", "1-2", "--name", "fünf"],
            rb"f\xfcnf",
        ),
        (["compare"], rb"\xb1"),
    ):
        terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(args) == 0
        terminal.flush()
        assert escaped in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_names_that_other_packages_use_too(capsys: Capture) -> None:
    import torchvision.ops  # it has an MLP

    assert issubclass(torchvision.ops.MLP, nn.Module)
    plateau = ["--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor", "val/loss"]
    model = settings(capsys, "--net", "MLP", *plateau, "--name", "MLP")["model"]
    assert model["net"]["class_path"] == "mnist_lightning.MLP"
    assert model["lr_scheduler"]["class_path"] == "lightning.pytorch.cli.ReduceLROnPlateau"


def test_help_of_a_class(capsys: Capture) -> None:
    for args in (["--net.help"], ["--model.net.help", "MLP"], ["--net.help", "--seed", "1"]):
        out = printed(capsys, "fit", *args)
        flags = re.findall(r"^  --model\.net\.(\w+)", out, re.M)
        assert flags == list(inspect.signature(MLP).parameters)
    assert "--model.net.width WIDTH" in printed(capsys, "fit", "--net", "CNN", "--net.help")
    assert "--data.mirrors MIRRORS" in printed(capsys, "test", "--data.help")


def test_overview_and_version(capsys: Capture) -> None:
    for args in ([], ["--help"], ["help"]):
        names = re.findall(r"^  (\w+) ", run(capsys, *args), re.M)
        assert names == list(TABLE)
    versions = [sys.version.split()[0], torch.__version__.partition("+")[0]]
    expected = "mnist_lightning {} (Python {}, torch {}, lightning ".format(__version__, *versions)
    for flag in ("--version", "-V"):
        assert run(capsys, flag).startswith(expected)


def test_words_that_people_try_name_flags_that_exist(capsys: Capture) -> None:
    """Each flag or verb that is suggested is taken; no flag of the table is one of the words."""
    values = {
        "net.hidden_sizes": "[3]",
        "trainer.max_time": "00:00:01:00",
        "model.optimizer": "SGD",
    }
    values |= {
        "data.train_size": "9",
        "trainer.max_steps": "9",
        "data.augmentation": "Augmentation",
        "model.lr_scheduler": "Cosine",
        "net.width": "3",
        "net.activation": "GELU",
    }
    rows = {name for verb in TABLE for name in flags_of(verb)}
    tried = [word for words in SYNONYMS.values() for word in words if word != "augmentation"]
    assert set(tried) & (rows | set(TABLE)) == set()
    for meant in SYNONYMS:
        flag, *given = meant.split(" ")
        assert flag.partition(".")[0] in {*TABLE, *rows, "model", "trainer"}
        if "." in flag:
            beside = {"net.width": "--net CNN", "model.optimizer.momentum": "--model.optimizer SGD"}
            before = beside.get(flag, "").split()
            value = given if given else [values.get(flag, "0.5")]
            settings(capsys, *before, f"--{flag}", *value)


def test_help_of_a_verb_by_the_word_help(capsys: Capture) -> None:
    for verb in TABLE:
        assert run(capsys, "help", verb) == run(capsys, verb, "--help")


def test_dashes_are_underscores(capsys: Capture) -> None:
    data = settings(capsys, "--batch-size=7", "--data-dir", "my-data")["data"]["init_args"]
    assert (data["batch_size"], data["data_dir"]) == (7, "my-data")


def test_a_section_takes_a_file(folder: Path, capsys: Capture) -> None:
    Path("model.yaml").write_text("net: CNN\n")
    assert settings(capsys, "--model", "model.yaml")["model"]["net"]["class_path"].endswith("CNN")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_the_import(number: int, folder: Path) -> None:
    """It is one line, also if the import makes another error of it, as C++ extensions do."""
    send = f"import os, time\ntry:\n    os.kill(os.getpid(), {number:d})\n    time.sleep(9)\n"
    Path("torch.py").write_text(
        f"{send}except KeyboardInterrupt:\n    raise ImportError('initialization failed')\n"
    )
    args = [sys.executable, "-m", "mnist_lightning", "describe"]
    done = subprocess.run(args, capture_output=True, text=True)
    name = signal.Signals(number).name
    assert (done.returncode, done.stderr) == (
        128 + number,
        f"python -m mnist_lightning: stopped by {name}\n",
    )


def test_waiting_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait do not spin, unless the user says so."""
    monkeypatch.setattr(cli, "main", lambda args: 7)
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if given:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        assert __main__.main() == 7
        assert os.environ["OMP_WAIT_POLICY"] == expected
