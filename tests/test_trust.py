"""What a checkpoint or a run folder from a stranger can do: nothing, told in one line by every verb."""

import contextlib
import errno
import os
import pickle
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import snapshot
from test_runs import bad_checkpoint

from mnist_lightning import MNIST, DigitClassifier, FashionMNIST, UCIDigits
from mnist_lightning.checkpoints import load_checkpoint
from mnist_lightning.cli import main
from mnist_lightning.data.kaggle import PIXELS, read_table
from mnist_lightning.data.pictures import read_picture
from mnist_lightning.errors import InputError
from mnist_lightning.loggers import read_history
from mnist_lightning.request import read_settings
from mnist_lightning.runs import find_checkpoint, read_record

VERBS = ("fit", "validate", "test", "predict")
DATA = ("--data", "UCIDigits", "--trainer.accelerator", "cpu")
EVIL = "import os\nimport torch\nos.mkdir('trap')\nclass Net(torch.nn.Identity): pass\n"
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "trap"]}}

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one short run that has a learning rate scheduler and early stopping."""
    folder = tmp_path_factory.mktemp("trained")
    scheduler = ["--model.lr_scheduler", "torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size", "1"]
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acc"]
    with contextlib.chdir(folder):
        size = ["--model.net.hidden_sizes", "[2]", "--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1"]
        assert main(["fit", *DATA, *size, *scheduler, *stopping]) == 0
    return folder / "lightning_logs/version_0"


@pytest.fixture
def checkpoint(trained: Path) -> dict[str, Any]:
    return torch.load(trained / "checkpoints/last.ckpt", weights_only=True)


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command says that is refused and leaves everything as it is."""
    before = snapshot(Path())
    capsys.readouterr()
    assert main(args) == 2
    assert snapshot(Path()) == before
    error = capsys.readouterr().err
    assert error.startswith("python -m mnist_lightning: error: ")
    assert error.endswith("\n")
    assert error[:-1].isprintable()
    return error.removeprefix("python -m mnist_lightning: error: ")


