"""Measure the time and memory of finding and reading digits in picture files.

    python benchmarks/pictures.py [--data_dir data] [--old PATH]

The small pictures are MNIST's first 10,000 training images, as they are and enlarged to 128x128.
The time per picture is the difference between 10,000 and 1,000 pictures, so that the start does not
count, beside the time that Pillow needs to decode the same files. The texture is a page of 160,000
dots and one digit. With --old, another checkout of this project takes turns with this one. The
network's weights are random; handwriting.py and pages.py measure how well trained ones read.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
FEW, MANY = 1000, 10_000


def measure(folder: str) -> None:
    """Print the seconds for a folder, and the peak MB of this process and of its largest worker."""
    from mnist_lightning import MLP  # here: the checkout that PYTHONPATH names
    from mnist_lightning.pictures.read import picture_files
    from mnist_lightning.pictures.recognize import recognize_files

    files, net = picture_files([folder]).files, MLP()
    start = time.perf_counter()
    for _ in recognize_files(net, files):
        pass
    seconds = time.perf_counter() - start
    # Linux: ru_maxrss of this process would count its parent's memory too.
    own = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert own
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(seconds, int(own[1]) / 1e3, worker / 1e3)


def measured(folder: Path, checkout: Path) -> list[float]:
    """Run ``measure`` with a checkout in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, __file__, "--measure", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(number) for number in done.stdout.split()]


def save(images: Iterable[np.ndarray], folder: Path) -> Path:
    """Write images as PNG files."""
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:05}.png")
    return folder


def enlarge(image: np.ndarray) -> np.ndarray:
    """Return the image at 128x128."""
    return np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC))


def texture() -> np.ndarray:
    """Return dots, each a mark, and one digit."""
    dots = np.zeros((1600, 1600), np.uint8)
    dots[::4, ::4] = dots[800:812, 800:803] = 255
    return dots


def pillow_seconds(folder: Path) -> float:
    """Return the seconds that decoding takes, in one process."""
    start = time.perf_counter()
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default="data", help="folder with MNIST")
    parser.add_argument("--old", type=Path, metavar="PATH", help="another checkout to compare with")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure)

    checkouts = {"": ROOT} | ({f", {args.old.name}": args.old.resolve()} if args.old else {})
    raw = Path(args.data_dir) / "MNIST/raw/train-images-idx3-ubyte"
    small = np.fromfile(raw, np.uint8, MANY * 784, offset=16).reshape(-1, 28, 28)
    for side, images in ((28, small), (128, np.stack([enlarge(image) for image in small]))):
        with tempfile.TemporaryDirectory() as folder:
            many = save(images, Path(folder) / "many")
            few = save(images[:FEW], Path(folder) / "few")
            pillow = pillow_seconds(many) / MANY
            print(f"{side}x{side}: Pillow alone {pillow * 1e6:.0f} us per picture")
            for name, checkout in checkouts.items():
                few_seconds, *few_mb = measured(few, checkout)
                seconds, *many_mb = measured(many, checkout)
                each = (seconds - few_seconds) / (MANY - FEW)
                print(f"{side}x{side}{name}: {each * 1e6:.0f} us, {each / pillow:.1f} times that")
                for process, before, after in zip(
                    ("process", "largest worker"), few_mb, many_mb, strict=True
                ):
                    print(f"  {process}: {before:.0f} MB for {FEW:,}, {after:.0f} MB for {MANY:,}")
    with tempfile.TemporaryDirectory() as folder:
        page = save([texture()], Path(folder) / "texture")
        for name, checkout in checkouts.items():
            print(f"texture{name}: {measured(page, checkout)[0]:.1f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
