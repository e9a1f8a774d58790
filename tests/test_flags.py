"""Each flag in the tables of the help, called with its own example: does it reach its setting?"""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT

from mnist_lightning import MLP, DigitClassifier, Run, UCIDigits, cli, doctor, fit, usage, verbs
from mnist_lightning.cli import main
from mnist_lightning.models import TestTimeAugmentation
from mnist_lightning.report import describe
from mnist_lightning.studies import contrast, crossval, train, tune

RUN = "lightning_logs/a"
Values = dict[str, Any]
Look = Callable[[Values], Any]


class Called(BaseException):
    """The library was called: nothing more is done."""


def tables() -> list[tuple[str, str, list[str]]]:
    """Verb, flag and the words of its example, for each row of each table."""
    rows = []
    for verb, text in usage.HELP_OF.items():
        for line in text.splitlines():
            if line.startswith("  --"):
                flag, *example = shlex.split(line[2:30])
                example = [RUN if word in ("RUN", "last") else word for word in example if word != "..."]
                rows.append((verb, flag.removeprefix("--"), example))
    return rows


def data_of(it: Values) -> Any:
    return it["data"] if "data" in it else it["run"].data


DATA: dict[str, Look] = {
    "data": lambda it: type(data_of(it)).__name__,
    "data_dir": lambda it: data_of(it).data_dir,
    "config": lambda it: data_of(it).batch_size,
}
TRAINER: dict[str, Look] = {"device": lambda it: it["accelerator"], "precision": lambda it: it["precision"]}
CHECKPOINT: dict[str, Look] = {"ckpt_path": lambda it: str(it["run"].folder)}
VIEWS: dict[str, Look] = {"tta": lambda it: it["run"].model.net.views}
OUTPUT: dict[str, Look] = {"output": lambda it: it["output"]}
REACHED: dict[str, dict[str, Look]] = {
    "fit": {
        **DATA,
        **TRAINER,
        "epochs": lambda it: it["max_epochs"],
        "batch_size": lambda it: it["data"].batch_size,
        "lr": lambda it: it["model"].optimizer.keywords["lr"],
        "net": lambda it: type(it["model"].net).__name__,
        "seed": lambda it: it["seed"],
        "name": lambda it: it["name"],
        "ckpt_path": lambda it: str(it["resume"].parent.parent),
        "init_from": lambda it: it["init_from"],
        "teacher": lambda it: it["teacher"][0],
        "freeze": lambda it: it["freeze"][0],
        "seeds": lambda it: f"{it['seeds'][0]}-{it['seeds'][-1]}",
    },
    "validate": {**DATA, **TRAINER, **CHECKPOINT, **VIEWS},
    "test": {**DATA, **TRAINER, **CHECKPOINT, **VIEWS, **OUTPUT, "robustness": lambda it: it["robustness"]},
    "predict": {**DATA, **TRAINER, **CHECKPOINT, **VIEWS, **OUTPUT, "images": lambda it: it["files"]},
    "describe": {
        **DATA,
        "output": lambda it: str(it["folder"]),
        "augmentation": lambda it: it["augment"] is not None,
    },
    "doctor": {
        **DATA,
        "accelerator": lambda it: it["accelerator"],
        "devices": lambda it: it["devices"],
        "num_nodes": lambda it: it["num_nodes"],
        "default_root_dir": lambda it: str(it["log_dir"].parent),
    },
    "runs": {
        "sort": lambda it: it["sort"],
        "json": lambda it: it["printed"].startswith("["),
        "log_dir": lambda it: str(it["log_dir"]),
    },
    "compare": {"split": lambda it: it["split"], "output": lambda it: str(it["output"])},
    "crossval": {
        "folds": lambda it: it["folds"],
        "repeats": lambda it: it["repeats"],
        "stratified": lambda it: it["stratified"],
        "train_sizes": lambda it: it["sizes"],
        "name": lambda it: it["name"],
    },
    "tune": {name: lambda it, name=name: it[name] for name in ("space", "trials", "workers", "storage", "pruner")},  # type: ignore[misc]
    "export": {
        **DATA,
        **CHECKPOINT,
        "format": lambda it: Path(it["path"]).suffix.removeprefix("."),
        "output": lambda it: str(it["path"]),
        "logits": lambda it: it["logits"],
        "quantize": lambda it: it["quantize"],
    },
    "serve": {
        "ckpt_path": lambda it: it["args"][0],
        "host": lambda it: it["args"][2],
        "port": lambda it: it["args"][3],
        "token": lambda it: it["args"][4],
        "drawings": lambda it: str(it["args"][1]),
        "accelerator": lambda it: "cpu",
        "tta": lambda it: it["args"][0].views,
    },
}
REACHED["tune"]["name"] = lambda it: it["name"]
SPACE = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
EXPECTED: dict[tuple[str, str], Any] = {  # where the example is not the value itself
    ("predict", "images"): ["photo.jpg", "scans/one.png"],
    ("runs", "json"): True,
    ("tune", "space"): SPACE,
    ("crossval", "train_sizes"): [100, 1000],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: two runs, pictures, a space. The runs say that their data are MNIST."""
    root = tmp_path_factory.mktemp("flags")
    for name in ("a", "b"):
        quiet = {"log_dir": root / "lightning_logs", "name": name, "enable_progress_bar": False}
        run = fit(DigitClassifier(MLP([2])), UCIDigits(), max_epochs=1, **quiet)
        config = run.folder / "config.yaml"
        text = config.read_text().replace("mnist_lightning.data.uci.UCIDigits", "mnist_lightning.MNIST")
        config.write_text(text + f"\ninit_from: {name}\n" * (name == "b"))
    shutil.copytree(ROOT / "configs", root / "configs")
    (root / "scans").mkdir()
    for file in ("photo.jpg", "scans/one.png"):
        (root / file).touch()
    (root / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return root


@pytest.fixture
def called(place: Path, monkeypatch: pytest.MonkeyPatch) -> Values:
    """What the library is called with."""
    monkeypatch.chdir(place)
    found: Values = {}

    def note(*args: Any, **values: Any) -> Any:
        found.update(values)
        found["args"] = args
        raise Called

    def noted(*names: str) -> Callable[..., Any]:
        return lambda *args, **values: note(**dict(zip(names, args, strict=False)), **values)

    for verb in ("validate", "test", "predict"):
        monkeypatch.setattr(Run, verb, noted("run"))
    monkeypatch.setattr("mnist_lightning.pictures.recognize.write_digits", noted("output", "files", "net"))
    monkeypatch.setattr(train, "fit", noted("model", "data"))
    monkeypatch.setattr(verbs, "train_seeds", noted("flags", "name", "seeds"))
    monkeypatch.setattr(describe, "write_description", noted("folder", "shown", "augment"))
    monkeypatch.setattr(doctor, "doctor", noted("data", "log_dir", "accelerator", "devices", "num_nodes"))
    monkeypatch.setattr(cli, "write_comparison", noted("output"))
    monkeypatch.setattr(contrast, "contrast", noted("one", "other", "split"))
    monkeypatch.setattr(crossval, "cross_validate", noted("flags", "name"))
    monkeypatch.setattr(crossval, "learning_curve", noted("sizes", "flags", "name"))
    monkeypatch.setattr(tune, "tune", noted("space", "flags"))
    monkeypatch.setattr(Run, "export", noted("run", "path"))
    monkeypatch.setattr("mnist_lightning.serve.server.serve", note)
    return found


def reach(verb: str, args: list[str], called: Values, capsys: pytest.CaptureFixture[str]) -> None:
    """Call a verb until it calls the library."""
    capsys.readouterr()
    try:
        code = main([verb, *args])
        out, err = capsys.readouterr()
        assert code == 0, err
        called["printed"] = out
    except Called:
        pass


ALSO = {  # flags that the example needs beside it
    ("describe", "output"): ["--data", "UCIDigits"],
    ("describe", "augmentation"): ["--data", "UCIDigits"],
    ("export", "quantize"): ["--output", "x.onnx"],
    ("compare", "split"): [RUN, "lightning_logs/b"],
    ("compare", "output"): [RUN],
}


@pytest.mark.parametrize(("verb", "flag", "example"), tables(), ids=lambda value: str(value)[:20])
def test_a_flag_reaches_its_setting(
    verb: str, flag: str, example: list[str], called: Values, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    args = [f"--{flag}", *example, *ALSO.get((verb, flag), [])]
    if verb == "describe" and "UCIDigits" not in args:
        monkeypatch.setattr("mnist_lightning.MNIST.prepare_data", lambda self: found_data(called, self))
    if verb == "tune" and flag != "space":
        args += ["--space", "space.yaml"]
    if verb == "runs":
        monkeypatch.setattr(cli, "runs", lambda log_dir, sort: called.update(log_dir=log_dir, sort=sort) or [])
    reach(verb, args, called, capsys)
    value = REACHED[verb][flag](called)
    if flag == "config":
        assert value == 256  # of configs/fast.yaml
    elif verb == "serve" and flag == "ckpt_path":
        saved = torch.load(f"{RUN}/checkpoints/best.ckpt", weights_only=True)["state_dict"]
        torch.testing.assert_close({f"net.{name}": weight for name, weight in value.state_dict().items()}, saved)
    else:
        assert value == EXPECTED.get((verb, flag), yaml.safe_load(" ".join(example) or "true"))


def found_data(called: Values, data: Any) -> None:
    called["data"] = data
    raise Called


def test_each_row_of_each_table_is_called() -> None:
    assert {verb: set(flags) for verb, flags in REACHED.items()} == {
        verb: {flag for other, flag, _ in tables() if other == verb} for verb in usage.VERBS if verb != "import"
    }


def test_views_are_those_of_the_flag(called: Values, capsys: pytest.CaptureFixture[str]) -> None:
    """The neighbour: without the flag there are none, and = works as a blank does."""
    reach("test", [], called, capsys)
    assert not isinstance(called["run"].model.net, TestTimeAugmentation)
    reach("test", ["--tta=3", "--precision=bf16-mixed"], called, capsys)
    assert (called["run"].model.net.views, called["precision"]) == (3, "bf16-mixed")
