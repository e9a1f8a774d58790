"""Networks in other formats: written, compared with the original, and read back."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from conftest import attempt, files_in, refusal
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from mnist_lightning import CNN, MLP, DigitClassifier, Ensemble, FastCNN, UCIDigits, fit, load_run
from mnist_lightning.cli.main import main
from mnist_lightning.export import write
from mnist_lightning.export.read import import_onnxruntime
from mnist_lightning.export.write import ExportError, export
from mnist_lightning.inference import classify
from mnist_lightning.training.run import Run

onnxruntime = import_onnxruntime()
IMAGES = np.random.default_rng(0).integers(0, 256, (37, 28, 28)).astype(np.uint8)
FLOATS = IMAGES[:, None].astype(np.float32) / 255


class Pair(nn.Module):
    """A network of a user's own, whose input has another name."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, size), nn.Tanh(), nn.Linear(size, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


def network(name: str) -> nn.Module:
    torch.manual_seed(1)
    made: dict[str, nn.Module] = {
        "mlp": MLP([16]),
        "cnn": CNN(3),
        "fast_cnn": FastCNN(3),
        "own": Pair(5),
    }
    made["ensemble"] = Ensemble([made["mlp"], MLP([9], activation="GELU", batch_norm=True)])
    with torch.no_grad():  # statistics that change something
        for module in made[name].modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return made[name]


@pytest.fixture
def run(folder: Path) -> Run:
    """A run folder with a small trained network."""
    own = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    return fit(DigitClassifier(MLP([16])), UCIDigits(), name="a", **own)


@pytest.mark.parametrize("name", ["mlp", "cnn", "fast_cnn", "own", "ensemble"])
def test_each_format_gives_the_same_probabilities(name: str, folder: Path) -> None:
    net = network(name)
    wanted = net.eval()(torch.from_numpy(FLOATS)).softmax(dim=1).detach().numpy()
    for suffix in (".onnx", ".safetensors", ".pt2"):
        original, written = export(net, f"out/x{suffix}", IMAGES, wanted.argmax(axis=1))
        assert (original.difference, original.accuracy, written.accuracy) == (0, 1, 1)
        assert written.difference < 1e-5
        assert (written.equal, written.size) == (37, Path(f"out/x{suffix}").stat().st_size)
    assert files_in(folder) == {"out/x.onnx", "out/x.safetensors", "out/x.pt2"}  # one file each

    session = onnxruntime.InferenceSession("out/x.onnx")
    assert [each.name for each in (*session.get_inputs(), *session.get_outputs())] == [
        "images",
        "probabilities",
    ]
    program = torch.export.load("out/x.pt2").module()
    for number in (1, 2, 37):  # any batch size
        (answers,) = session.run(None, {"images": FLOATS[:number]})
        np.testing.assert_allclose(answers, wanted[:number], atol=1e-5)
        np.testing.assert_allclose(
            program(torch.from_numpy(FLOATS[:number])).detach(), wanted[:number], atol=1e-5
        )
    fresh = network(name)
    fresh.load_state_dict(load_file("out/x.safetensors"))
    np.testing.assert_allclose(classify(fresh, IMAGES), wanted, atol=1e-6)


def test_what_a_file_says_of_itself(run: Run) -> None:
    rows = run.export("m.onnx", logits=True)
    assert [row.images for row in rows] == [287, 287]
    texts = {item.key: item.value for item in onnx.load("m.onnx").metadata_props}
    assert json.loads(texts["network"]) == {
        "class_path": "mnist_lightning.MLP",
        "init_args": {
            "hidden_sizes": [16],
            "dropout": 0.2,
            "activation": "ReLU",
            "batch_norm": False,
        },
    }
    assert (texts["data"], texts["output"]) == ("UCIDigits", "logits")
    assert float(texts["accuracy"]) == rows[0].accuracy == pytest.approx(run.best_val_acc)
    assert texts["accuracy_on"] == "287 validation images of UCIDigits"
    assert json.loads(texts["versions"])["torch"] == torch.__version__.partition("+")[0]
    assert texts["images"].startswith("float32 (N, 1, 28, 28) in [0, 1], a white digit on black")
    (logits,) = onnxruntime.InferenceSession("m.onnx").run(["logits"], {"images": FLOATS})
    np.testing.assert_allclose(
        logits, run.model.net.eval()(torch.from_numpy(FLOATS)).detach(), atol=1e-4
    )


