"""Measure how many images per second one core deforms.

This package, kornia and torchvision at the same strengths.

    python benchmarks/augmentation.py [--rounds 5]          # needs `pip install kornia`; without
    it, it is skipped

Float images in memory, random numbers of their own for each image. torchvision draws once per call,
so it is called for each image.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import measure
import torch
from peers.cnn_torch import kornia_augmentation, torchvision_augmentation
from torch import Tensor

from mnist_lightning.data.augmentation import Augmentation
from mnist_lightning.report.text import counted

Augment = Callable[[Tensor], Tensor]
OURS = "`Augmentation`, 2,048 images at once"
KINDS = {
    "affine": 0.0,
    "affine and elastic": 0.7,
}  # the standard deviation of the elastic displacement in pixels


def ways(elastic: float) -> dict[str, tuple[Augment, int]]:
    """Return what is compared: a function of a batch, and the size of the batch."""
    ours, torchvision = Augmentation(elastic=elastic), torchvision_augmentation(elastic)
    found = {OURS: (ours, 2048), "`Augmentation`, 128 at once": (ours, 128)}
    if find_spec("kornia"):
        kornia = kornia_augmentation(elastic)
        found |= {"kornia, 2,048 at once": (kornia, 2048), "kornia, 128 at once": (kornia, 128)}
    return found | {"torchvision v2, one at a time": (torchvision, 1)}


def rate(augment: Augment, images: Tensor, seconds: float) -> float:
    """Return images per second, measured for at least some seconds."""
    augment(images)  # warm up
    start, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        augment(images)
        calls += 1
    return calls * len(images) / passed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.rand(2048, 1, 28, 28)
    compared = {kind: ways(elastic) for kind, elastic in KINDS.items()}
    rates: dict[tuple[str, str], list[float]] = {}
    with torch.inference_mode():
        for number in range(args.rounds):
            for kind, found in compared.items():
                for name, (augment, size) in found.items():
                    rates.setdefault((name, kind), []).append(
                        rate(augment, images[:size], args.seconds)
                    )
            print(f"round {number + 1} of {args.rounds}", flush=True)
    medians = {key: statistics.median(each) for key, each in rates.items()}
    rows = []
    for name in compared["affine"]:
        cells = [(medians[name, kind], medians[OURS, kind]) for kind in KINDS]
        rows.append(
            [
                name,
                *(text for mine, ours in cells for text in (f"{mine:,.0f}", f"{mine / ours:.3f}")),
            ]
        )
    header = ["images per second and core", *(text for kind in KINDS for text in (kind, "/ ours"))]
    about = measure.machine()
    print(
        f"\n{measure.table(header, rows)}\n\n{about['cpu']}, {about['versions']}, "
        f"{counted(args.rounds, 'round')} in turn, medians"
    )


if __name__ == "__main__":
    main()
