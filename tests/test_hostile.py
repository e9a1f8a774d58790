"""Every file is hostile: each reader returns the right kind of value or refuses in one line, whatever the bytes."""

import io
import json
import os
import resource
import shutil
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import idx_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnist_lightning import MLP, DigitClassifier, cli
from mnist_lightning.checkpoints import check_fits, check_made_by, check_names, load_checkpoint
from mnist_lightning.data import kaggle
from mnist_lightning.data.idx import read_idx
from mnist_lightning.data.pictures import read_picture
from mnist_lightning.data.preparation import find_digits
from mnist_lightning.describe import data_parser, only_data
from mnist_lightning.errors import InputError, condense
from mnist_lightning.evaluation.page import RUN, _written
from mnist_lightning.loggers import read_history
from mnist_lightning.request import resolve
from mnist_lightning.runs import read_record

MEMORY = 700_000  # kB that a test may take; an attack would take several times that
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.mkdir", "os.remove")
_watching = False


def _watch(event: str, arguments: object) -> None:
    if _watching and event in FORBIDDEN:
        raise AssertionError(f"{event}{arguments}")


sys.addaudithook(_watch)


@contextmanager
def nothing_but_refusals() -> Iterator[None]:
    """Let an InputError of one line pass, and no other error, no warning, and nothing that code does."""
    global _watching
    _watching = True
    refusal = ""
    try:
        with warnings.catch_warnings(action="error"):
            yield
    except InputError as error:
        refusal = str(error)
    finally:
        _watching = False
    assert refusal.isprintable()


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Valid files with some damage: cut off, bits flipped, parts replaced, repeated, removed or taken from others."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(content)))
        end = at + draw(st.integers(0, 40))
        damage = draw(st.integers(0, 7))
        if damage == 0:
            del content[at:]
        elif damage == 1 and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif damage == 2:
            content[at:end] = draw(st.binary(max_size=40))
        elif damage == 3:
            content[at:at] = content[at:end] * draw(st.integers(1, 50))
        elif damage == 4:
            del content[at:end]
        elif damage == 5:
            other = draw(st.sampled_from(seeds))
            content[at:] = other[draw(st.integers(0, len(other))) :]
        elif damage == 6:
            number = draw(st.sampled_from([0, 1, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1]))
            content[at : at + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", number)
        else:
            content[at : at + 1] = draw(
                st.sampled_from([b"\0", b"\n", b"\r", b'"', b",", b"'", b"\xff", b"\xef\xbb\xbf"])
            )
    return bytes(content)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


IDX = [idx_bytes(np.arange(48, dtype=np.uint8).reshape(3, 4, 4)), idx_bytes(np.arange(3, dtype=np.uint8))]


@given(content=mutated(IDX) | st.binary(max_size=80), memory_map=st.booleans())
def test_idx(file: Path, content: bytes, memory_map: bool) -> None:
    file.write_bytes(content)
    with nothing_but_refusals():
        images = read_idx(file, (3, 4, 4), memory_map)
        assert (images.dtype, images.shape) == (np.uint8, (3, 4, 4))
        assert images.tobytes() == content[16:]


COLUMNS = ["label", "pixel0", "pixel1"]
TABLE = [b"label,pixel0,pixel1\n1,2,3\n4,5,255\n", b'\xef\xbb\xbf"label","pixel0",pixel1\r\n"1", 02,+3\r\n\r\n4,5,6']
CELLS = st.sampled_from(
    (
        *(
            "0",
            "9",
            "10",
            "255",
            "256",
            "-1",
            "1.0",
            "1e2",
            "nan",
            "",
            " 7 ",
            '"3"',
            '"',
            "'1'",
            "+5",
            "007",
            "\0",
            "²",
        ),
        *("\u0663", "9" * 5000, "\ufeff", "1,2", "1\n2", "~", "*", "0x1", "#", "1_0", "true", "\x1b[2J", "\t1"),
    )
)
TABLES = st.lists(st.lists(CELLS, min_size=2, max_size=4).map(",".join), max_size=4).map(
    lambda rows: "\n".join(["label,pixel0,pixel1", *rows]).encode()
)


@given(content=mutated(TABLE) | TABLES | st.binary(max_size=80))
def test_csv(file: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(content)
    with nothing_but_refusals():
        table = kaggle.read_table(file, COLUMNS)
        assert table.dtype == np.uint8
        assert table.shape[1] == 3
        assert len(table) > 0
        assert table[:, 0].max() <= 9
        np.testing.assert_array_equal(table, kaggle._read_exactly(file, COLUMNS))
    assert capfd.readouterr() == ("", "")


def pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), np.uint8)
    found = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"):
        picture = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode)
        for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "DIB", "SGI", "JPEG2000"):
            for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}) if kind == "TIFF" else ({},):
                content = io.BytesIO()
                try:
                    picture.save(content, kind, **options)
                except (OSError, ValueError, KeyError):
                    continue  # there is no such file
                found.append(content.getvalue())
    return found


