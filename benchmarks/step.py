"""Measure where an update's time goes: in the network, in the optimizer, or in the loop around them.

    python benchmarks/step.py [--data_dir data] [--output step.json]

Three ways to make the default recipe's updates, an epoch each in turn, on as many threads as `fit` takes: a bare loop
with timers between its parts, the bare loop without them, and `fit` itself, once into a log file and once into a
terminal, with a progress bar. What `fit` takes longer than the bare loop is the loop around it: transfer, metrics,
callbacks and Lightning's bookkeeping. Validation is not counted.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import torch
from torch.nn import functional as F

from mnist_lightning import MLP, MNIST, DigitClassifier
from mnist_lightning.cli import main as mnist_lightning
from mnist_lightning.data.base import DEFAULT_DATA_DIR
from mnist_lightning.loop import useful_threads

PARTS = ("gather", "scale", "forward and loss", "zero_grad", "backward", "optimizer step")


class Terminal(io.StringIO):
    """Where a progress bar is drawn, for nobody to see."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


class BareLoop:
    """The network, its data and its optimizer, as `fit` makes them by default.

    Args:
        data_dir: Folder with MNIST.
    """

    def __init__(self, data_dir: str) -> None:
        self.data = MNIST(data_dir)
        self.data.prepare_data()
        self.data.setup("fit")
        self.net = MLP()
        self.optimizer = DigitClassifier(self.net).configure_optimizers()
        self.threads = torch.get_num_threads()
        if "OMP_NUM_THREADS" not in os.environ:  # which fit obeys
            self.threads = useful_threads(self.net, self.data.batch_size, self.threads)

    def epoch(self) -> float:
        """Train for an epoch and return the seconds per update."""
        loader = self.data.train_dataloader()
        start = time.perf_counter()
        for images, labels in loader:
            loss = F.cross_entropy(self.net(images.unsqueeze(1).float().div_(255)), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return (time.perf_counter() - start) / len(loader)

    def timed_epoch(self) -> dict[str, float]:
        """Train for an epoch and return the seconds per update of each part."""
        clock, spent = time.perf_counter, dict.fromkeys(PARTS, 0.0)
        loader = self.data.train_dataloader()
        batches = iter(loader)
        for _ in range(len(loader)):
            times = [clock()]
            images, labels = next(batches)
            times.append(clock())
            scaled = images.unsqueeze(1).float().div_(255)
            times.append(clock())
            loss = F.cross_entropy(self.net(scaled), labels)
            times.append(clock())
            self.optimizer.zero_grad()
            times.append(clock())
            loss.backward()  # type: ignore[no-untyped-call]
            times.append(clock())
            self.optimizer.step()
            times.append(clock())
            for part, start, end in zip(PARTS, times, times[1:], strict=False):
                spent[part] += end - start
        return {part: seconds / len(loader) for part, seconds in spent.items()}


def fit(data_dir: str, output: io.StringIO) -> float:
    """Run `fit` for an epoch, printing into the output, and return the seconds per update."""
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(output):
        seconds = Path(root) / "seconds.json"
        where = ["--data.data_dir", data_dir, "--trainer.default_root_dir", root, "--trainer.max_epochs", "1"]
        clock = ["--trainer.callbacks+=watch.UpdateSeconds", "--trainer.callbacks.path", str(seconds)]
        if mnist_lightning(["fit", *where, *clock]):
            sys.exit("fit failed")
        return float(json.loads(seconds.read_text())[0])


def shares(medians: dict[str, float]) -> str:
    """Return the table a person reads."""
    whole = medians["fit, in a terminal"]
    differences = {
        "sum of the parts": sum(medians[part] for part in PARTS),
        "the loop around it": medians["fit, into a log file"] - medians["bare loop"],
        "the progress bar": whole - medians["fit, into a log file"],
    }
    order = [*PARTS, "sum of the parts", "bare loop", "the loop around it"]
    order += ["fit, into a log file", "the progress bar", "fit, in a terminal"]
    values = {**medians, **differences}
    rows = [[name, f"{values[name] * 1e6:.0f}", f"{values[name] / whole:.0%}"] for name in order]
    return measure.table(["of an update", "us", "share"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST; downloaded if missing")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each")
    parser.add_argument("--output", type=Path, metavar="JSON", help="where to write all figures")
    args = parser.parse_args()

    # As in `fit`: Lightning has torch look for a driver in each of Adam's steps.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    bare = BareLoop(args.data_dir)
    all_threads = torch.get_num_threads()
    runs: list[dict[str, float]] = []
    for number in range(args.rounds):
        torch.set_num_threads(bare.threads)
        run = {**bare.timed_epoch(), "bare loop": bare.epoch()}
        torch.set_num_threads(all_threads)  # fit chooses for itself
        run["fit, into a log file"] = fit(args.data_dir, io.StringIO())
        run["fit, in a terminal"] = fit(args.data_dir, Terminal())
        runs.append(run)
        print(f"round {number + 1} of {args.rounds}: bare loop {run['bare loop'] * 1e6:.0f} us", flush=True)
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(f"\n{shares(medians)}")
    if args.output is not None:
        about: dict[str, Any] = {**measure.machine(), "rounds": args.rounds, "threads": bare.threads}
        args.output.write_text(json.dumps({**about, "medians": medians, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
