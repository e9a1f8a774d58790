"""Convert networks to Keras models and back, layer for layer."""

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.errors import InputError, needs
from mnist_lightning.inference import AT_ONCE, classify, evaluating
from mnist_lightning.networks import Ensemble, Stack

# An entry of the .keras file, which is a zip archive; Keras ignores it.
METADATA = "mnist_lightning.json"
TOLERANCE = 2e-3  # of a probability; a Keras model in float16 differs by 0.001

ACTIVATIONS = {"ReLU": "relu", "GELU": "gelu", "SiLU": "silu", "Tanh": "tanh", "Sigmoid": "sigmoid"}
POOLING = {"kernel_size": "pool_size", "stride": "strides"}
NORMALIZATION = (
    "BatchNormalization",
    {"eps": "epsilon", "momentum": "momentum", "affine": "scale"},
)
# Of each layer of torch, the layer of Keras and the names of its settings, in the order of torch's
# arguments.
LAYERS: dict[str, tuple[str, dict[str, str]]] = {
    "Flatten": ("Flatten", {}),
    "Linear": ("Dense", {"out_features": "units"}),
    "Dropout": ("Dropout", {"p": "rate"}),
    "LeakyReLU": ("LeakyReLU", {"negative_slope": "negative_slope"}),
    "ELU": ("ELU", {"alpha": "alpha"}),
    "Conv2d": (
        "Conv2D",
        {"out_channels": "filters", "kernel_size": "kernel_size", "stride": "strides"},
    ),
    "MaxPool2d": ("MaxPooling2D", POOLING),
    "AvgPool2d": ("AveragePooling2D", POOLING),
    "AdaptiveAvgPool2d": ("GlobalAveragePooling2D", {}),
    "BatchNorm1d": NORMALIZATION,
    "BatchNorm2d": NORMALIZATION,
}
# Of each layer of Keras, the layer of torch and the names of Keras' settings in torch's order.
TORCH_LAYERS = {theirs: (ours, [*names.values()]) for ours, (theirs, names) in LAYERS.items()}
ACTIVATION_LAYERS = {"ReLU": "relu", "Softmax": "softmax"}  # of Keras
# Of each activation of Keras, the entries of a Stack; the softmax at the end is left out.
TORCH_ACTIVATIONS: dict[str, list[list[Any]]] = {
    **{theirs: [[ours]] for ours, theirs in ACTIVATIONS.items()},
    "leaky_relu": [["LeakyReLU", 0.2]],
    "elu": [["ELU"]],
    "linear": [],
    "softmax": [],
}


def import_keras() -> Any:
    """Return Keras, which computes with torch unless KERAS_BACKEND says otherwise.

    Raises:
        InputError: If it is not installed.
    """
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with needs("keras"):
        import keras
    return keras


def to_keras(net: nn.Module, logits: bool = False) -> Any:
    """Return a network as a float32 Keras model, layer for layer.

    It takes images in [0, 1]: ``(N, 28, 28)`` if the network begins with Flatten, otherwise ``(N,
    28, 28, 1)``.

    Args:
        net: MLP, CNN, FastCNN, Stack or another network that calls its ``layers``, an
            ``nn.Sequential``; or an Ensemble.
        logits: Whether the model gives logits ``(N, 10)`` instead of probabilities.

    Raises:
        InputError: If Keras is not installed, or has no counterpart of a layer.
    """
    parts = [part for part in net.modules() if isinstance(part, nn.Sequential) and len(part)]
    shape = (28, 28) if all(isinstance(part[0], nn.Flatten) for part in parts) else (28, 28, 1)
    net = deepcopy(net).cpu().float().eval()
    model = _to_model(net, shape, logits)
    _compare(model, net, logits)
    return model


def _to_model(net: nn.Module, shape: tuple[int, ...], logits: bool) -> Any:
    keras = import_keras()
    if isinstance(net, Ensemble) and not logits:  # it averages probabilities
        images = keras.Input(shape)
        answers = [_to_model(member, shape, False)(images) for member in net.members]
        mean = keras.layers.Average()(answers) if len(answers) > 1 else answers[0]
        return keras.Model(images, mean)
    layers = getattr(net, "layers", None)
    if not isinstance(layers, nn.Sequential):
        raise InputError(
            f"{type(net).__name__} cannot be a Keras model: "
            "MLP, CNN, FastCNN, Stack and, without logits, Ensemble can"
        )
    converted: list[Any] = []
    for number, layer in enumerate(layers, 1):
        with _naming(f"layer {number}, {layer}"):
            converted.append(_to_layer(layer, keras.layers))
    if not logits:
        converted.append(keras.layers.Activation("softmax", dtype="float32"))
    made: list[Any] = [keras.Input(shape)]
    for layer in converted:
        last = made[-1]
        has_no_activation = getattr(last, "activation", None) is keras.activations.linear
        if has_no_activation and isinstance(layer, keras.layers.Activation):
            last.activation = layer.activation  # as in Dense(128, activation="relu")
            continue
        is_flat = isinstance(last, keras.layers.GlobalAveragePooling2D)
        if not (is_flat and isinstance(layer, keras.layers.Flatten)):
            made.append(layer)
    with _naming("the layers do not fit in Keras"):
        model = keras.Sequential(made)
        weights = []
        for ours, theirs in zip(_weights_in_keras_order(layers), model.weights, strict=True):
            weights.append(ours.reshape(tuple(theirs.shape)).numpy())
        model.set_weights(weights)
    return model