PICTURES = pictures()


@given(content=mutated(PICTURES) | st.binary(max_size=200))
def test_pictures(file: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(content)
    with nothing_but_refusals():
        picture = read_picture(file)
        assert picture.dtype == np.uint8
        assert picture.ndim == 2 or picture.shape[2] in (3, 4)
        for digit in find_digits(picture):
            assert (digit.image.dtype, digit.image.shape) == (np.uint8, (28, 28))
    assert capfd.readouterr() == ("", "")


NET = MLP((2,))
MODEL = DigitClassifier(NET)
WEIGHTS = {name: value.clone() for name, value in MODEL.state_dict().items()}
CHECKPOINT = {
    "state_dict": WEIGHTS,
    "global_step": 5,
    "pytorch-lightning_version": "2.6.6",
    "hyper_parameters": {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "net": {"class_path": "mnist_lightning.MLP", "init_args": {"hidden_sizes": [2], "dropout": 0.2}},
        "lr_scheduler_interval": "epoch",
    },
}


def saved(checkpoint: object) -> bytes:
    content = io.BytesIO()
    torch.save(checkpoint, content)
    return content.getvalue()


def repacked(content: bytes, pickled: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Pack a checkpoint anew, all checksums right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, pickled if pickled is not None and name.endswith("data.pkl") else old.read(name))
    return packed.getvalue()


GOOD = saved(CHECKPOINT)
PICKLED = zipfile.ZipFile(io.BytesIO(GOOD)).read("archive/data.pkl")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(torch.zeros(2)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from(
    (
        *(
            "os.system",
            "subprocess.Popen",
            "builtins.exec",
            "evil.Net",
            "evil",
            "BERTScore",
            "evil.yaml",
            "/evil",
            "..",
        ),
        *(
            "torch.nn",
            "torch.nn.Linear",
            "torch.load",
            "torch.hub.load",
            "torch.nn.modules.module.OrderedDict",
            "epoch",
        ),
        *("mnist_lightning.cli.main", '{"class_path": "evil\\u002eNet"}', "mnist_lightning.MLP", "torch.optim.Adam"),
    )
)
HYPERPARAMETERS = st.dictionaries(
    st.sampled_from(["net", "optimizer", "lr_scheduler", "lr_scheduler_interval", "_class_path", "_instantiator", "x"]),
    st.recursive(
        PATHS | PLAIN,
        lambda inner: st.fixed_dictionaries(
            {"class_path": PATHS, "init_args": st.dictionaries(PATHS, inner, max_size=2)}
        ),
        max_leaves=4,
    ),
    max_size=4,
)
CHECKPOINTS = st.one_of(
    st.fixed_dictionaries({}, optional={name: PLAIN | st.just(value) for name, value in CHECKPOINT.items()}),
    st.dictionaries(st.sampled_from([*WEIGHTS, 1, None]), PLAIN | st.just(torch.zeros(2, dtype=torch.complex64))).map(
        lambda weights: CHECKPOINT | {"state_dict": weights}
    ),
    st.tuples(st.sampled_from(["hyper_parameters", "hparams", "module_arguments"]), HYPERPARAMETERS | PLAIN).map(
        lambda given: CHECKPOINT | dict([given])
    ),
).map(saved)


@given(
    content=mutated([GOOD, repacked(GOOD), repacked(GOOD, compression=zipfile.ZIP_DEFLATED)])
    | mutated([PICKLED]).map(lambda pickled: repacked(GOOD, pickled))
    | CHECKPOINTS
    | st.binary(max_size=80)
)
def test_checkpoints(file: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(content)
    modules = set(sys.modules)
    with nothing_but_refusals():
        checkpoint = load_checkpoint(file)
        assert isinstance(checkpoint["global_step"], int)
        check_made_by(file, checkpoint, DigitClassifier)
        check_names(file, checkpoint)
        check_fits(file, checkpoint["state_dict"], MODEL)
        MODEL.load_state_dict(checkpoint["state_dict"])
    assert not {"evil", "this", "antigravity"} & (set(sys.modules) - modules)
    assert capfd.readouterr() == ("", "")


RECIPE = b"""seed_everything: 42
trainer: {max_epochs: 3, accelerator: cpu, callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/acc}}]}
model:
  net: {class_path: mnist_lightning.MLP, init_args: {hidden_sizes: [8], dropout: 0.2}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1e-3}}
data: &data
  class_path: mnist_lightning.UCIDigits
  init_args: {batch_size: 32, val_fraction: 0.2}
checkpoint: {save_top_k: 1}
"""
LAUGHS = b"a: &a [1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(12)
)
YAMLS = [
    RECIPE,
    LAUGHS,
    b"data: &a [*a]\n",
    b"data: !!python/object/apply:os.system [touch trap]\n",
    b"data: !!python/name:os.system\n",
    b"model: {net: {class_path: os.system, init_args: {command: touch trap}}}\n",
    b"data: " + b"[" * 300 + b"]" * 300,
    b"data: {class_path: UCIDigits, init_args: {batch_size: 1e999, val_fraction: .nan, split_seed: "
    + b"9" * 5000
    + b"}}\n",
    b"data: !!timestamp x\nmodel: !!float ''\ntrainer: !!int ''\ncheckpoint: !!bool x\n",
    b"data: !!binary x\nmodel: !!set {a}\n? [a]\n: 1\n<<: {data: 1}\n",
    b"--- 1\n--- 2\n",
    b"data: !!set {a}\n",
    b"data: {since: !!timestamp 2026-01-01}\n",
    b'data: "\\ud800\\0"\nckpt_path: "\\0"\ntrainer: {default_root_dir: "\\udc80\\n"}\n',
    json.dumps({"data": {"class_path": "UCIDigits"}}).encode(),
]


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[str], object]]:
    """What each verb does with --config, up to where it makes anything of it."""

    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # as main has it

    class Built(Exception):
        pass

    class Parsing(cli.DigitCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            built.append(self)
            raise Built

    def parse(made: cli.DigitCLI) -> Callable[[str], object]:
        return lambda path: cli.DigitCLI.parse_arguments(made, made.parser, ["fit", "--config", path])

    built: list[cli.DigitCLI] = []
    with pytest.raises(Built):
        Parsing(["fit"])
    describing = data_parser(**cli.STRICT)
    run = tmp_path_factory.mktemp("version_0")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best.ckpt").write_text("")

    def continued(path: str) -> object:
        shutil.copy(path, run / "config.yaml")
        return resolve(["test", "--ckpt_path", str(run)])

    return {
        "fit": parse(built[0]),
        "test": continued,
        "describe": lambda path: describing.parse_args(only_data(["--config", path])),
    }


@given(content=mutated(YAMLS) | st.binary(max_size=80))
def test_configurations(
    file: Path, content: bytes, parsers: dict[str, Callable[[str], object]], capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(content)
    for parse in parsers.values():
        with nothing_but_refusals():
            try:
                parse(str(file))
            except Exception as error:
                if not cli._is_users(error):
                    raise
                raise InputError(condense(str(error))) from error  # as main has it
    assert capfd.readouterr() == ("", "")


RECORD = json.dumps(dict(zip(RUN, ["UCIDigits", *[1] * 9], strict=True))).encode()
RECORDS = [
    RECORD,
    b"[" * 100_000,
    b'{"epochs": ' + b"9" * 5000 + b"}",
    b'{"global_step": "many", "best_val_acc": [NaN]}',
    b'{"fit_seconds": 1' + b"0" * 400 + b"}",
]


@given(content=mutated(RECORDS) | st.binary(max_size=80))
def test_records(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with nothing_but_refusals():
        record = read_record(tmp_path)
        assert record is None or isinstance(record, dict)
        for name, value in (record or {}).items():
            if name in RUN:
                assert isinstance(_written(RUN[name][1], value), str)


HISTORY = [
    b"epoch,step,lr,val/acc\n0,9,,0.5\n1,19,1e-3,nan\n",
    b'epoch,step\n"0",1\n',
    b"epoch,step\n0,1" + b"1" * 200_000,
]


@given(content=mutated(HISTORY) | st.binary(max_size=80))
def test_histories(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with nothing_but_refusals():
        for row in read_history(file):
            assert int(row["step"]) >= 0
            assert int(row["epoch"]) >= 0
            assert all(cell == "" or isinstance(float(cell), float) for cell in row.values())
