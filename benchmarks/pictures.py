"""Measure `recognize_files`: how well it reads scikit-learn's digits, and the time and memory of 10,000 small pictures.

    python benchmarks/pictures.py [--ckpt_path CHECKPOINT] [--data_dir data]

The network is an MLP, should have been trained on MNIST, and comes from a checkpoint; without one its weights are
random, and only the times count. The 1,797 digits (8x8) are written as PNG, enlarged to 128x128 by Pillow's bicubic
filter; then as negatives, and each alone in a corner of a picture of twice the side. The small pictures are MNIST's
first 10,000 training images, as they are and enlarged to 128x128. The time per picture is the difference between
10,000 and 1,000 pictures, so that the start does not count, beside the time that Pillow needs to decode the same files.
"""

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from mnist_lightning.models.mlp import MLP
from mnist_lightning.pictures.read import picture_files
from mnist_lightning.pictures.recognize import Digit, recognize_files


def load(ckpt_path: str) -> MLP:
    """Return the network of a checkpoint, or an untrained one."""
    net = MLP()
    if ckpt_path:
        state = torch.load(ckpt_path, weights_only=True, map_location="cpu")["state_dict"]
        net.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
    return net


def save(images: NDArray[np.uint8], folder: Path) -> None:
    """Write images ``(N, H, W)`` as PNG files."""
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:05}.png")


def accuracy(images: NDArray[np.uint8], labels: NDArray[np.int64], net: MLP) -> str:
    """Return the share of pictures in which exactly one digit was found, and the right one."""
    with tempfile.TemporaryDirectory() as folder:
        save(images, Path(folder))
        answers: list[list[Digit] | str] = [found for _, found in recognize_files(net, picture_files([folder]))]
    right = [
        not isinstance(found, str) and [digit.digit for digit in found] == [label]
        for found, label in zip(answers, labels, strict=True)
    ]
    return f"{np.mean(right):.2%} ({len(right) - sum(right)} of {len(right)} wrong)"


def enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image at 128x128."""
    return np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC))


def measure(folder: str, ckpt_path: str) -> None:
    """Print the seconds for a folder, and the peak memory in MB of this process and of its largest worker."""
    files, net = picture_files([folder]), load(ckpt_path)
    start = time.perf_counter()
    for _ in recognize_files(net, files):
        pass
    seconds = time.perf_counter() - start
    # Linux: ru_maxrss of this process would count its parent's memory too.
    own = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert own
    print(seconds, int(own[1]) / 1e3, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)


def measured(folder: Path, ckpt_path: str) -> list[float]:
    """Run ``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), "--ckpt_path", ckpt_path]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in out.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", default="", help="a checkpoint file; an untrained network by default")
    parser.add_argument("--data_dir", default="data", help="folder with MNIST")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure, args.ckpt_path)

    digits, net = load_digits(), load(args.ckpt_path)
    plain = np.stack([enlarge((image * (255 / 16)).round().astype(np.uint8)) for image in digits.images])
    upper_left, lower_right = ((0, 128), (0, 128)), ((128, 0), (128, 0))
    for name, images in (
        ("as they are", plain),
        ("negative", 255 - plain),
        ("in the upper left corner", np.pad(plain, ((0, 0), *upper_left))),
        ("in the lower right corner, negative", 255 - np.pad(plain, ((0, 0), *lower_right))),
    ):
        print(f"scikit-learn's digits {name}: {accuracy(images, digits.target, net)}", flush=True)

    raw = Path(args.data_dir) / "MNIST/raw/train-images-idx3-ubyte"
    small = np.fromfile(raw, np.uint8, 10_000 * 784, offset=16).reshape(-1, 28, 28)
    for side, images in ((28, small), (128, np.stack([enlarge(image) for image in small]))):
        with tempfile.TemporaryDirectory() as folder:
            save(images, Path(folder) / "all")
            save(images[:1000], Path(folder) / "few")
            start = time.perf_counter()
            for path in picture_files([f"{folder}/all"]):
                with Image.open(path) as picture:
                    picture.load()
            pillow = (time.perf_counter() - start) / 10_000
            few_seconds, *few_peak = measured(Path(folder) / "few", args.ckpt_path)
            seconds, *peak = measured(Path(folder) / "all", args.ckpt_path)
        ours = (seconds - few_seconds) / 9000
        print(f"{side}x{side}: {ours * 1e6:.0f} us per picture, {seconds:.1f} s for 10,000")
        print(f"  Pillow alone, in one process: {pillow * 1e6:.0f} us; {ours / pillow:.2f} times as long")
        for name, few, many in zip(("process", "largest worker"), few_peak, peak, strict=True):
            print(f"  peak memory of the {name}: {few:.0f} MB for 1,000, {many:.0f} MB for 10,000", flush=True)
    return None


if __name__ == "__main__":
    main()