def test_back_in(run: Run) -> None:
    """A file gives the run's results, and one of weights is a start for another training."""
    wanted, (images, labels) = run.predict(IMAGES).probabilities, UCIDigits().load("test")
    accuracy = (run.predict(images).digits == labels).mean()
    for file in ("m.onnx", "m.safetensors"):
        run.export(file)
        loaded = load_run(file, data=UCIDigits())
        np.testing.assert_allclose(loaded.predict(IMAGES).probabilities, wanted, atol=1e-5)
        assert loaded.validate(accelerator="cpu")["accuracy"] == pytest.approx(run.best_val_acc)
    assert load_run("m.onnx", data=UCIDigits()).test(accelerator="cpu")[
        "accuracy"
    ] == pytest.approx(accuracy)
    assert Path("lightning_logs/m.results/report/index.html").exists()
    both = load_run(["m.onnx", "m.safetensors"], data=UCIDigits())
    np.testing.assert_allclose(both.predict(IMAGES).probabilities, wanted, atol=1e-5)
    net = MLP([16])
    fit(
        DigitClassifier(net),
        UCIDigits(),
        name="b",
        init_from="m.safetensors",
        max_epochs=0,
        accelerator="cpu",
    )
    assert torch.equal(net.layers[1].weight, run.model.net.layers[1].weight)  # type: ignore[index, union-attr]


def test_the_card_of_a_file(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines load the file as they stand, and its figures are the run's."""
    digits = run.predict(IMAGES).digits
    photo = 255 - np.kron(run.data.load("test")[0][0], np.ones((4, 4), np.uint8))
    Image.fromarray(photo).save("photo.jpg")
    for suffix, library in zip(
        write.FORMATS.values(), ("onnx", "mnist-lightning", "keras", "pytorch"), strict=True
    ):
        run.export(f"m{suffix}")
        card = Path(f"m{suffix}.md").read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        assert (front["library_name"], front["license"]) == (library, "mit")
        (result,) = front["model-index"][0]["results"]
        assert result["dataset"] == {
            "name": "UCIDigits",
            "type": "UCIDigits",
            "split": "validation",
        }
        assert result["metrics"] == [{"type": "accuracy", "value": run.best_val_acc}]
        for sentence in (
            f"Validation: **{run.best_val_acc:.2%}**.",
            "- Test: not measured.",
            "on 287 validation images of UCIDigits: 287 get the same answer.",
            "20% of the training images were kept out for validation (`split_seed` 0).",
            "- Seed: 42\n",
            f"torch {torch.__version__.partition('+')[0]}",
        ):
            assert sentence in card
        load, *more = re.findall("```python\n(.*?)```", card, re.DOTALL)
        assert load.count("\n") == 3
        names: dict[str, Any] = {"images": FLOATS[:, 0] if suffix == ".keras" else FLOATS}
        exec(load, names)
        np.testing.assert_array_equal(names["digits"], digits)
        for lines in more:
            capsys.readouterr()
            exec(lines, {})
            assert capsys.readouterr().out == f"{run.recognize('photo.jpg').text}\n"
    metrics = run.test(robustness=True, accelerator="cpu")
    card = run.write_card("m.onnx").read_text()
    result = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][1]
    assert (result["dataset"]["split"], result["metrics"][0]["value"]) == (
        "test",
        metrics["accuracy"],
    )
    assert f"- Test: **{metrics['accuracy']:.2%}** of 360 images of UCIDigits." in card
    assert f"|     5°  {metrics['robustness']['rotation']['5']:.1%} |" in card
    load_run(["lightning_logs/a", "m.safetensors"]).export(
        "both.onnx"
    )  # a network without a record
    card = Path("both.onnx.md").read_text()
    assert "- Validation: not known." in card
    assert "- Network: Ensemble\n" in card


