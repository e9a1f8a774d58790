"""Networks in files of other formats, as ``nn.Module``s that give logits."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.errors import InputError, needs

Images = NDArray[np.float32]  # (N, 1, 28, 28) in [0, 1], white on black
Answers = NDArray[np.float32]  # (N, 10)


class OtherRuntime(nn.Module):
    """A network that another runtime computes, on the CPU. It cannot be trained.

    Args:
        answer: From images to logits or to probabilities: which of them is found out with two black
            images.

    Raises:
        InputError: If it does not answer with ten numbers for each image.
    """

    def __init__(self, answer: Callable[[Images], Answers]) -> None:
        super().__init__()
        self.answer = answer
        black = answer(np.zeros((2, 1, 28, 28), np.float32))
        if black.shape != (2, 10):
            raise InputError(f"expected answers (2, 10) for two images, got {black.shape}")
        self.gives_probabilities = bool(
            black.min() >= 0 and np.allclose(black.sum(axis=1), 1, atol=1e-3)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        answers = torch.from_numpy(self.answer(images.float().cpu().numpy())).to(images.device)
        if self.gives_probabilities:
            return answers.clamp(min=torch.finfo(torch.float32).tiny).log()
        return answers


def import_onnxruntime() -> Any:
    """Return ONNX Runtime, which sends nothing: it would report each network to its makers."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with needs("export"):
        import onnxruntime
    return onnxruntime


def read_onnx(path: Path) -> Callable[[Images], Answers]:
    """Return a function that ONNX Runtime computes: a file with one input and any batch size."""
    session = import_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    # 784, or 28 x 28 in any order; NumPy finds a size of -1.
    shape = [size if isinstance(size, int) else -1 for size in given.shape[1:]]
    return lambda images: session.run(None, {given.name: images.reshape(len(images), *shape)})[0]


def read_torch_export(path: Path) -> Callable[[Images], Answers]:
    """Return the function that a file of ``torch.export`` holds."""
    program = torch.export.load(path).module()
    return lambda images: program(torch.from_numpy(images)).detach().numpy()


def read_keras_file(path: Path) -> Callable[[Images], Answers]:
    """Return a function that Keras computes: a ``.keras`` file."""
    from mnist_lightning.export.keras import load_keras  # here, since Keras takes seconds to import

    return load_keras(path)


RUNTIMES = {".onnx": read_onnx, ".pt2": read_torch_export, ".keras": read_keras_file}


def read_other_runtime(path: Path) -> OtherRuntime:
    """Return the network of an ``.onnx``, ``.pt2`` or ``.keras`` file, computed by its runtime.

    Raises:
        InputError: If the runtime is not installed or refuses the file.
    """
    try:
        return OtherRuntime(RUNTIMES[path.suffix](path))
    except InputError:
        raise
    except Exception as error:  # each runtime has its own errors
        reason = " ".join(str(error).split())
        raise InputError(f"cannot use {path}: {reason:.200}") from error
