"""Train the convolutional network with this project, Keras and plain torch.

In turn on one machine: seconds per epoch.

    python benchmarks/cnn.py --peers_python PYTHON [--images 12000] [--epochs 2] [--rounds 3]
    [--only fit keras-jax]

The same network, batches of 128, AdamW, label smoothing and a validation pass; each in float32 and
in bfloat16 mixed precision, with and without deformed digits. Each is a process of its own. The
first epoch, with compilation, is given apart. Fewer images are scaled to an epoch of 48,000.
``fit`` runs configs/cnn.yaml without the average of the weights.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from math import nan
from pathlib import Path
from typing import NamedTuple

import measure

from mnist_lightning.report.text import counted

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}  # and how Lightning calls them


class Row(NamedTuple):
    """A row of the table: the command ``fit``, or a script in peers/ with its augmentation."""

    label: str
    augmentation: str
    script: str = ""
    option: str = "none"
    backend: str = ""  # Keras's, and a package of --peers_python


KERAS, TORCH = "cnn_keras.py", "cnn_torch.py"
BY_LAYERS, PER_BATCH = "Keras's layers", "torchvision, one draw per batch"
ROWS = {
    "fit": Row("`fit --config configs/cnn.yaml`", "affine and elastic"),
    "torch-kornia": Row("plain torch loop", "kornia", TORCH, "kornia"),
    "torch-torchvision": Row("plain torch loop", PER_BATCH, TORCH, "torchvision"),
    "keras-tensorflow": Row("Keras on TensorFlow", BY_LAYERS, KERAS, "keras", "tensorflow"),
    "keras-jax": Row("Keras on JAX", BY_LAYERS, KERAS, "keras", "jax"),
    "fit-none": Row("`fit --data.augmentation null`", "none"),
    "torch-none": Row("plain torch loop", "none", TORCH),
    "keras-tensorflow-none": Row("Keras on TensorFlow", "none", KERAS, "none", "tensorflow"),
    "keras-jax-none": Row("Keras on JAX", "none", KERAS, "none", "jax"),
}


def run(row: Row, precision: str, args: argparse.Namespace) -> list[float]:
    """Return the seconds of each epoch."""
    data_dir = str(Path(args.data_dir).resolve())
    if row.script:
        python = args.peers_python if row.backend else sys.executable
        script = str(ROOT / "benchmarks/peers" / row.script)
        command = [
            python,
            script,
            data_dir,
            str(args.epochs),
            str(args.images),
            row.option,
            precision,
        ]
    else:
        command = [
            sys.executable,
            "-m",
            "mnist_lightning",
            "fit",
            "--config",
            str(ROOT / "configs/cnn.yaml"),
        ]
        command += [
            f"--data.data_dir={data_dir}",
            "--trainer.accelerator=cpu",
            "--trainer.callbacks=null",
        ]
        command += [
            f"--trainer.precision={PRECISIONS[precision]}",
            f"--trainer.max_epochs={args.epochs}",
        ]
        # Lightning's command line reads 1 as 1.0, which means all.
        command += [f"--trainer.limit_train_batches={max(2, args.images // 128)}"]
        command += [f"--trainer.limit_val_batches={max(2, args.images // 4000)}"]
        command += [
            "--data.augmentation=null"
            if row.augmentation == "none"
            else "--data.augmentation.stroke=0"
        ]
    more = {
        "OMP_NUM_THREADS": str(args.threads),
        "PYTHONPATH": str(ROOT),
        "KERAS_BACKEND": row.backend,
    }
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # not measure.run: without a terminal, fit prints a line per epoch
        done = subprocess.run(
            command, env=os.environ | more, cwd=folder, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    if row.script:
        return json.loads(re.findall(r'\{"seconds".*\}', done.stdout)[-1])["seconds"]
    return [
        float(seconds)
        for seconds in re.findall(r"^Epoch \d+ .* ([\d.]+) s$", done.stdout, re.MULTILINE)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data_dir = os.environ.get("MNIST_LIGHTNING_DATA", "data")
    parser.add_argument("--data_dir", default=data_dir, help="folder with MNIST")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, default=3, help="the first is given apart, so at least 2"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=48_000,
        help="of an epoch, at least 8,000; and a fourth to validate",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--peers_python", metavar="PYTHON", help="has TensorFlow and JAX; else Keras is skipped"
    )
    args = parser.parse_args()
    args.images = args.images // 128 * 128
    if hasattr(os, "sched_setaffinity"):  # as many cores for each, whichever threads it starts
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

    rows = {name: ROWS[name] for name in args.only if args.peers_python or not ROWS[name].backend}
    found: dict[tuple[str, str], list[list[float]]] = {}
    for number in range(args.rounds):
        for name, precision in product(rows, PRECISIONS):
            seconds = run(rows[name], precision, args)
            found.setdefault((name, precision), []).append(seconds)
            print(
                f"round {number + 1} of {args.rounds}, {name}, {precision}: {seconds} s", flush=True
            )

    later = {
        key: statistics.median(each for run in runs for each in run[1:] or run)
        for key, runs in found.items()
    }
    cells, scale = [], 48_000 / args.images
    for name, row in rows.items():
        seconds, best = min((later[name, precision], precision) for precision in PRECISIONS)
        ours = [
            later.get(("fit-none" if row.augmentation == "none" else "fit", each), nan)
            for each in PRECISIONS
        ]
        more = statistics.median(run[0] for run in found[name, best]) - seconds
        times = [f"{scale * later[name, precision]:.1f}" for precision in PRECISIONS]
        cells.append(
            [
                row.label,
                row.augmentation,
                *times,
                f"{seconds / min(ours):.2f}",
                f"{max(more, 0):.1f}",
            ]
        )
    header = [
        "",
        "augmentation",
        "float32, s",
        "bfloat16, s",
        "faster / ours",
        "first epoch, s more",
    ]
    print("\n" + measure.table(header, cells))
    about = measure.machine()
    print(
        f"\nSeconds per epoch of 48,000 images, measured with {args.images:,}: "
        f"medians over {counted(args.rounds, 'round')},"
    )
    print(f"{args.threads} threads, {about['cpu']}, {about['versions']}")


if __name__ == "__main__":
    main()