def _to_layer(layer: Any, layers: Any) -> Any:
    """Return the layer of Keras for one of torch."""
    name = type(layer).__name__
    if name in ACTIVATIONS:
        return layers.Activation(ACTIVATIONS[name], dtype="float32")
    kind, names = LAYERS.get(name, ("", {}))
    options: dict[str, Any] = {"dtype": "float32"}
    for ours, theirs in names.items():
        options[theirs] = getattr(layer, ours)
    if kind == "BatchNormalization":
        options |= {"momentum": round(1 - layer.momentum, 9), "center": layer.affine}
    if kind == "Flatten" or kind.endswith("2D"):
        options["data_format"] = "channels_last"  # keras.json may have another default
    if kind in ("Dense", "Conv2D"):
        options["use_bias"] = layer.bias is not None
    paddings = {0: "valid", (0, 0): "valid", "valid": "valid", "same": "same"}
    if kind == "Conv2D" and layer.stride == (1, 1):
        paddings[tuple((side - 1) / 2 for side in layer.kernel_size)] = "same"
    if not kind or getattr(layer, "padding", 0) not in paddings:
        raise ValueError("has no counterpart in Keras")
    if kind == "Conv2D":
        options["padding"] = paddings[layer.padding]
    return getattr(layers, kind)(**options)


def from_keras(model: Any) -> Stack:
    """Return a Keras model as a network of torch that gives logits; a last softmax is left out.

    Both must answer alike to random images.

    Args:
        model: Sequential, or functional without branches, from images ``(N, 28, 28)``, ``(N, 28,
            28, 1)`` or ``(N, 784)`` to probabilities or logits ``(N, 10)``.

    Raises:
        InputError: If a layer or one of its settings has no counterpart in torch.
    """
    keras, shape = import_keras(), getattr(model, "input_shape", None)
    if shape not in ((None, 784), (None, 28, 28), (None, 28, 28, 1)):
        raise InputError(
            f"the Keras model must take images (28, 28), (28, 28, 1) or (784,), got {shape}"
        )
    sequence: list[list[Any]] = [["Flatten"]] if shape == (None, 784) else []
    activation = ""
    for number, layer in enumerate(_layers_in_order(model, keras), 1):
        with _naming(f"layer {number}, {type(layer).__name__} '{layer.name}'"):
            if activation == "softmax":
                raise ValueError("softmax must be the last layer")
            is_reshape = isinstance(layer, keras.layers.Reshape)
            if number == 1 and is_reshape and layer.target_shape == (28, 28, 1):
                sequence = []  # images have this shape already
                continue
            entries, activation = _stack_entries(layer, keras.activations)
            sequence += entries
    net = Stack(sequence)
    with torch.no_grad(), _naming("the weights do not fit the layers"):
        pairs = zip(_weights_in_keras_order(net.layers), model.get_weights(), strict=True)
        for ours, theirs in pairs:
            ours.copy_(torch.from_numpy(np.asarray(theirs, np.float32)).reshape(ours.shape))
    _compare(model, net, activation != "softmax")
    return net


def _layers_in_order(model: Any, keras: Any) -> Iterator[Any]:
    """Yield the layers of a model, and of models in it, in order."""
    if not isinstance(model, keras.Sequential) and not _is_chain(model, keras):
        raise InputError(
            f"the Keras model '{model.name}' is not a chain: "
            "each layer must take what the last gives"
        )
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_in_order(layer, keras)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _is_chain(model: Any, keras: Any) -> bool:
    if not isinstance(model, keras.Function):
        return False
    outputs = [layer.output for layer in model.layers]
    inputs = [*(layer.input for layer in model.layers[1:]), *model.outputs]
    return list(map(id, outputs)) == list(map(id, inputs))


def _stack_entries(layer: Any, activations: Any) -> tuple[list[list[Any]], str]:
    """Return the entries of a Stack for one layer of Keras, and the name of its activation."""
    kind, size = type(layer).__name__, layer.input.shape[1:]
    known = [*TORCH_LAYERS, *ACTIVATION_LAYERS, "Activation"]
    if kind not in known:
        raise ValueError(f"is not known: {', '.join(known)} are")
    activation = ACTIVATION_LAYERS.get(kind)
    if activation is None:
        activation = activations.serialize(getattr(layer, "activation", activations.linear))
    if str(activation) not in TORCH_ACTIVATIONS:
        allowed = ", ".join(TORCH_ACTIVATIONS)
        raise ValueError(f"the activation {activation!s:.50} is not known: {allowed} are")
    if kind == "Dense" and len(size) > 1:
        raise ValueError(f"must come after Flatten, its input is {size}")
    after = deepcopy(TORCH_ACTIVATIONS[activation])
    if kind not in TORCH_LAYERS:
        return after, activation
    name, settings = TORCH_LAYERS[kind]
    if kind == "GlobalAveragePooling2D":
        return [[name, 1], ["Flatten"]], activation
    values = [getattr(layer, setting) for setting in settings]
    if kind == "BatchNormalization":
        name = "BatchNorm1d" if len(size) == 1 else "BatchNorm2d"
        values[1] = round(1 - layer.momentum, 9)
    if kind in ("Dense", "Conv2D", "BatchNormalization"):
        values.insert(0, size[-1])
    if kind == "Conv2D":
        values.append(layer.padding)
    if not getattr(layer, "use_bias", True):
        values.append({"bias": False})
    plain = [list(value) if isinstance(value, tuple) else value for value in values]
    return [[name, *plain], *after], activation


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Make any error one line that begins with what it is about; those of Keras have many lines."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what}: {reason:.200}") from error


