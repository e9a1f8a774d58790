"""Measure `predict --images`: how well it reads scikit-learn's digits, and what 10,000 small pictures cost.

    python benchmarks/pictures.py [--ckpt_path CHECKPOINT] [--data_dir data]

The network is the newest run's, and should be MNIST's. The 1,797 digits (8x8) are written as PNG, enlarged to 128x128
by Pillow's bicubic filter; then as negatives, and each alone in a corner of a picture of twice the side. The small
pictures are MNIST's first 10,000 training images, as they are and enlarged to 128x128. Seconds per picture are what
10,000 take longer than 1,000, so that starting up does not count; they are compared with decoding the same files with
Pillow alone, in one process and in one per core.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from mnist_lightning import MNIST
from mnist_lightning.data.base import DEFAULT_DATA_DIR


def save(images: NDArray[np.uint8], folder: Path) -> list[Path]:
    """Write images ``(N, H, W)`` as PNG files and return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:05}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    return paths


def predict(folder: Path, ckpt_path: str | None) -> tuple[list[dict[str, str]], float, list[int]]:
    """Run the command in a process of its own.

    Returns:
        The rows of predictions.csv, the seconds, and the peak memory in bytes of it and of its largest worker.
    """
    program = "import resource, sys; from mnist_lightning.cli import main; code = main(sys.argv[1:]); "
    program += "print('peak', *(resource.getrusage(who).ru_maxrss for who in (0, -1))); sys.exit(code)"
    given = ["--ckpt_path", ckpt_path] if ckpt_path else []
    command = [sys.executable, "-c", program, "predict", *given, "--images", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    written = re.search(r"Written: (\S+\.csv)", done.stdout)
    peak = re.search(r"peak (\d+) (\d+)", done.stdout)
    assert written, done.stderr
    assert peak, done.stderr
    with open(written[1], newline="") as file:
        return list(csv.DictReader(file)), seconds, [int(size) * 1024 for size in peak.groups()]


def decode(path: Path) -> None:
    """Decode a picture as Pillow does, and nothing more."""
    with Image.open(path) as picture:
        picture.load()


def accuracy(images: NDArray[np.uint8], labels: NDArray[np.int64], ckpt_path: str | None) -> str:
    """Return the share of pictures in which exactly one digit was found, and the right one."""
    with tempfile.TemporaryDirectory() as folder:
        save(images, Path(folder))
        rows, _, _ = predict(Path(folder), ckpt_path)
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["file"], []).append(row["digit"])
    right = [digits == [str(label)] for digits, label in zip(found.values(), labels, strict=True)]
    return f"{np.mean(right):.2%} ({len(right) - sum(right)} of {len(right)} wrong)"


def enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image at 128x128."""
    return np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", help="a checkpoint file or a run folder; the newest run by default")
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST")
    args = parser.parse_args()

    digits = load_digits()
    plain = np.stack([enlarge((image * (255 / 16)).round().astype(np.uint8)) for image in digits.images])
    upper_left, lower_right = ((0, 128), (0, 128)), ((128, 0), (128, 0))
    for name, images in (
        ("as they are", plain),
        ("negative", 255 - plain),
        ("in the upper left corner", np.pad(plain, ((0, 0), *upper_left))),
        ("in the lower right corner, negative", 255 - np.pad(plain, ((0, 0), *lower_right))),
    ):
        print(f"scikit-learn's digits {name}: {accuracy(images, digits.target, args.ckpt_path)}", flush=True)

    small, _ = MNIST(args.data_dir).load("train")
    cores = torch.get_num_threads()
    for side, images in ((28, small[:10_000]), (128, np.stack([enlarge(image) for image in small[:10_000]]))):
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(cores) as pool:
            paths = save(images, Path(folder) / "all")
            save(images[:1000], Path(folder) / "few")
            start = time.perf_counter()
            for path in paths:
                decode(path)
            one = (time.perf_counter() - start) / len(paths)
            list(pool.map(decode, paths[:1000], chunksize=64))  # starts the processes
            start = time.perf_counter()
            list(pool.map(decode, paths, chunksize=64))
            all_cores = (time.perf_counter() - start) / len(paths)
            _, few_seconds, few_peak = predict(Path(folder) / "few", args.ckpt_path)
            _, seconds, peak = predict(Path(folder) / "all", args.ckpt_path)
        ours = (seconds - few_seconds) / 9000
        print(f"{side}x{side}: {ours * 1e6:.0f} us per picture, the whole command {seconds:.1f} s")
        print(f"  Pillow in one process {one * 1e6:.0f} us: {ours / one:.2f} times as long")
        print(f"  Pillow in {cores} processes {all_cores * 1e6:.0f} us: {ours / all_cores:.2f} times as long")
        for name, few, many in zip(("command", "largest worker"), few_peak, peak, strict=True):
            print(
                f"  peak memory of the {name}: {few / 1e6:.0f} MB for 1,000, {many / 1e6:.0f} MB for 10,000", flush=True
            )


if __name__ == "__main__":
    main()
