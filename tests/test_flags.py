"""Each flag of the table, called with its own example: does it reach its setting?"""

import contextlib
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from mnist_lightning import MNIST, Run, recipe
from mnist_lightning.cli import doctor, main, quick
from mnist_lightning.cli.flags import TABLE
from mnist_lightning.networks import TestTimeAugmentation
from mnist_lightning.report import describe
from mnist_lightning.studies import contrast, crossval, train, tune
from mnist_lightning.training.runs import runs

RUN = "lightning_logs/a"
SPACE = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
Values = dict[str, Any]


class Called(BaseException):
    """The library was called: nothing more is done."""


def rows() -> list[tuple[str, str, list[str]]]:
    """Verb, flag and the words of its example, for each row of the table."""
    found = []
    for verb, entry in TABLE.items():
        for row in entry["flags"]:
            words = [word for word in shlex.split(row.get("example", "")) if word != "..."]
            example = [RUN if word in ("RUN", "last") else word for word in words]
            found.append((verb, row["name"], example))
    return found


def data_of(it: Values) -> Any:
    return it["data"] if "data" in it else it["run"].data


def folder_of(it: Values) -> Path:
    """The folder of the run that a verb is for: it prints the checkpoint first."""
    return Path(it["printed"].split()[1]).parents[1]


# Where the setting of a flag is, if not under the flag's name.
REACHED: dict[str, Callable[[Values], Any]] = {
    "data": lambda it: type(data_of(it)).__name__,
    "data_dir": lambda it: data_of(it).data_dir,
    "config": lambda it: data_of(it).batch_size,
    "batch_size": lambda it: it["data"].batch_size,
    "epochs": lambda it: it["max_epochs"],
    "lr": lambda it: it["model"]().optimizer.keywords["lr"],
    "net": lambda it: type(it["model"]().net).__name__,
    "device": lambda it: it["accelerator"],
    "ckpt_path": lambda it: str(folder_of(it)),
    "fit ckpt_path": lambda it: str(it["resume"].parent.parent),
    "log_dir": lambda it: str(it.get("log_dir") or folder_of(it).parent),
    "teacher": lambda it: it["teacher"][0],
    "freeze": lambda it: it["freeze"][0],
    "seeds": lambda it: f"{it['seeds'][0]}-{it['seeds'][-1]}",
    "tta": lambda it: it["run"].model.net.views,
    "output": lambda it: str(it["output"]),
    "augmentation": lambda it: it["augment"] is not None,
    "json": lambda it: it["printed"].startswith("["),
    "format": lambda it: Path(it["output"]).suffix.removeprefix("."),
    "compare log_dir": lambda it: str(it["output"].parent),
    "serve device": lambda it: next(it["networks"][0].net.parameters()).device.type,
    "serve tta": lambda it: it["networks"][0].net.views,
    "serve drawings": lambda it: str(it["drawings"]),
}
# What a flag gives where the example is not the value itself.
EXPECTED: Values = {
    "config": 256,  # of configs/fast.yaml
    "images": ["photo.jpg", "scans/one.png"],
    "json": True,
    "space": SPACE,
    "train_sizes": [100, 1000],
}
ALSO = {  # flags that the example needs beside it
    "describe output": ["--data", "UCIDigits"],
    "describe augmentation": ["--data", "UCIDigits"],
    "predict single": ["--images", "photo.jpg"],
    "export quantize": ["--output", "x.onnx"],
    "compare split": [RUN, "lightning_logs/b"],
    "compare log_dir": [RUN],
    "compare output": [RUN],
}


