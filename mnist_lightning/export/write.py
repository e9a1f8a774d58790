"""Write a network to a file of another format, and check what the file answers."""

import json
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from mnist_lightning.checkpoints import read_network, to_settings
from mnist_lightning.errors import InputError, needs
from mnist_lightning.export.read import OtherRuntime, import_onnxruntime, read_other_runtime
from mnist_lightning.inference import VARIES, classify, varies
from mnist_lightning.networks import TestTimeAugmentation
from mnist_lightning.report.blocks import Table

FORMATS = {
    "onnx": ".onnx",
    "safetensors": ".safetensors",
    "keras": ".keras",
    "torch_export": ".pt2",
}
LARGEST = 1e-5  # difference of two probabilities that rounding can explain
SAME = 0.95  # share of the digits that int8 must read as float32 does
IMAGES = (
    "float32 (N, 1, 28, 28) in [0, 1], a white digit on black: "
    "its longest side 20 pixels, its centre of mass central"
)


class ExportError(InputError):
    """The written file answers otherwise than the network; nothing was kept."""

    exit_code = 1


class Measured(NamedTuple):
    """What was measured of a network, or of its file."""

    name: str
    size: int  # bytes
    seconds: float  # for all images
    accuracy: float | None  # in [0, 1]; None without labels
    equal: int  # images with the network's digit
    difference: float  # the largest between two probabilities
    images: int