def test_8_bit_integers(run: Run) -> None:
    original, float32, int8 = run.export("m.onnx", quantize=True)
    names = [row.name for row in (original, float32, int8)]
    assert names == ["network in torch", "m in float32", "m.onnx"]
    assert int8.size < 0.4 * float32.size
    assert float32.difference < 1e-5 < int8.difference < 0.2
    kinds = {each.data_type for each in onnx.load("m.onnx").graph.initializer}
    assert {TensorProto.INT8, TensorProto.UINT8} <= kinds
    images, labels = run.data.val_set.arrays()  # type: ignore[union-attr]
    assert int8.accuracy == np.mean(load_run("m.onnx").predict(images).digits == labels)


def test_a_file_that_differs_is_removed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("m.onnx").write_text("old")
    right = write.read_other_runtime

    def wrong(file: Path) -> nn.Module:
        net = right(file)
        net.register_forward_hook(lambda module, given, answers: answers * 1.001)
        return net

    monkeypatch.setattr(write, "read_other_runtime", wrong)
    with pytest.raises(ExportError, match=r"m\.onnx was not written: of 287 images 287 get the"):
        run.export("m.onnx")
    before = files_in(Path())
    assert main(["export", "--ckpt_path", "lightning_logs/a", "--output", "n.onnx"]) == 1
    assert "n.onnx was not written: " in capsys.readouterr().err
    assert files_in(Path()) == before
    assert Path("m.onnx").read_text() == "old"


def foreign(shape: list[Any], softmax: bool) -> np.ndarray[Any, Any]:
    """Write an ONNX file by hand, of one matrix product; return the matrix."""
    weights = np.random.default_rng(0).normal(size=(784, 10)).astype(np.float32) / 28
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
    ]
    nodes += [helper.make_node("Softmax" if softmax else "Identity", ["z"], ["y"])]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", shape), ("y", ["N", 10]))
    ]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, (784, 10), weights.tobytes(), raw=True)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [tensor])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        "f.onnx",
    )
    return weights


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("shape", [["N", 784], ["N", 28, 28], ["N", 28, 28, 1], [None, 1, 28, 28]])
def test_onnx_of_others(folder: Path, shape: list[Any], softmax: bool) -> None:
    logits = IMAGES.reshape(37, 784) / 255 @ foreign(shape, softmax)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(load_run("f.onnx").predict(IMAGES).probabilities, shares, atol=1e-5)


def test_files_that_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign([1, 784], softmax=True)
    assert "cannot use f.onnx: " in refusal(load_run, "f.onnx")  # one image at a time
    Path("k.keras").touch()
    assert "is a Keras file: make a run of it" in refusal(load_run, "k.keras")
    export(Pair(3), "own.safetensors", IMAGES)
    message = refusal(load_run, "own.safetensors")
    assert "test_export.Pair is not a class of torch.nn, torch.optim or mnist_" in message
    assert load_run("own.safetensors", net=Pair(3)).predict(IMAGES).digits.shape == (37,)
    save_file({"w": torch.zeros(2)}, "plain.safetensors")
    assert "does not name its network" in refusal(load_run, "plain.safetensors")
    content = {}
    for suffix in ("onnx", "safetensors"):
        run.export(f"m.{suffix}")
        content[suffix] = Path(f"m.{suffix}").read_bytes()
    for suffix, whole in content.items():
        for damaged in (b"", whole[:100], whole[:-100], b"\0" * 1000, whole[50:]):
            Path(f"d.{suffix}").write_bytes(damaged)
            assert attempt(load_run, f"d.{suffix}") is None
    endings = ".onnx, .safetensors, .keras, .pt2"
    assert f"must end in {endings}, got m.pb" in refusal(run.export, "m.pb")
    assert "must end in .onnx, got m.pt2" in refusal(run.export, "m.pt2", quantize=True)
    assert "random views" in refusal(load_run("lightning_logs/a", tta=2).export, "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install -e '.[export]'" in refusal(run.export, "x.onnx")
    assert not list(Path().glob("[x.]*"))
