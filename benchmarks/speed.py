"""Train the default recipe here and on what one would use instead, in turn on one machine, and compare.

    python benchmarks/speed.py [--data_dir data] [--peers_python PYTHON] [--output speed.json] [--plot speed.png]

Round by round, each in a process and a terminal of its own, since machines change their pace. Seconds are those of
training with a validation pass each epoch; starting up and loading data are not in them, but in the column "command".
The peers are in peers/ and all train by the default recipe; configs/fast.yaml is another. Keras and JAX need
`pip install tensorflow jax optax`, best in an environment of their own, whose interpreter is PYTHON. Accuracy is a
mean over the rounds, each with another seed: of the peers on the test set, of mnist_lightning the best on validation.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
FAST = HERE.parent / "configs/fast.yaml"
OFF = "--trainer.logger false --trainer.enable_checkpointing false --trainer.enable_progress_bar false"
FIRST_SEED = 42


class Ours(NamedTuple):
    """A way to call ``fit``."""

    label: str
    flags: Sequence[str]


class Peer(NamedTuple):
    """A script in peers/."""

    label: str
    script: str
    packages: Sequence[str]
    torch: bool = False  # whether it runs where mnist_lightning does
    environment: Mapping[str, str] = {}


ROWS: dict[str, Ours | Peer] = {
    "ours": Ours("mnist_lightning", []),
    "ours-off": Ours("mnist_lightning, everything off", OFF.split()),
    "ours-fast": Ours("mnist_lightning, fast.yaml's recipe", ["--config", str(FAST)]),
    "keras-tensorflow": Peer(
        "Keras on TensorFlow", "keras_recipe.py", ("keras", "tensorflow"), environment={"KERAS_BACKEND": "tensorflow"}
    ),
    "keras-jax": Peer("Keras on JAX", "keras_recipe.py", ("keras", "jax"), environment={"KERAS_BACKEND": "jax"}),
    "jax-scan": Peer("JAX, lax.scan", "jax_scan.py", ("jax", "optax")),
    "torch-loop": Peer("plain torch loop", "torch_loop.py", ("torch",), torch=True),
    "lightning-docs": Peer(
        "Lightning as its docs teach it", "lightning_docs.py", ("lightning", "torchmetrics", "torchvision"), torch=True
    ),
}
REFERENCES = {
    "keras-tensorflow": "/ Keras TF",
    "torch-loop": "/ torch loop",
    "keras-jax": "/ Keras JAX",
    "lightning-docs": "/ docs' script",
}


def versions(python: str, peer: Peer) -> dict[str, str] | None:
    """Return the versions of what a peer imports, or None if an import fails."""
    program = (
        "import importlib, json, sys; "
        "print(json.dumps({name: importlib.import_module(name).__version__ for name in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [python, "-c", program, *peer.packages], env={**os.environ, **peer.environment}, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def fit(flags: Sequence[str], data_dir: str, epochs: int | None, seed: int) -> dict[str, Any]:
    """Run ``fit`` in a new folder, which goes again."""
    settings = ["--data.data_dir", data_dir, "--seed_everything", str(seed)]
    if epochs is not None:
        settings += ["--trainer.max_epochs", str(epochs)]
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "mnist_lightning", "fit", *flags, *settings]
        done = measure.run([*command, "--trainer.default_root_dir", root])
        record = json.loads((Path(root) / "lightning_logs/version_0/run.json").read_text())
    return {
        "fit_seconds": record["fit_seconds"],
        "accuracy": record["best_val_acc"],
        "command_seconds": round(done.seconds, 2),
        "peak_rss_mb": round(done.peak_rss_mb, 1),
    }


def run_peer(peer: Peer, python: str, data_dir: str, epochs: int | None, seed: int) -> dict[str, Any]:
    """Run a peer's script."""
    command = [python, str(HERE / "peers" / peer.script), data_dir, str(10 if epochs is None else epochs), str(seed)]
    done = measure.run(command, peer.environment)
    result = json.loads(re.findall(r'\{"who".*\}', done.output)[-1])
    return {
        **result,
        "accuracy": result["test_accuracy"],
        "command_seconds": round(done.seconds, 2),
        "peak_rss_mb": round(done.peak_rss_mb, 1),
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each row's figures over its runs, which say in ``row`` whose they are."""
    summary = {}
    for name in dict.fromkeys(run["row"] for run in runs):
        mine = {key: [run[key] for run in runs if run["row"] == name] for key in runs[0] if key != "row"}
        seconds = mine["fit_seconds"]
        summary[name] = {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
            "accuracy": statistics.mean(mine["accuracy"]),
            "peak_rss_mb": statistics.median(mine["peak_rss_mb"]),
            "command_median": statistics.median(mine["command_seconds"]),
        }
    for name, row in summary.items():
        for reference in REFERENCES:
            if reference in summary:
                row[f"to_{reference}"] = summary[name]["median"] / summary[reference]["median"]
    return summary


def comparison(summary: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table a person reads."""
    references = {name: title for name, title in REFERENCES.items() if name in summary}
    rows = [
        [
            ROWS[name].label,
            *(f"{row[key]:.1f}" for key in ("median", "min", "max")),
            *(f"{row[f'to_{reference}']:.2f}" for reference in references),
            f"{row['accuracy']:.2%} {'val' if isinstance(ROWS[name], Ours) else 'test'}",
            f"{row['peak_rss_mb']:.0f}",
            f"{row['command_median']:.1f}",
        ]
        for name, row in summary.items()
    ]
    return measure.table(
        ["fit, s", "median", "min", "max", *references.values(), "accuracy", "peak MB", "command, s"], rows
    )


def bars(summary: Mapping[str, Mapping[str, float]], caption: str) -> "Figure":
    """Draw the medians, the fastest on top, with whiskers from the fastest to the slowest round."""
    from matplotlib.figure import Figure

    from mnist_lightning.evaluation.figures import RIGHT

    names = sorted(summary, key=lambda name: -summary[name]["median"])
    medians = [summary[name]["median"] for name in names]
    below = [summary[name]["median"] - summary[name]["min"] for name in names]
    above = [summary[name]["max"] - summary[name]["median"] for name in names]
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.barh(
        [ROWS[name].label for name in names],
        medians,
        color=[RIGHT if isinstance(ROWS[name], Ours) else "0.72" for name in names],
        xerr=(below, above),
        error_kw={"ecolor": "0.25", "capsize": 3},
    )
    for place, name in enumerate(names):
        axis.annotate(
            f"{summary[name]['median']:.1f} s",
            (summary[name]["max"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    figure.suptitle("784-128-64-10 trained on MNIST: median, fastest and slowest round")
    axis.set_xlabel(f"seconds\n{caption}")
    axis.set_xlim(0, 1.12 * max(row["max"] for row in summary.values()))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # data.base knows the default too, but importing it would count in every peak: see measure.run.
    data_dir = os.environ.get("MNIST_LIGHTNING_DATA", "data")
    parser.add_argument("--data_dir", default=data_dir, help="folder with MNIST")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="for a quick try; by default the recipe's, 10")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--peers_python", default=sys.executable, metavar="PYTHON", help="has TensorFlow and JAX")
    parser.add_argument("--output", type=Path, metavar="JSON", help="where to write all figures")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the medians")
    args = parser.parse_args()
    if shutil.which(args.peers_python) is None:
        parser.error(f"--peers_python must be an interpreter, got {args.peers_python}")

    about = {**measure.machine(), "rounds": args.rounds}
    rows: dict[str, Ours | Peer] = {}
    for name in args.only:
        row = ROWS[name]
        if isinstance(row, Peer):
            found = versions(sys.executable if row.torch else args.peers_python, row)
            if found is None:
                print(f"{row.label}: skipped, needs {' and '.join(row.packages)}", flush=True)
                continue
            about["versions"] |= found
        elif str(FAST) in row.flags and not FAST.exists():
            print(f"{row.label}: skipped, there is no {FAST}", flush=True)
            continue
        rows[name] = row

    runs: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for name, row in rows.items():
            given = (args.data_dir, args.epochs, FIRST_SEED + number)
            if isinstance(row, Ours):
                result = fit(row.flags, *given)
            else:
                result = run_peer(row, sys.executable if row.torch else args.peers_python, *given)
            runs.append({"row": name, "round": number, **result})
            print(f"round {number + 1} of {args.rounds}, {row.label}: {result['fit_seconds']:.1f} s", flush=True)
        if args.output is not None:  # after each round: the others take long enough
            args.output.write_text(json.dumps({**about, "summary": summarise(runs), "runs": runs}, indent=2) + "\n")
    summary = summarise(runs)
    print(f"\n{comparison(summary)}")
    if args.plot is not None:
        from mnist_lightning.evaluation import figures

        epochs = 10 if args.epochs is None else args.epochs
        where = f"{about['cpu']}, {about['cores']} cores, torch {about['versions']['torch']}"
        caption = f"{epochs} epochs, fast.yaml its own; {args.rounds} rounds in turn; {where}"
        figures.save(bars(summary, caption), args.plot)


if __name__ == "__main__":
    main()
