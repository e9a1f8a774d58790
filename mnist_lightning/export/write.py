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
from torch import Tensor, nn

from mnist_lightning.classifier import DigitClassifier, load_weights, read_checkpoint
from mnist_lightning.errors import InputError, needs
from mnist_lightning.export.read import Foreign, import_onnxruntime, read_foreign
from mnist_lightning.models.classify import VARIES, classify, varies
from mnist_lightning.models.ensemble import TestTimeAugmentation
from mnist_lightning.report.text import text_table
from mnist_lightning.settings import from_settings, to_settings

FORMATS = {"onnx": ".onnx", "safetensors": ".safetensors", "keras": ".keras", "torch_export": ".pt2"}
LARGEST = 1e-5  # difference of two probabilities that rounding can explain
SAME = 0.95  # share of the digits that int8 must read as float32 does
IMAGES = (
    "float32 (N, 1, 28, 28) in [0, 1], a white digit on black: its longest side 20 pixels, its centre of mass central"
)


class ExportError(InputError):
    """The written file answers otherwise than the network; nothing was kept."""

    exit_code = 1


class Row(NamedTuple):
    """What was measured of a network, or of its file."""

    name: str
    size: int  # bytes
    seconds: float  # for all images
    accuracy: float | None  # in [0, 1]; None without labels
    equal: int  # images with the network's digit
    difference: float  # the largest between two probabilities
    images: int


class Answer(nn.Module):
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
) -> list[Row]:
    """Write a network to one file, load the file in its own runtime, and compare all probabilities.

    Args:
        net: From float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``.
        path: The file: ``.onnx``, ``.safetensors``, ``.keras`` or ``.pt2`` (torch.export). Its batch size is free.
        images: Images to compare, ``(N, 28, 28)`` uint8.
        labels: Their labels ``(N,)``, for the accuracy.
        logits: Whether the file gives logits instead of probabilities; a safetensors file has weights only.
        metadata: Texts to keep in the file, besides the network, its accuracy and how to prepare an image.
        calibration: Training images, uint8 ``(N, 28, 28)``: an ONNX file then computes with 8-bit integers.

    Returns:
        The measurements of the network, of the file, and of the same file before ``calibration``.

    Raises:
        InputError: If the format or the network cannot be written.
        ExportError: If the file's probabilities differ by more than 1e-5, or 8-bit integers read other digits.
    """
    path = Path(path)
    if path.suffix not in FORMATS.values() or (calibration is not None and path.suffix != ".onnx"):
        allowed = ".onnx" if calibration is not None else ", ".join(FORMATS.values())
        raise InputError(f"the file's name must end in {allowed}, got {path}")
    if any(isinstance(part, TestTimeAugmentation) for part in net.modules()):
        raise InputError("random views (tta) cannot be exported: export the network without them")
    net = deepcopy(net).to("cpu", torch.float32, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    if any(isinstance(part, Foreign) for part in net.modules()):
        raise InputError(
            "a network that ONNX Runtime computes cannot be exported again: export the run that it came from"
        )
    if varies(net):
        raise InputError(VARIES)
    described = {"network": json.dumps(to_settings(net) or type(net).__name__), "images": IMAGES}
    described["output"] = "logits" if logits else "probabilities"
    wanted, seconds = _timed(net, images)
    size = sum(value.nbytes for value in net.state_dict().values())
    rows = [_row("network in torch", size, seconds, wanted, wanted, labels)]
    texts = {
        name: str(text) for name, text in (described | {"accuracy": rows[0].accuracy} | dict(metadata or {})).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".export") as scratch:  # beside the file, so that it can be moved
        file = Path(scratch) / path.name
        try:
            WRITERS[path.suffix](net, file, logits, texts)
            files = {path.name: file}
            if calibration is not None:
                files = {f"{path.stem} in float32": file, path.name: _quantized(file, calibration, texts)}
        except (InputError, OSError):
            raise
        except Exception as error:  # each format has its own errors
            reason = " ".join(str(error).split())
            raise InputError(f"cannot write {type(net).__name__} as {path.suffix}: {reason:.200}") from error
        for name, each in files.items():
            answers, seconds = _timed(read_back(each), images)
            rows.append(_row(name, each.stat().st_size, seconds, answers, wanted, labels))
        last = rows[-1]
        is_same = last.difference <= LARGEST if calibration is None else last.equal >= SAME * len(images)
        if not is_same:
            raise ExportError(
                f"{path} was not written: of {last.images:,} images {last.equal:,} get the network's digit, "
                f"and the largest difference between probabilities is {last.difference:.1e}"
            )
        files[path.name].replace(path)
    return rows


def export_table(rows: list[Row]) -> str:
    """Return the measurements as a text table."""
    cells = [["", "size", "1,000 images", "accuracy", "equal digits", "largest difference"]]
    for row in rows:
        size, each = f"{row.size / 1e6:.2f} MB", f"{1e6 * row.seconds / row.images:.1f} ms"
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.2%}"
        cells.append([row.name, size, each, accuracy, f"{row.equal:,} of {row.images:,}", f"{row.difference:.1e}"])
    return text_table(cells)


