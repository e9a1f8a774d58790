import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mnist_lightning import MLP
from mnist_lightning.errors import InputError


def test_the_default_has_the_notebooks_layers_and_109386_parameters() -> None:
    kinds = [type(layer) for layer in MLP().layers]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert sum(parameter.numel() for parameter in MLP().parameters()) == 109_386


@pytest.mark.parametrize(("sizes", "parameters"), [((32, 16), 25_818), ((128,), 101_770), ((), 7_850)])
def test_hidden_sizes_give_the_parameter_count(sizes: tuple[int, ...], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in MLP(sizes).parameters()) == parameters


def test_weights_are_glorot_uniform_and_biases_zero() -> None:
    torch.manual_seed(0)
    for layer in MLP().layers:
        if isinstance(layer, nn.Linear):
            limit = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert layer.weight.abs().max() <= limit
            # A uniform variable in [-a, a] has the standard deviation a / sqrt(3).
            assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
            assert layer.bias.count_nonzero() == 0


def test_forward_is_what_numpy_computes() -> None:
    torch.manual_seed(0)
    net = MLP((20, 15)).eval()
    images = torch.rand(5, 1, 28, 28)
    x = images.numpy().reshape(5, 784).astype(np.float64)
    linears = [layer for layer in net.layers if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linears):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = np.maximum(x, 0) if i < len(linears) - 1 else x
    assert net(images).shape == (5, 10)
    np.testing.assert_allclose(net(images).detach().numpy(), x, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hidden_sizes": [128, 0]}, r"hidden_sizes must each be at least 1, got \[128, 0\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_values_out_of_range_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MLP(**kwargs)


@pytest.mark.parametrize(
    "module",
    [
        *("models", "evaluation.figures", "evaluation.report", "evaluation.metrics", "evaluation.page"),
        *("evaluation.description", "evaluation.picture_figures", "data.idx", "data.pictures", "data.preparation"),
    ],
)
def test_the_core_imports_no_lightning(module: str) -> None:
    code = f"import sys, mnist_lightning.{module}; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