NAMES = {
    "a class that is no network": {"net": POPEN},
    "a module that would be imported": {"net": {"class_path": "evil.Net"}},
    "a class that is no optimizer": {"optimizer": POPEN},
    "a function": {"optimizer": "os.system"},
    "within what is ours": {"net": {"class_path": "mnist_lightning.MLP", "init_args": {"hidden_sizes": [POPEN]}}},
    "within what is torch's": {"net": {"class_path": "torch.nn.Transformer", "init_args": {"custom_encoder": POPEN}}},
    "a function of ours": {"lr_scheduler": "mnist_lightning.cli.main"},
    "YAML that hides the dot": {"net": '{"class_path": "evil\\u002eNet"}'},
    "a file of settings": {"net": "/tmp/net.yaml"},
    "a short name": {"net": "Identity"},
    "an instantiator": {"_instantiator": "evil.Net"},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("named", NAMES.values(), ids=NAMES)
def test_a_checkpoint_names_nothing_but_networks_of_torch_and_ours(
    checkpoint: dict[str, Any],
    named: dict[str, Any],
    verb: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(os.getcwd())
    checkpoint["hyper_parameters"] |= named
    torch.save(checkpoint, "bad.ckpt")
    assert "bad.ckpt was not loaded: it names " in refusal([verb, *DATA, "--ckpt_path", "bad.ckpt"], capsys)
    with pytest.raises(InputError, match=r"bad\.ckpt was not loaded: it names .*, and could run code by it; if you "):
        DigitClassifier.load_from_checkpoint("bad.ckpt")
    assert "evil" not in sys.modules
    assert not Path("trap").exists()


@pytest.mark.parametrize("key", ["hparams", "module_arguments"])
def test_nor_does_it_by_names_of_old(checkpoint: dict[str, Any], key: str) -> None:
    checkpoint[key] = {"optimizer": "os.system"}
    torch.save(checkpoint, "bad.ckpt")
    with pytest.raises(InputError, match=r"it names os\.system"):
        DigitClassifier.load_from_checkpoint("bad.ckpt", weights_only=True)


def test_a_data_module_is_made_with_no_other_augmentation(
    checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(os.getcwd())
    torch.save(checkpoint, "good.ckpt")
    assert UCIDigits.load_from_checkpoint("good.ckpt").batch_size == 32
    checkpoint["datamodule_hyper_parameters"]["augmentation"] = {"class_path": "evil.Net"}
    torch.save(checkpoint, "bad.ckpt")
    with pytest.raises(InputError, match=r"bad\.ckpt was not loaded: it names evil\.Net, and could run code by it"):
        UCIDigits.load_from_checkpoint("bad.ckpt")
    assert not Path("trap").exists()


def test_what_the_runs_own_settings_or_the_users_name_may_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text("import mnist_lightning\nclass Net(mnist_lightning.MLP): pass\n")
    monkeypatch.syspath_prepend(os.getcwd())
    own = ["--model.net", "mine.Net"]
    assert main(["fit", *DATA, *own, "--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1"]) == 0
    run = Path("lightning_logs/version_0")
    assert main(["validate", "--trainer.accelerator", "cpu"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    alone = (run / "checkpoints/best.ckpt").rename("alone.ckpt")
    assert "alone.ckpt was not loaded: it names mine.Net, " in refusal(
        ["test", *DATA, "--ckpt_path", "alone.ckpt"], capsys
    )
    assert main(["validate", *DATA, *own, "--ckpt_path", "alone.ckpt"]) == 0
    net = sys.modules["mine"].Net()
    assert DigitClassifier.load_from_checkpoint(alone, net=net).net is net
    assert isinstance(DigitClassifier.load_from_checkpoint(alone, weights_only=False).net, type(net))


@pytest.mark.parametrize("verb", VERBS)
def test_code_is_refused_by_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad_checkpoint(Path("bad.ckpt"), "code", Path("trap"))
    assert "was not loaded: it holds posix.mkdir" in refusal([verb, *DATA, "--ckpt_path", "bad.ckpt"], capsys)
    with pytest.raises(InputError, match=r"it holds posix\.mkdir"):
        DigitClassifier.load_from_checkpoint("bad.ckpt")


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "weights of numbers": (lambda c: c["state_dict"].update({"net.layers.1.bias": 1}), "is no weight"),
    "weights of numbered names": (lambda c: c["state_dict"].update({1: torch.zeros(1)}), "its 1 is no weight"),
    "hyperparameters in a list": (lambda c: c.update(hyper_parameters=[1]), "its hyper_parameters are no dict"),
    "a numbered hyperparameter": (lambda c: c.update(hyper_parameters={1: 2}), "which takes no 1"),
    "a tensor for a number": (
        lambda c: c["hyper_parameters"].update(net=torch.zeros(3)),
        "more than names and numbers",
    ),
    "a version of text": (lambda c: c.update({"pytorch-lightning_version": "x"}), "cannot be restored (Inv"),
    "an old version": (
        lambda c: c.update({"pytorch-lightning_version": "0.1", "callbacks": 1}),
        "cannot be restored (",
    ),
    "callbacks in a list": (lambda c: c.update(callbacks=[1]), "cannot be restored ("),
    "a callback of text": (lambda c: c["callbacks"].update(dict.fromkeys(c["callbacks"], "x")), "cannot be restored ("),
    "loops in a list": (lambda c: c.update(loops=[1]), "cannot be restored ("),
    "no loops": (lambda c: c.update(loops={}), "cannot be restored (KeyError"),
}
DAMAGED_FOR_FIT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "weights only": (lambda c: c.pop("optimizer_states"), "training cannot go on from it: it was saved with save_weig"),
    "optimizers in a dict": (lambda c: c.update(optimizer_states={}), "cannot be restored ("),
    "optimizers of text": (lambda c: c.update(optimizer_states=["x"]), "cannot be restored ("),
    "no optimizer": (lambda c: c.update(optimizer_states=[]), "cannot be restored ("),
    "a learning rate of text": (
        lambda c: groups(c).update(lr="x"),
        "optimizer.0.lr must be a number, got a text",
    ),
    "a moment of another shape": (
        lambda c: state(c).update(exp_avg=torch.zeros(9)),
        "exp_avg of a parameter (2, 784) ",
    ),
    "a moment of one number": (lambda c: state(c).update(exp_avg=torch.zeros(1).expand(2, 784)), "claims to be larger"),
    "no step": (lambda c: state(c).update(step=torch.zeros(0)), "step must be one float32 number"),
    "a moment of text": (lambda c: state(c).update(exp_avg="x"), "cannot be restored ("),
    "no moment": (lambda c: state(c).pop("exp_avg"), "cannot be restored (KeyError"),
    "schedulers of text": (lambda c: c.update(lr_schedulers=["x"]), "cannot be restored ("),
    "a scheduler's step of text": (
        lambda c: c["lr_schedulers"][0].update(last_epoch="x"),
        "must be a number, got a text",
    ),
    "a negative count": (lambda c: epochs(c).update(completed=-1), "must be a count, got -1"),
    "a fraction of an epoch": (lambda c: epochs(c).update(completed=0.5), "must be a count, got 0.5"),
    "an epoch of text": (lambda c: epochs(c).update(completed="x"), "must be a number, got a text"),
    "a best epoch of text": (
        lambda c: c["callbacks"]["RunRecord"].update(best_val_acc="x"),
        "must be a nothing, got a t",
    ),
}


def groups(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["optimizer_states"][0]["param_groups"][0]


def state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["optimizer_states"][0]["state"][0]


def epochs(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]


@pytest.mark.parametrize(
    ("verb", "damage", "said"),
    [
        pytest.param(verb, *case, id=f"{verb} {name}")
        for verbs, cases in ((("fit", "predict"), DAMAGED), (("fit",), DAMAGED_FOR_FIT))
        for verb in verbs
        for name, case in cases.items()
    ],
)
def test_a_damaged_state_is_refused_in_one_line(
    checkpoint: dict[str, Any],
    verb: str,
    damage: Callable[[dict[str, Any]], object],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(checkpoint)
    torch.save(checkpoint, "bad.ckpt")
    more = ["--trainer.max_epochs", "2"] if verb == "fit" else []
    message = refusal([verb, *DATA, *more, "--ckpt_path", "bad.ckpt"], capsys)
    assert message.startswith("bad.ckpt ")
    assert said in message


@pytest.mark.parametrize(
    ("path", "code"),
    [("{}/../keep.ckpt", 2), ("local://{}/../keep.ckpt", 2), ("{}/x::local://keep.ckpt", 2), ("keep.ckpt", 0)],
)
def test_a_checkpoint_has_no_other_file_deleted(
    checkpoint: dict[str, Any], path: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best checkpoint of before is deleted once there is a better one: which file that is, the state says."""
    folder = os.path.realpath("lightning_logs/version_0/checkpoints")  # where the new run will be
    for state in checkpoint["callbacks"].values():
        if "best_model_path" in state:
            state |= {"dirpath": folder} | dict.fromkeys(
                ("best_model_path", "kth_best_model_path"), path.format(folder)
            )
        if state.get("monitor"):
            state["best_k_models"] = {path.format(folder): torch.tensor(-1.0)}
    torch.save(checkpoint, "bad.ckpt")
    Path("keep.ckpt").write_text("kept")
    assert main(["fit", *DATA, "--trainer.max_epochs", "2", "--ckpt_path", "bad.ckpt"]) == code
    assert ("bad.ckpt cannot be restored (ValueError: " in capsys.readouterr().err) == (code == 2)
    assert Path("keep.ckpt").read_text() == "kept"


def packed(path: Path, size: int) -> None:
    """Write a checkpoint that a few kilobytes unpack to."""
    torch.save({"state_dict": {}}, path)
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in contents.items():
            new.writestr(name, content)
        new.writestr("bad/data/0", bytes(size))


class Large:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (10**12,)


def test_a_checkpoint_takes_no_more_memory_than_it_is_large() -> None:
    bomb = Path("bad.ckpt")
    packed(bomb, 10_000_000)
    with pytest.raises(InputError, match=r"bad\.ckpt was not loaded: it is packed, and could unpack to any size"):
        load_checkpoint(bomb)
    torch.save({"state_dict": {}, "x": Large()}, bomb)
    with pytest.raises(InputError, match=r"bad\.ckpt was not loaded: it holds (__builtin__|builtins)\.bytearray, and"):
        load_checkpoint(bomb)
    torch.save({"state_dict": {}, "x": [torch.zeros(1).expand(10**11)]}, bomb)
    with pytest.raises(InputError, match=r"bad\.ckpt was not loaded: a tensor in it claims to be larger than what it"):
        load_checkpoint(bomb)
    torch.save({"state_dict": {}, "x": list(range(5_000_000))}, bomb)
    with pytest.raises(InputError, match=r"bad\.ckpt was not loaded: it holds [\d,]+ bytes beside the weights"):
        load_checkpoint(bomb)


@pytest.mark.parametrize("laughs", [["ha"], []])
def test_aliases_do_not_make_a_checkpoint_of_any_size(checkpoint: dict[str, Any], laughs: list[Any]) -> None:
    for _ in range(40):
        laughs = [laughs] * 9
    checkpoint["hyper_parameters"]["net"] = laughs
    torch.save(checkpoint, "bad.ckpt")
    with pytest.raises(InputError, match="its hyper_parameters hold more than names and numbers"):
        DigitClassifier.load_from_checkpoint("bad.ckpt")


def test_a_second_pickle_is_not_overlooked_for_its_capitals() -> None:
    torch.save({"state_dict": {}}, "bad.ckpt")
    with zipfile.ZipFile("bad.ckpt", "a") as archive:
        archive.writestr("bad/DATA.PKL", pickle.dumps(Large(), protocol=2))
    with pytest.raises(InputError, match=r"bad\.ckpt is no checkpoint, or is damaged"):
        load_checkpoint(Path("bad.ckpt"))


READERS: dict[str, Callable[[Path], object]] = {
    "IDX": lambda path: MNIST(str(path)).load("train"),
    "IDX by hash": lambda path: MNIST(str(path), mirrors=[]).prepare_data(),
    "IDX by size": lambda path: FashionMNIST(str(path), mirrors=[]).prepare_data(),
    "CSV": lambda path: read_table(path, PIXELS),
    "picture": read_picture,
    "checkpoint": lambda path: load_checkpoint(path),
    "checkpoint's path": lambda path: find_checkpoint(str(path), Path(), "best"),
    "settings": read_settings,
    "history": read_history,
    "record": lambda path: read_record(path.parent),
}


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a socket": listening,
    "a folder": lambda path: path.mkdir(),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path: path.symlink_to("none"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a pipe": lambda path: (os.mkfifo("pipe"), path.symlink_to(Path("pipe").absolute())),
}


PLACES = {
    "IDX": "file/MNIST/raw/train-images-idx3-ubyte",
    "IDX by hash": "file/MNIST/raw/train-images-idx3-ubyte",
    "IDX by size": "file/FashionMNIST/raw/train-images-idx3-ubyte",
    "record": "run.json",
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_and_never_waited_for(reader: str, make: Callable[[Path], object]) -> None:
    path = Path(PLACES.get(reader, "file"))
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    if reader == "record" or (reader == "history" and not path.exists()):
        assert not READERS[reader](path)
        return
    with pytest.raises(InputError) as error:
        READERS[reader](Path("file"))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("reader", READERS)
def test_what_may_not_be_read_is_refused(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(PLACES.get(reader, "file"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:  # root may read everything
        patched.setattr("builtins.open", refuse)
        patched.setattr(Path, "open", refuse)
        if reader in ("record", "checkpoint's path"):
            READERS[reader](path)
            return
        with pytest.raises(InputError, match="Permission denied"):
            READERS[reader](Path("file"))


NAMED = ["a b", "-x", "%s%d", "{}{0}", "a\nb", "\x1b[2J", "\udcff", "ä⑦", "memory:", "http:", "x" * 300, "a\0b", "~"]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("reader", READERS)
def test_names_are_taken_as_they_are_and_shown_in_one_line(reader: str, name: str) -> None:
    path = Path(name) / PLACES.get(reader, "file").removeprefix("file/")
    with contextlib.suppress(OSError, ValueError):  # no file can have some of these names
        path.parent.mkdir(parents=True)
        path.write_text("neither")
    if reader in ("record", "checkpoint's path", "settings", "history"):
        with contextlib.suppress(InputError):
            assert READERS[reader](path) in (None, {}, [], path)
        return
    with pytest.raises(InputError) as error:
        READERS[reader](Path(name) if reader.startswith("IDX") else path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["a b", "%s{}", "a\nb", "\udcff", "memory:", "http:", "ä⑦"])
def test_a_checkpoint_may_lie_anywhere(name: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).mkdir()
    path = shutil.copy(trained / "checkpoints/best.ckpt", Path(name) / "a.ckpt")
    for verb in ("validate", "predict"):
        assert main([verb, *DATA, "--ckpt_path", str(path)]) == 0
