"""Networks to Keras and back: the same probabilities, the turned weights, and what is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mnist_lightning.checkpoints import from_settings, to_settings
from mnist_lightning.errors import InputError
from mnist_lightning.export.keras import (
    from_keras,
    import_keras,
    load_keras,
    read_keras,
    to_keras,
    write_keras,
)
from mnist_lightning.inference import classify
from mnist_lightning.networks import CNN, MLP, Ensemble, FastCNN, Stack

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation"
)  # Keras 3.15 with NumPy 2
keras = import_keras()
L = keras.layers
IMAGES = (
    np.random.default_rng(0).random((20, 1, 7, 7), np.float32).repeat(4, axis=2).repeat(4, axis=3)
)
MAPS: list[list[Any]] = [
    *(
        ["Conv2d", 1, 3, [3, 5], [2, 1]],
        ["Sigmoid"],
        ["Conv2d", 3, 4, 3, 1, 1, {"bias": False}],
        ["BatchNorm2d", 4],
    ),
    *(
        ["ELU", 0.5],
        ["AvgPool2d", 2],
        ["Dropout", 0.1],
        ["Flatten"],
        ["BatchNorm1d", 288, 0.01, 0.2],
    ),
    *(
        ["Linear", 288, 12],
        ["BatchNorm1d", 12, {"affine": False}],
        ["LeakyReLU"],
        ["Linear", 12, 10],
    ),
]
MEAN: list[list[Any]] = [["AdaptiveAvgPool2d", 1], ["Flatten"]]


def shaken(net: nn.Module) -> nn.Module:
    """A network with random weights and statistics, in which each weight shows."""
    generator = torch.Generator().manual_seed(0)
    for value in net.state_dict().values():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(
                noise.abs() + 0.5 if value.dim() == 1 else 2 * noise / value[0].numel() ** 0.5
            )
    return net


def answers(model: Any) -> NDArray[np.float32]:
    images = IMAGES.reshape(len(IMAGES), *model.input_shape[1:])
    return np.asarray(model.predict(images, verbose=0))


NETS = [MLP(), MLP([9, 8], 0, "GELU", True), MLP([], 0), CNN(4), FastCNN(3), Stack(MAPS)]
NETS += [MLP([9], 0, name) for name in ("LeakyReLU", "SiLU", "Tanh")]


@pytest.mark.parametrize("net", NETS, ids=lambda net: type(net).__name__)
def test_round_trip(net: nn.Module) -> None:
    wanted = classify(shaken(net), IMAGES)
    assert np.ptp(wanted, axis=0).max() > 0.02
    model = to_keras(net)
    np.testing.assert_allclose(answers(model), wanted, rtol=0, atol=1e-5)
    for back in (from_keras(model), from_keras(to_keras(net, logits=True))):
        np.testing.assert_allclose(classify(back, IMAGES), wanted, rtol=0, atol=1e-5)
    again = from_settings(json.loads(json.dumps(to_settings(back))))
    assert str(again) == str(back)


def test_layers() -> None:
    """As a notebook writes them; rows of weights after Flatten go from (C, H, W) to (H, W, C)."""
    model = to_keras(MLP([32]))
    assert [type(layer).__name__ for layer in model.layers] == [
        "Flatten",
        "Dense",
        "Dropout",
        "Dense",
    ]
    assert [model.layers[n].get_config()["activation"] for n in (1, 3)] == ["relu", "softmax"]
    assert (model.input_shape, to_keras(CNN(2)).input_shape) == ((None, 28, 28), (None, 28, 28, 1))
    net = shaken(Stack(MAPS))
    model = to_keras(net)
    kernel = net.layers[9].weight.detach().numpy().reshape(12, 4, 6, 12)
    np.testing.assert_array_equal(
        model.layers[8].kernel, kernel.transpose(2, 3, 1, 0).reshape(288, 12)
    )
    np.testing.assert_array_equal(
        model.layers[1].kernel, net.layers[2].weight.detach().numpy().transpose(2, 3, 1, 0)
    )
    for ours, theirs in zip(net.layers, from_keras(model).layers, strict=True):
        for value, other in zip(
            ours.state_dict().values(), theirs.state_dict().values(), strict=True
        ):
            np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "gelu", "silu", "swish", "tanh", "sigmoid", "elu", "linear"]
)
def test_activations(name: str) -> None:
    parts = [
        L.Dense(9, name),
        L.Activation(name),
        L.ReLU(),
        L.LeakyReLU(),
        L.ELU(0.5),
        L.Dense(10),
        L.Softmax(),
    ]
    model = keras.Sequential([keras.Input((784,)), *parts])
    model.set_weights(
        [3 * np.random.default_rng(0).normal(size=value.shape) / 9 for value in model.get_weights()]
    )
    np.testing.assert_allclose(
        classify(from_keras(model), IMAGES), answers(model), rtol=0, atol=1e-5
    )


def test_models() -> None:
    """A functional chain, a model in a model, padding that adds nothing, a flat input."""
    images = keras.Input((784,))
    maps = L.MaxPooling2D(padding="same")(
        L.Conv2D(4, 3, padding="same")(L.Reshape((28, 28, 1))(images))
    )
    inner = keras.Model(images, L.Dense(10)(L.GlobalAveragePooling2D()(maps)))
    model = keras.Sequential([inner, L.Softmax()])
    net = from_keras(model)
    assert [entry[0] for entry in net.sequence] == [
        "Conv2d",
        "MaxPool2d",
        "AdaptiveAvgPool2d",
        "Flatten",
        "Linear",
    ]
    np.testing.assert_allclose(classify(net, IMAGES), answers(model), rtol=0, atol=1e-5)


def test_ensemble(tmp_path: Path) -> None:
    nets = [shaken(net) for net in (MLP(), CNN(4))]
    mean = np.mean([classify(net, IMAGES) for net in nets], axis=0)
    write_keras(Ensemble(nets), tmp_path / "a.keras", False, {})
    np.testing.assert_allclose(load_keras(tmp_path / "a.keras")(IMAGES), mean, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(answers(to_keras(Ensemble(nets[:1]))), answers(to_keras(nets[0])))
    with pytest.raises(InputError, match="is not a chain"):
        read_keras(tmp_path / "a.keras")
    with pytest.raises(InputError, match="and, without logits, Ensemble can"):
        to_keras(Ensemble(nets), logits=True)


def test_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net, texts = shaken(CNN(4)), {"sources": "MNIST"}
    wanted = classify(net, IMAGES)
    paths = [tmp_path / name for name in ("a.keras", "a.h5", "a.weights.h5")]
    write_keras(net, paths[0], False, texts)
    with zipfile.ZipFile(paths[0]) as archive:
        assert json.loads(archive.read("mnist_lightning.json")) == texts
    model = keras.models.load_model(paths[0])
    np.testing.assert_array_equal(load_keras(paths[0])(IMAGES), answers(model))
    model.save(paths[1])
    model.save_weights(paths[2])
    capfd.readouterr()
    for path in paths:
        np.testing.assert_allclose(
            classify(read_keras(path, CNN(4)), IMAGES), wanted, rtol=0, atol=1e-5
        )
    assert capfd.readouterr() == ("", "")
    with pytest.raises(InputError, match=r"weights without layers: .* --net"):
        read_keras(paths[2])
    for path, other in ((paths[2], CNN(5)), (tmp_path / "b.keras", None)):
        with pytest.raises(InputError, match=rf"cannot read {path}: "):
            read_keras(path, other)
    for path in paths:
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(InputError, match=rf"cannot read {path}: ") as caught:
            read_keras(path, CNN(4))
        assert str(caught.value).isprintable()


def chain(*layers: Any, size: tuple[int, ...] = (28, 28)) -> Any:
    return lambda: from_keras(keras.Sequential([keras.Input(size), *layers]))


def ten() -> tuple[Any, Any]:
    return L.Flatten(), L.Dense(10)


MAP = L.Reshape((28, 28, 1))
ODD = MLP([])
ODD.layers.insert(1, nn.Softplus())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (chain(L.LSTM(10, name="a")), "layer 1, LSTM 'a': is not known: Flatten, Dense, .* are"),
        (
            chain(L.Flatten(), L.Dense(10, "softplus", name="a")),
            "layer 2, Dense 'a': the activation softplus is not known",
        ),
        (chain(L.Dense(10, name="a")), "layer 1, Dense 'a': must come after Flatten"),
        (
            chain(L.Flatten(), L.Softmax(), L.Dense(10, name="a")),
            "layer 3, Dense 'a': softmax must be the last layer",
        ),
        (chain(L.Flatten(), L.Dense(9)), r"must make logits \(2, 10\) .* got \(2, 9\)"),
        (
            chain(L.Flatten(), L.Dense(10), L.ReLU(negative_slope=0.5)),
            "a setting of a layer has no counterpart",
        ),
        (
            chain(MAP, L.Conv2D(2, 3, 2, "same"), *ten()),
            "padding='same' is not supported for strided convolutions",
        ),
        (chain(MAP, L.MaxPooling2D(3, padding="same"), *ten()), "the layers do not fit images"),
        (chain(MAP, L.Conv2D(2, 3, dilation_rate=2), *ten()), "the layers do not fit images"),
        (
            chain(MAP, L.BatchNormalization(scale=False), *ten()),
            "the weights do not fit the layers",
        ),
        (
            chain(L.Flatten(), size=(32, 32)),
            r"must take images \(28, 28\), .* got \(None, 32, 32\)",
        ),
        (
            lambda: to_keras(nn.Linear(784, 10)),
            "Linear cannot be a Keras model: MLP, CNN, FastCNN, Stack and",
        ),
        (lambda: to_keras(ODD), r"layer 2, Softplus\(.*\): has no counterpart in Keras"),
        (
            lambda: to_keras(Stack([["Conv2d", 1, 10, 3, 1, 2], *MEAN])),
            r"layer 1, Conv2d\(1, .*: has no counterpart",
        ),
        (
            lambda: to_keras(Stack([["AdaptiveAvgPool2d", 4], ["Flatten"], ["Linear", 16, 10]])),
            "do not fit in Keras",
        ),
        (
            lambda: Stack([["Flatten"], ["LSTM", 784, 10]]),
            r"a layer must be .* got \['LSTM', 784, 10\]",
        ),
        (
            lambda: Stack([["Flatten"], ["Linear", 784]]),
            r"cannot make the layer \['Linear', 784\]: .*out_features",
        ),
        (lambda: Stack([["Flatten"], ["Linear", 783, 10]]), r"do not fit images \(2, 1, 28, 28\)"),
        (
            lambda: Stack([["Flatten"]]),
            r"must make logits \(2, 10\) of images \(2, 1, 28, 28\), got \(2, 784\)",
        ),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert str(caught.value).isprintable()