def _weights_in_keras_order(layers: nn.Sequential) -> Iterator[Tensor]:
    """Yield the weights of torch with their axes as Keras has them.

    They share the memory of the layers' own. A kernel is (out, in, height, width) in torch and
    (height, width, in, out) in Keras. The values after Flatten come by channel, row and column in
    torch, by row, column and channel in Keras.
    """
    given = torch.zeros(2, 1, 28, 28)
    places: tuple[int, ...] = (1, 28, 28)  # that were flattened
    for layer in layers:
        if isinstance(layer, nn.Flatten) and given.dim() == 4:
            places = tuple(given.shape[1:])
        for value in layer.state_dict().values():
            if isinstance(layer, nn.Linear) and value.dim() == 2:
                yield value.unflatten(1, places).permute(2, 3, 1, 0)
            elif value.dim() == 4:
                yield value.permute(2, 3, 1, 0)
            elif isinstance(layer, nn.BatchNorm1d) and value.dim():
                yield value.unflatten(0, places).permute(1, 2, 0)
            elif value.dim():  # without the count of batches
                yield value
        with torch.no_grad(), evaluating(layer):
            given = layer(given)
        places = (given.shape[1], 1, 1) if isinstance(layer, nn.Linear) else places


def _predict(model: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the answers ``(N, 10)`` of a Keras model to images ``(N, 1, 28, 28)``."""
    answers = model.predict(
        images.reshape(len(images), *model.input_shape[1:]), batch_size=AT_ONCE, verbose=0
    )
    return np.asarray(answers, np.float32)


def _compare(model: Any, net: nn.Module, logits: bool) -> None:
    """Refuse a network that does not answer as a Keras model does to random images.

    Then a setting was not understood.
    """
    coarse = np.random.default_rng(0).random((32, 1, 7, 7), np.float32)
    images = coarse.repeat(4, axis=2).repeat(4, axis=3)
    answers = torch.from_numpy(_predict(model, images))
    wanted = answers.softmax(dim=1) if logits else answers
    difference = np.abs(classify(net, images) - wanted.numpy()).max()
    if not difference < TOLERANCE:
        raise InputError(
            f"a setting of a layer has no counterpart: probabilities differ by {difference:.2g}"
        )


def _load(path: Path) -> Any:
    if not path.is_file():  # Keras says of it that it has the wrong format
        raise ValueError("no such file")
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ValueError("it is damaged, or not of Keras 3")
    with warnings.catch_warnings(action="ignore"):  # that Keras 2 wrote the file
        return import_keras().models.load_model(path, compile=False)


def read_keras(path: str | Path, like: nn.Module | None = None) -> Stack:
    """Read the network of a Keras file, as layers of torch that give logits.

    Code in the file does not run.

    Args:
        path: A ``.keras`` or ``.h5`` file with a model that ``from_keras`` takes, or a
            ``.weights.h5`` file.
        like: A network with the layers of a ``.weights.h5`` file, which has none; its weights are
            not changed.

    Raises:
        InputError: If the file is missing, damaged, or has a layer without a counterpart.
    """
    path = Path(path)
    with _naming(f"cannot read {path}"):
        if not path.name.endswith(".weights.h5"):
            return from_keras(_load(path))
        if like is None:
            raise ValueError(
                "it has weights without layers: give the network too, with --net or a --config"
            )
        model = to_keras(like)
        model.load_weights(path)
        return from_keras(model)


def load_keras(path: str | Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a function from images ``(N, 1, 28, 28)`` to the answers ``(N, 10)`` of a Keras file.

    Args:
        path: A ``.keras`` or ``.h5`` file.

    Raises:
        InputError: If the file is missing or damaged, or Keras is not installed.
    """
    with _naming(f"cannot read {path}"):
        model = _load(Path(path))
    return lambda images: _predict(model, images)


def write_keras(
    net: nn.Module, path: str | Path, logits: bool, metadata: Mapping[str, str]
) -> None:
    """Write a network as a ``.keras`` file, with metadata in its entry ``mnist_lightning.json``.

    The file is a zip archive, and Keras reads no entries but its own.

    Raises:
        InputError: If Keras is not installed, or has no counterpart of a layer.
    """
    to_keras(net, logits).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(dict(metadata), indent=2))
