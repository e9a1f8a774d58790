"""Measure how `fit` grows with its data: time per update and memory for MNIST once, 4 and 16 times over.

    python benchmarks/growth.py [--data_dir data] [--output growth.json]

Each size makes the same number of updates and validates as often on as many images; time is that of training alone.
Memory is the peak of the whole process, and its peak without the pages of mapped files, which the system takes back
when others need them. "growth" is what it grows by for each byte of images added: 1 where every byte is held once.
Writes 1 GB of temporary files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import measure
import numpy as np

from mnist_lightning import MNIST
from mnist_lightning.data.base import DEFAULT_DATA_DIR, Split
from mnist_lightning.data.mnist import IDXFile

HERE = Path(__file__).parent
Files = dict[Split, tuple[IDXFile, IDXFile]]
KINDS = {"in memory": [], "memory-mapped": ["--data.memory_map", "true"]}
VALIDATE_EVERY = 1500  # updates: MNIST's epoch of 48,000 images in batches of 32
IMAGE_BYTES = 28 * 28
MEMORY = ("peak_rss_mb", "peak_anonymous_mb")


def repeated(times: int) -> tuple[IDXFile, IDXFile]:
    """Return MNIST's training files, with their content so many times over."""
    images, labels = (
        file._replace(shape=(times * file.shape[0], *file.shape[1:]), sha256=None) for file in MNIST.files["train"]
    )
    return images, labels


class MNIST1(MNIST):
    """MNIST's training images."""

    files: ClassVar[Files] = {"train": repeated(1)}


class MNIST4(MNIST):
    """Four times MNIST's training images."""

    files: ClassVar[Files] = {"train": repeated(4)}


class MNIST16(MNIST):
    """Sixteen times MNIST's training images."""

    files: ClassVar[Files] = {"train": repeated(16)}


SIZES: dict[int, type[MNIST]] = {1: MNIST1, 4: MNIST4, 16: MNIST16}


def write(data_dir: str, folder: Path, times: int) -> None:
    """Write MNIST's training files, repeated, in torchvision's layout."""
    data = MNIST(data_dir)
    data.prepare_data()
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for file, array in zip(repeated(times), data.load("train"), strict=True):
        with (raw / file.name).open("wb") as out:
            out.write(b"\0\0\x08" + bytes([len(file.shape)]) + np.array(file.shape, ">u4").tobytes())
            for _ in range(times):
                out.write(np.asarray(array, np.uint8).tobytes())


def fit(times: int, flags: Sequence[str], folder: Path, updates: int) -> dict[str, float]:
    """Train on what `write` wrote, in a process of its own."""
    with tempfile.TemporaryDirectory() as root:
        seconds, memory = Path(root) / "seconds.json", Path(root) / "memory.json"
        command = [sys.executable, "-m", "mnist_lightning", "fit"]
        command += ["--data", f"growth.{SIZES[times].__name__}", "--data.data_dir", str(folder), *flags]
        command += ["--trainer.max_steps", str(updates), "--trainer.max_epochs", "-1"]
        command += ["--trainer.val_check_interval", str(VALIDATE_EVERY), "--trainer.limit_val_batches", "12"]
        command += ["--trainer.callbacks+=watch.UpdateSeconds", "--trainer.callbacks.path", str(seconds)]
        command += ["--trainer.callbacks+=watch.PeakMemory", "--trainer.callbacks.path", str(memory)]
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [*command, "--trainer.default_root_dir", root],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        return {
            "seconds_per_update": statistics.mean(json.loads(seconds.read_text())),
            **json.loads(memory.read_text()),
        }


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the medians of each kind and size; per byte of images, what memory has grown by since the smallest."""
    summary: list[dict[str, Any]] = []
    for kind, times in dict.fromkeys((run["kind"], run["times"]) for run in runs):
        mine = [run for run in runs if (run["kind"], run["times"]) == (kind, times)]
        seconds = [run["seconds_per_update"] for run in mine]
        row = {
            "kind": kind,
            "times": times,
            "images": mine[0]["images"],
            "seconds_per_update": statistics.median(seconds),
        }
        row |= {"min": min(seconds), "max": max(seconds)}
        row |= {name: statistics.median(run[name] for run in mine) for name in MEMORY}
        smallest = next((other for other in summary if other["kind"] == kind), row)
        added = (row["images"] - smallest["images"]) * IMAGE_BYTES / 1e6
        for name in MEMORY if added else ():
            row[f"{name}_per_byte"] = (row[name] - smallest[name]) / added
        row["to_smallest"] = row["seconds_per_update"] / smallest["seconds_per_update"]
        summary.append(row)
    return summary


def comparison(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the table a person reads."""
    header = ["images", "number", "us/update", "min", "max", "to 1x", "peak MB", "growth", "anonymous MB", "growth"]
    rows = []
    for row in summary:
        times = [f"{row[name] * 1e6:.0f}" for name in ("seconds_per_update", "min", "max")]
        memory = []
        for name in MEMORY:
            memory += [f"{row[name]:.0f}", f"{row[f'{name}_per_byte']:.2f}" if f"{name}_per_byte" in row else "-"]
        rows.append([row["kind"], f"{row['images']:,}", *times, f"{row['to_smallest']:.2f}", *memory])
    return measure.table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST; downloaded if missing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4 * VALIDATE_EVERY, help="of each fit")
    parser.add_argument("--output", type=Path, metavar="JSON", help="where to write all figures")
    args = parser.parse_args()

    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for times in SIZES:
            write(args.data_dir, Path(folder) / str(times), times)
        for number in range(args.rounds):
            for kind, flags in KINDS.items():
                for times in SIZES:
                    result = fit(times, flags, Path(folder) / str(times), args.updates)
                    images = repeated(times)[0].shape[0]
                    runs.append({"kind": kind, "times": times, "images": images, "round": number, **result})
                    took = f"{result['seconds_per_update'] * 1e6:.0f} us per update"
                    print(f"round {number + 1} of {args.rounds}, {times}x {kind}: {took}", flush=True)
    summary = summarise(runs)
    print(f"\n{comparison(summary)}")
    if args.output is not None:
        about = {**measure.machine(), "rounds": args.rounds, "updates": args.updates}
        args.output.write_text(json.dumps({**about, "summary": summary, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