class ForExport(nn.Module):
    """A network as it is written: it gives probabilities or logits ``(N, 10)``.

    Args:
        net: From images to logits.
        logits: Whether it gives logits.
    """

    def __init__(self, net: nn.Module, logits: bool) -> None:
        super().__init__()
        self.net, self.logits = net, logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the answers ``(B, 10)`` to float images ``(B, 1, 28, 28)`` in [0, 1]."""
        answers: Tensor = self.net(images)
        return answers if self.logits else answers.softmax(dim=1)


def export(
    net: nn.Module,
    path: str | Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None = None,
    *,
    logits: bool = False,
    metadata: Mapping[str, Any] | None = None,
    calibration: NDArray[np.uint8] | None = None,
) -> list[Measured]:
    """Write a network to one file, load the file in its own runtime, and compare all probabilities.

    Args:
        net: From float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``.
        path: The file: ``.onnx``, ``.safetensors``, ``.keras`` or ``.pt2`` (torch.export). Its
            batch size is free.
        images: Images to compare, ``(N, 28, 28)`` uint8.
        labels: Their labels ``(N,)``, for the accuracy.
        logits: Whether the file gives logits instead of probabilities; a safetensors file has
            weights only.
        metadata: Texts to keep in the file, besides the network, its accuracy and how to prepare an
            image.
        calibration: Training images, uint8 ``(N, 28, 28)``: an ONNX file then computes with 8-bit
            integers.

    Returns:
        The measurements of the network, of the file, and of the same file before ``calibration``.

    Raises:
        InputError: If the format or the network cannot be written.
        ExportError: If the file's probabilities differ by more than 1e-5, or 8-bit integers read
            other digits.
    """
    path = Path(path)
    _check(net, path, calibration is not None)
    net = deepcopy(net).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    if varies(net):
        raise InputError(VARIES)
    wanted, seconds = _timed(net, images)
    size = sum(value.nbytes for value in net.state_dict().values())
    rows = [_measured("network in torch", size, seconds, wanted, wanted, labels)]
    texts = {
        "network": json.dumps(to_settings(net) or type(net).__name__),
        "images": IMAGES,
        "output": "logits" if logits else "probabilities",
        "accuracy": str(rows[0].accuracy),
    }
    for name, text in (metadata or {}).items():
        texts[name] = str(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the file, so that it can be moved.
    with TemporaryDirectory(dir=path.parent, prefix=".export") as scratch:
        file = Path(scratch) / path.name
        try:
            WRITERS[path.suffix](net, file, logits, texts)
            files = {path.name: file}
            if calibration is not None:
                quantized = _quantized(file, calibration, texts)
                files = {f"{path.stem} in float32": file, path.name: quantized}
        except (InputError, OSError):
            raise
        except Exception as error:  # each format has its own errors
            reason = " ".join(str(error).split())
            raise InputError(
                f"cannot write {type(net).__name__} as {path.suffix}: {reason:.200}"
            ) from error
        for name, each in files.items():
            answers, seconds = _timed(read_back(each), images)
            rows.append(_measured(name, each.stat().st_size, seconds, answers, wanted, labels))
        _refuse_other_answers(path, rows[-1], is_rounded=calibration is not None)
        files[path.name].replace(path)
    return rows


def _check(net: nn.Module, path: Path, quantizes: bool) -> None:
    """Refuse a name or a network that cannot be written."""
    allowed = [".onnx"] if quantizes else [*FORMATS.values()]
    if path.suffix not in allowed:
        raise InputError(f"the file's name must end in {', '.join(allowed)}, got {path}")
    for part in net.modules():
        if isinstance(part, TestTimeAugmentation):
            raise InputError(
                "random views (tta) cannot be exported: export the network without them"
            )
        if isinstance(part, OtherRuntime):
            raise InputError(
                "a network that ONNX Runtime computes cannot be exported again: "
                "export the run that it came from"
            )


def _refuse_other_answers(path: Path, found: Measured, is_rounded: bool) -> None:
    """Refuse a file that answers otherwise than the network; 8-bit integers may do so a little."""
    is_same = found.difference <= LARGEST
    if is_rounded:
        is_same = found.equal >= SAME * found.images
    if not is_same:
        raise ExportError(
            f"{path} was not written: of {found.images:,} images {found.equal:,} get the "
            "network's digit, and the largest difference between probabilities is "
            f"{found.difference:.1e}"
        )


def export_table(rows: list[Measured]) -> str:
    """Return the measurements as a text table."""
    columns = ["", "size", "1,000 images", "accuracy", "equal digits", "largest difference"]
    cells = []
    for row in rows:
        size = f"{row.size / 1e6:.2f} MB"
        seconds = f"{1e6 * row.seconds / row.images:.1f} ms"
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.2%}"
        equal = f"{row.equal:,} of {row.images:,}"
        cells.append([row.name, size, seconds, accuracy, equal, f"{row.difference:.1e}"])
    return str(Table(columns, cells))


def _timed(net: nn.Module, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    start = time.perf_counter()
    return classify(net, images), time.perf_counter() - start


def _measured(
    name: str, size: int, seconds: float, answers: Any, wanted: Any, labels: Any
) -> Measured:
    digits = answers.argmax(axis=1)
    accuracy = None if labels is None else float((digits == labels).mean())
    equal = int((digits == wanted.argmax(axis=1)).sum())
    difference = float(np.abs(answers - wanted).max(initial=0))
    return Measured(name, size, seconds, accuracy, equal, difference, len(answers))


def read_back(file: Path) -> nn.Module:
    """Return the network of a file that ``export`` wrote."""
    if file.suffix != ".safetensors":
        return read_other_runtime(file)
    return read_network(file, trusted=True)


def _write_safetensors(net: nn.Module, file: Path, logits: bool, texts: dict[str, str]) -> None:
    if not isinstance(json.loads(texts["network"]), dict):
        raise InputError(
            f"{type(net).__name__} cannot be described: "
            "keep its arguments in attributes of the same name"
        )
    kept = {name: text for name, text in texts.items() if name != "output"}
    file.write_bytes(save(net.state_dict(), kept))


def _write_torch_export(net: nn.Module, file: Path, logits: bool, texts: dict[str, str]) -> None:
    batch = {"images": {0: torch.export.Dim("N")}}
    program = torch.export.export(
        ForExport(net, logits).eval(), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=batch
    )
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(texts)})


def _write_onnx(net: nn.Module, file: Path, logits: bool, texts: dict[str, str]) -> None:
    with needs("export"):
        import onnx
        import onnxscript  # noqa: F401  torch needs it
    program = torch.onnx.export(
        ForExport(net, logits).eval(),
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=[texts["output"]],
        dynamic_shapes={"images": {0: torch.export.Dim("N")}},
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, file)


def _write_keras(net: nn.Module, file: Path, logits: bool, texts: dict[str, str]) -> None:
    from mnist_lightning.export.keras import write_keras  # here: Keras takes seconds to import

    images = IMAGES.replace("(N, 1, 28, 28)", "(N, 28, 28)")
    write_keras(net, file, logits, texts | {"images": images})


WRITERS: dict[str, Callable[[nn.Module, Path, bool, dict[str, str]], None]] = {
    ".onnx": _write_onnx,
    ".safetensors": _write_safetensors,
    ".keras": _write_keras,
    ".pt2": _write_torch_export,
}


def _quantized(file: Path, calibration: NDArray[np.uint8], texts: dict[str, str]) -> Path:
    """Write an ONNX file's network in 8-bit integers beside it, and return that file.

    The quantisation is static: calibration images show which numbers occur in the network.
    """
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(np.array_split(calibration, len(calibration) // 100 or 1))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch[:, None].astype(np.float32) / 255}

    folded, written = file.with_suffix(".folded"), file.with_suffix(".int8")
    quant_pre_process(file, folded)
    kinds = {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    }
    quantize_static(
        folded, written, Batches(), op_types_to_quantize=["Conv", "Gemm", "MatMul"], **kinds
    )
    model = onnx.load(written)
    onnx.helper.set_model_props(
        model, texts | {"numbers": "8-bit integers inside, float32 outside"}
    )
    onnx.save(model, written)
    return written.rename(file.with_suffix(".int8.onnx"))
