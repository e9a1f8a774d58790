"""Damaged and hostile files of a run: each reader returns the right kind of value, or refuses."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import attempt, damaged, refusal
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mnist_lightning import MLP, DigitClassifier, Run, UCIDigits, load_run
from mnist_lightning.checkpoints import (
    from_settings,
    is_plain,
    load_weights,
    read_checkpoint,
    to_settings,
)
from mnist_lightning.errors import condense
from mnist_lightning.files import read_config
from mnist_lightning.training.loggers import read_history
from mnist_lightning.training.record import learnt_from

JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def checkpoint_bytes(**more: Any) -> bytes:
    model = DigitClassifier(MLP([2]))
    content = io.BytesIO()
    saved = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "global_step": 1,
    }
    torch.save(saved | more, content)
    return content.getvalue()


@pytest.fixture
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that each input of a generated test is written to."""
    return tmp_path_factory.getbasetemp() / "hostile"


@given(damaged(checkpoint_bytes()))
def test_checkpoint(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    run = attempt(load_run, file)
    assert run is None or isinstance(run.model.net, MLP)


@given(JSON, JSON)
def test_checkpoint_content(file: Path, settings: Any, state: Any) -> None:
    """A checkpoint that is whole, but holds anything."""
    for more in (
        {"hyper_parameters": settings},
        {"hyper_parameters": {"net": settings}},
        {"state_dict": state},
    ):
        file.write_bytes(checkpoint_bytes(**more))
        assert attempt(load_run, file) is None


def test_checkpoint_with_code(tmp_path: Path) -> None:
    """Code in the pickle does not run, also not from a file in torch's old format."""

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"state_dict": Evil()}))
        archive.writestr("x/version", "3")
    path = tmp_path / "x.ckpt"
    for attack in (checkpoint_bytes(evil=Evil()), pickle.dumps(Evil()), content.getvalue()):
        path.write_bytes(attack)
        message = refusal(read_checkpoint, path)
        assert "it is damaged, or holds more than weights and plain values" in message
    assert not (tmp_path / "ran").exists()


def test_claims_of_size(tmp_path: Path) -> None:
    """A tensor that claims to be larger than its storage is refused, by its shape."""
    huge = torch.zeros(1).expand(10**9, 10**6)
    path = tmp_path / "huge.ckpt"
    path.write_bytes(checkpoint_bytes(state_dict={"net.layers.1.weight": huge}))
    model = DigitClassifier(MLP([2]))
    assert "is for another network" in refusal(load_weights, model, read_checkpoint(path), path)


@given(damaged(b"epoch,step,val/acc\n0,35,0.5\n1,71,\n"))
def test_history(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for row in attempt(read_history, file) or []:
        int(row["epoch"] or 0)
        int(row["step"])


@given(damaged(b"data:\n  class_path: mnist_lightning.MNIST\n") | JSON.map(yaml.safe_dump))
def test_config(file: Path, content: Any) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    config = attempt(read_config, file)
    assert config is None or isinstance(config, dict)


def test_a_config_that_contains_itself(file: Path) -> None:
    file.write_text("a: &x [*x]")
    assert "recursion" in refusal(read_config, file)


@given(JSON)
def test_record(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    run = Run(folder, None, DigitClassifier(MLP([2])))
    (folder / "run.json").write_text(json.dumps(content))
    assert run.record == (content if isinstance(content, dict) else {}) or "nan" in str(content)
    (folder / "run.json").write_text("[" * 100_000)
    assert run.record == {}


@given(JSON)
def test_settings(content: Any) -> None:
    """What is no class path is returned as it is, and only plain values count as settings."""
    settings = {"class_path": "torch.nn.Sequential", "init_args": {"args": content}}
    attempt(from_settings, settings)
    if "class_path" not in repr(content):
        assert from_settings(content) == content or content != content
    assert is_plain(content)
    assert not is_plain({"x": [content, object()]})


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (
            MLP([3], dropout=0.1, activation="GELU"),
            {"hidden_sizes": [3], "dropout": 0.1, "activation": "GELU", "batch_norm": False},
        ),
        (nn.Linear(784, 10), None),  # device and dtype are not kept
        (nn.Sequential(nn.Flatten()), None),
        (nn.Flatten(2), {"start_dim": 2, "end_dim": -1}),
    ],
)
def test_to_settings(net: nn.Module, expected: Any) -> None:
    settings = to_settings(net)
    assert (settings and settings["init_args"]) == expected
    if settings:
        assert repr(from_settings(settings)) == repr(net)


@given(st.text(max_size=60))
def test_condense(message: str) -> None:
    """A message of the parser stays one line, whatever is in it."""
    assert "\n" not in condense(f'Parser key "data":\n  {message}')


@pytest.mark.parametrize(
    "settings",
    [{"unknown": 1}, {"net": None, "label_smoothing": "x"}, {"temperature": []}, {1: 2}],
    ids=str,
)
def test_settings_that_the_class_does_not_take(settings: dict[Any, Any], file: Path) -> None:
    """In load_from_checkpoint of an untrusted file they are one line."""
    net = to_settings(MLP([2]))
    file.write_bytes(checkpoint_bytes(hyper_parameters={"net": net} | settings | {"net": net}))
    assert refusal(DigitClassifier.load_from_checkpoint, file)


@given(JSON, JSON)
def test_what_a_file_says_that_it_was_trained_on(seen: Any, split: Any) -> None:
    """Whatever it says, the validation images are counted, and nothing is raised."""
    data = UCIDigits(train_size=10)
    data.setup("fit")

    def seen_by(trainings: Any) -> int | None:
        record = {"callbacks": {"RunRecord": {"trained_on": trainings}}}
        return data.seen(learnt_from(record, None))

    assert seen_by(seen) in (0, None)
    entry = {"dataset": "UCIDigits", "split_seed": split, "folds": split}
    assert 0 <= seen_by([entry]) <= 287