def _timed(net: nn.Module, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    start = time.perf_counter()
    return classify(net, images), time.perf_counter() - start


def _row(name: str, size: int, seconds: float, answers: Any, wanted: Any, labels: Any) -> Row:
    digits = answers.argmax(axis=1)
    accuracy = None if labels is None else float((digits == labels).mean())
    equal, difference = int((digits == wanted.argmax(axis=1)).sum()), float(np.abs(answers - wanted).max(initial=0))
    return Row(name, size, seconds, accuracy, equal, difference, len(answers))


def read_back(file: Path) -> nn.Module:
    """Return the network of a file that ``export`` wrote."""
    if file.suffix != ".safetensors":
        return read_foreign(file)
    checkpoint = read_checkpoint(file)
    model = DigitClassifier(from_settings(checkpoint["hyper_parameters"]["net"], trusted=True))
    load_weights(model, checkpoint, file)
    return model.net


def _write_safetensors(net: nn.Module, file: Path, logits: bool, texts: dict[str, str]) -> None:
    with needs("export"):
        from safetensors.torch import save_file
    if not isinstance(json.loads(texts["network"]), dict):
        raise InputError(f"{type(net).__name__} cannot be described: keep its arguments in attributes of the same name")
    save_file(net.state_dict(), file, {name: text for name, text in texts.items() if name != "output"})


def _write_torch_export(net: nn.Module, file: Path, logits: bool, texts: dict[str, str]) -> None:
    batch = {"images": {0: torch.export.Dim("N")}}
    program = torch.export.export(Answer(net, logits).eval(), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=batch)
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(texts)})


def _write_onnx(net: nn.Module, file: Path, logits: bool, texts: dict[str, str]) -> None:
    with needs("export"):
        import onnx
        import onnxscript  # noqa: F401  torch needs it
    program = torch.onnx.export(
        Answer(net, logits).eval(),
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
    from mnist_lightning.export.keras import write_keras  # here, since Keras takes seconds to import

    write_keras(net, file, logits, texts | {"images": IMAGES.replace("(N, 1, 28, 28)", "(N, 28, 28)")})


WRITERS: dict[str, Callable[[nn.Module, Path, bool, dict[str, str]], None]] = {
    ".onnx": _write_onnx,
    ".safetensors": _write_safetensors,
    ".keras": _write_keras,
    ".pt2": _write_torch_export,
}


def _quantized(file: Path, calibration: NDArray[np.uint8], texts: dict[str, str]) -> Path:
    """Write an ONNX file's network in 8-bit integers beside it, by static quantisation, and return the file."""
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(np.array_split(calibration, len(calibration) // 100 or 1))

        def get_next(self) -> Any:
            return next(({"images": batch[:, None].astype(np.float32) / 255} for batch in self.batches), None)

    folded, written = file.with_suffix(".folded"), file.with_suffix(".int8")
    quant_pre_process(file, folded)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(folded, written, Batches(), op_types_to_quantize=["Conv", "Gemm", "MatMul"], **kinds)
    model = onnx.load(written)
    onnx.helper.set_model_props(model, texts | {"numbers": "8-bit integers inside, float32 outside"})
    onnx.save(model, written)
    return written.rename(file.with_suffix(".int8.onnx"))