@pytest.fixture(scope="module")
def place(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: runs, which say that they read MNIST, and files."""
    root = tmp_path_factory.mktemp("flags")
    for name in ("a", "b"):
        config = Path(shutil.copytree(trained, root / "lightning_logs" / name)) / "config.yaml"
        text = config.read_text()
        text = text.replace("mnist_lightning.data.uci.UCIDigits", "mnist_lightning.MNIST")
        text = text.replace("mnist_lightning.UCIDigits", "mnist_lightning.MNIST")
        config.write_text(text)
    config.write_text(text.replace("init_from: null", "init_from: b"))
    shutil.copytree(root / "lightning_logs", root / "DIR")
    shutil.copytree(root / "lightning_logs", root / "OLD/lightning_logs")
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

    def note(place: Any, *names: str) -> None:
        """Let a function note its arguments, the positional ones by these names, and stop."""

        def stop(*args: Any, **values: Any) -> None:
            found.update(zip(names, args, strict=False), **values)
            raise Called

        monkeypatch.setattr(*place, stop)

    for verb in ("validate", "test", "predict"):
        note((Run, verb), "run")
    note((Run, "export"), "run", "output")
    note((recipe, "fit"), "model", "data")
    note((train, "train_seeds"), "model", "data", "seeds")
    note((crossval, "cross_validate"), "model", "data")
    note((crossval, "learning_curve"), "train_sizes", "model", "data")
    note((tune, "tune"), "space", "make", "trials")
    note((describe, "write_description"), "output", "shown", "augment")
    note((MNIST, "prepare_data"), "data")
    note((doctor, "doctor"), "data", "log_dir", "accelerator", "devices", "num_nodes")
    note((quick, "runs"), "log_dir", "sort")
    note((quick, "write_comparison"), "output")
    note((contrast, "contrast"), "one", "other", "split")
    note(("mnist_lightning.pictures.write.write_digits",), "output", "images", "net")
    server = ("networks", "drawings", "host", "port", "token")
    note(("mnist_lightning.serve.server.serve",), *server)
    return found


def reach(verb: str, args: list[str], called: Values, capsys: pytest.CaptureFixture[str]) -> None:
    """Call a verb until it calls the library."""
    capsys.readouterr()
    code = 0
    with contextlib.suppress(Called):
        code = main.main([verb, *args])
    called["printed"], err = capsys.readouterr()
    assert code == 0, err


@pytest.mark.parametrize(("verb", "flag", "example"), rows(), ids=lambda value: str(value)[:20])
def test_a_flag_reaches_its_setting(
    verb: str, flag: str, example: list[str], called: Values, capsys: Any, monkeypatch: Any
) -> None:
    if flag == "json":  # the only one that changes what is printed
        monkeypatch.setattr(quick, "runs", runs)
    name = f"{verb} {flag}"
    args = [f"--{flag}", *example, *ALSO.get(name, [])]
    if verb == "tune" and flag != "space":
        args += ["--space", "space.yaml"]
    reach(verb, args, called, capsys)
    look = REACHED.get(name) or REACHED.get(flag) or (lambda it: it[flag])
    assert look(called) == EXPECTED.get(flag, yaml.safe_load(" ".join(example) or "true"))


@pytest.mark.parametrize(
    ("line", "flag", "value"),
    [
        ("doctor --accelerator gpu", "device", "gpu"),
        ("doctor --default_root_dir OLD", "log_dir", "OLD/lightning_logs"),
        ("serve --accelerator=cpu", "serve device", "cpu"),
        ("fit --accelerator=cpu", "accelerator", "cpu"),
        ("predict --accelerator cpu", "accelerator", "cpu"),
        ("compare --split validation", "split", "validation"),
        ("validate --trainer.default_root_dir OLD", "log_dir", "OLD/lightning_logs"),
        ("export --default_root_dir=OLD", "log_dir", "OLD/lightning_logs"),
        ("crossval --trainer.default_root_dir OLD", "log_dir", "OLD/lightning_logs"),
        ("fit --trainer.default_root_dir OLD", "default_root_dir", "OLD"),
        ("fit --log_dir DIR --trainer.default_root_dir OLD", "log_dir", "DIR"),
        ("fit --log_dir DIR --trainer.default_root_dir OLD", "default_root_dir", None),
        ("test --tta=3 --precision=bf16-mixed", "tta", 3),
        ("test --tta=3 --precision=bf16-mixed", "precision", "bf16-mixed"),
    ],
)
def test_earlier_names_and_equals_signs(
    line: str, flag: str, value: Any, called: Values, capsys: Any
) -> None:
    verb, *args = line.split()
    reach(verb, args, called, capsys)
    look = REACHED.get(flag) or (lambda it: it.get(flag))
    assert look(called) == value


def test_without_the_flag_there_are_no_views(called: Values, capsys: Any) -> None:
    reach("test", [], called, capsys)
    assert not isinstance(called["run"].model.net, TestTimeAugmentation)
