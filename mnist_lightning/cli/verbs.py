"""The verbs: each makes objects from its words, calls the library, and prints."""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning import recipe
from mnist_lightning.checkpoints import PRETRAINED
from mnist_lightning.cli.flags import expand, parse
from mnist_lightning.cli.signals import listen
from mnist_lightning.data.augmentation import Augmentation, augmented
from mnist_lightning.data.base import DEFAULT_DATA_DIR
from mnist_lightning.errors import PROGRAM, InputError
from mnist_lightning.files import check_writable, read_config, read_json
from mnist_lightning.report import results, text
from mnist_lightning.training.loggers import show_pictures
from mnist_lightning.training.quiet import quiet
from mnist_lightning.training.resume import find_last
from mnist_lightning.training.run import Run, find_checkpoint, load_run
from mnist_lightning.training.runs import LOG_DIR, config_of, kept_checkpoint, newest_first


class CommandLine(Callback):
    """Let signals stop the process, also where Lightning has replaced our handlers.

    Lightning 2.6 only notes SIGTERM and exits with 0, and on a SLURM cluster it requeues the job
    itself.
    """

    def on_train_start(self, *args: Any) -> None:
        """Listen."""
        listen()

    def on_validation_start(self, *args: Any) -> None:
        """Listen."""
        listen()

    def on_test_start(self, *args: Any) -> None:
        """Listen."""
        listen()

    def on_predict_start(self, *args: Any) -> None:
        """Listen."""
        listen()


MOST_SERVED = 3  # networks side by side


def load(verb: str, words: Sequence[str]) -> tuple[Run, dict[str, Any], argparse.Namespace]:
    """Return the run that a verb is for, the Trainer's arguments, and the verb's own flags."""
    own, rest = parse(verb, words)
    has_trainer = verb != "export"
    if any(re.fullmatch(r"--([\w.]+\.)?help", word) for word in rest):
        recipe.read_data(verb, rest, has_trainer=has_trainer)  # prints the help, and exits
    has_pictures = verb == "predict" and own.images is not None
    files = checkpoints(own.ckpt_path, own.log_dir, or_pretrained=has_pictures)
    data, trainer = recipe.read_data(verb, rest, config_of(files[0]), has_trainer)
    tta = own.tta if has_trainer else 0
    run = load_run(files if len(files) > 1 else files[0], data=data, log_dir=own.log_dir, tta=tta)
    trainer["callbacks"] = [CommandLine(), *(trainer.get("callbacks") or [])]
    return run, trainer, own


def checkpoints(
    paths: Sequence[str] | None, log_dir: str, or_pretrained: bool = False
) -> list[Path]:
    """Return the checkpoint files for paths, or of the newest run, and print them.

    Args:
        paths: Those that the user gave.
        log_dir: The folder of runs.
        or_pretrained: Whether the network of this package does where there is no run.
    """
    has_run = any(kept_checkpoint(folder) for folder, _ in newest_first(log_dir))
    if or_pretrained and not paths and not has_run:
        say(f"Checkpoint: pretrained, which comes with this package; no run in {log_dir} yet")
        return [PRETRAINED]
    files = [find_checkpoint(path, "best", log_dir) for path in paths or (None,)]
    newest = "" if paths else f" (the {files[0].stem} of the newest run)"
    names = ["pretrained" if file == PRETRAINED else str(file) for file in files]
    say(f"Checkpoint: {', '.join(names)}{newest}")
    return files


def _seeds(words: Sequence[str]) -> list[int]:
    """Return the seeds that words such as 42-46 or 7 mean."""
    found: list[int] = []
    try:
        for word in words:
            first, _, last = word.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        found = []
    if not found:
        raise InputError(f"--seeds takes numbers and ranges such as 42-46, got {' '.join(words)}")
    return found


def _study(own: argparse.Namespace, words: Sequence[str]) -> recipe.Recipe:
    """Return the recipe that the runs of a study share."""
    if own.ckpt_path or own.seeds:
        given = "--ckpt_path" if own.ckpt_path else "--seeds"
        raise InputError(
            "a study trains new runs and saves them: it takes no --ckpt_path, no --seeds, no "
            f"fast_dev_run, and no 'best' or 'last' for --init_from and --teacher; got {given}"
        )
    return recipe.read(words)


def _with_signals(described: recipe.Recipe) -> dict[str, Any]:
    """Return the arguments of ``fit`` that the runs of a study share; signals stop them."""
    shared = described.for_study()
    return shared | {"callbacks": [CommandLine(), *shared["callbacks"]]}


def _fit_seeds(own: argparse.Namespace, words: Sequence[str]) -> None:
    from mnist_lightning.studies.compare import compare, compare_table
    from mnist_lightning.studies.train import train_seeds  # here, since no other training needs it

    seeds, own.seeds = _seeds(own.seeds), None
    recipe.refuse(
        words, ["seed_everything"], "each run has one of the given seeds, so leave it out"
    )
    shared = _study(own, words)
    configs = []
    for word, following in pairwise([*words, ""]):
        flag, equals, file = word.partition("=")
        if flag == "--config":
            configs.append(file if equals else following)
    name = own.name or (Path(configs[-1]).stem if configs else "seed")
    given = _with_signals(shared) | {"name": name, "log_dir": own.log_dir}
    runs = train_seeds(seeds=seeds, **given)
    say(f"\n{compare_table(compare([run.folder for run in runs]))}\n\nNext: {PROGRAM} compare")


def _fit(words: Sequence[str]) -> None:
    own, rest = parse("fit", words)
    if own.seeds:
        return _fit_seeds(own, rest)
    last = find_last(own.ckpt_path, own.log_dir) if own.ckpt_path else None
    before = read_json(last.parent.parent / "run.json") if last else {}
    described = recipe.read(rest, last)
    place: dict[str, Any] = {"name": own.name or described.arguments["name"]}
    if not described.arguments.get("default_root_dir"):
        place["log_dir"] = own.log_dir
    run = described.fit([CommandLine()], **place)
    record = run.record
    if not record:
        return say("fast_dev_run: nothing was written")
    say(f"\n{results.fit_facts(record, run.folder)}\n")
    if before.get("finished") and before["global_step"] == record["global_step"]:
        say(f"Nothing was left to train; to train on, raise --epochs above {record['epochs']}.")
    if run.checkpoint and run.checkpoint.stem == record["weights"]:
        where = "" if run.folder.parent == Path(LOG_DIR) else f" --ckpt_path {run.folder}"
        say(f"Next: {PROGRAM} {'test' if run.data.has_test_labels else 'predict'}{where}")


def _validate(words: Sequence[str]) -> None:
    run, trainer, _ = load("validate", words)
    metrics = run.validate(**trainer)
    say(f"\nvalidation accuracy {metrics['accuracy']:.2%}   loss {metrics['loss']:.4f}")
    if warning := text.seen_text(run.data.seen(run.trained_on), len(run.data.val_set or ())):
        say(warning)


def _test_each(own: argparse.Namespace, words: Sequence[str]) -> None:
    from mnist_lightning.studies.compare import compare, compare_table

    if not own.ckpt_path or own.output:
        raise InputError("--each needs the runs, --ckpt_path RUN RUN, and takes no --output")
    others = [word for word in words if word != "--each"]
    files = [find_checkpoint(path, "best", own.log_dir) for path in own.ckpt_path]
    for path in own.ckpt_path:
        _test([*others, "--ckpt_path", path])  # the last one given counts
        say("")
    say(compare_table(compare([file.parent.parent for file in files if config_of(file)])))


def _test(words: Sequence[str]) -> None:
    own, _ = parse("test", words)
    if own.each:
        return _test_each(own, words)
    run, trainer, own = load("test", words)
    metrics = run.test(robustness=own.robustness, output=own.output, **trainer)
    if not metrics:
        return say("fast_dev_run: nothing was written")
    say(f"\n{results.metrics_text(metrics)}\n\nReport: {run.written[0] / 'index.html'}")


def _predict(words: Sequence[str]) -> int:
    if words and words[0][:1] != "-":
        words = ["--images", *words]
    run, trainer, own = load("predict", words)
    if own.images is None:
        if own.single:
            raise InputError(
                "--single is for pictures; name them first: predict photo.jpg --single"
            )
        run.predict(output=own.output, **trainer)
        written = ", ".join(map(str, run.written))
        say(f"Written: {written}" if written else "fast_dev_run: nothing was written")
        return 0
    from mnist_lightning.pictures.read import picture_files  # here, since OpenCV imports slowly
    from mnist_lightning.pictures.write import FOLDER, show, write_digits

    run.model.setup("predict")
    net = run.model.net.to(_device(trainer.get("accelerator", "auto")))
    folder = check_writable(Path(own.output or run.folder))
    files, left_out = picture_files(own.images)
    if not any(map(os.path.exists, files)):
        raise InputError(f"no such file: {files[0]}")
    done = write_digits(folder, files, net, single=own.single)
    shown = sorted((folder / FOLDER).glob("*.jpg"))[:10]
    if shown and own.output is None:
        pngs = {file.stem: file.read_bytes() for file in shown}
        show_pictures(run.folder, run.record.get("global_step", 0), pngs)
    doubtful = f" ({done.doubtful:,} doubtful)" if done.doubtful else ""
    say(
        f"\nDigits: {done.digits:,}{doubtful}   pictures: {done.pictures:,}   "
        f"without a digit: {done.failures:,}"
    )
    for line in left_out:
        show(line)
    say(f"Written: {', '.join(map(str, done.written))}")
    return 1 if done.failures else 0


def _device(name: str) -> str:
    """Return torch's device for ``--device``: a GPU if there is one, unless it is ``cpu``."""
    if name not in ("auto", "cpu", "gpu", "cuda"):
        raise InputError(f"--device must be auto, cpu or gpu, got {name}")
    has_gpu = torch.cuda.is_available()
    if name in ("gpu", "cuda") and not has_gpu:
        raise InputError(f"--device {name}: torch finds no GPU; use cpu or auto")
    return "cuda" if has_gpu and name != "cpu" else "cpu"


def _describe(words: Sequence[str]) -> None:
    own, rest = parse("describe", words)
    data, _ = recipe.read_data("describe", rest)
    data.prepare_data()
    data.setup()
    splits = {"training": data.train_set, "validation": data.val_set, "test": data.test_set}
    from mnist_lightning.report.describe import write_description  # here, since it imports slowly

    folder = Path(own.output or f"{LOG_DIR}/describe_{type(data).__name__}")
    shown = {name: split.arrays() for name, split in splits.items() if split}
    augment = None
    if own.augmentation:
        augment = partial(augmented, data.augmentation or Augmentation())
    described = write_description(folder, shown, augment, data.class_names)
    table = results.description_table(described, data.class_names)
    say(f"{type(data).__name__}\n\n{table}\n\nWritten: {folder}/")


def _doctor(words: Sequence[str]) -> int:
    own, rest = parse("doctor", words)
    from mnist_lightning.cli.doctor import doctor  # here, since no other verb needs it

    data, _ = recipe.read_data("doctor", rest)
    return doctor(data, Path(own.log_dir), own.device, own.devices, own.num_nodes)


FOLDS = ("data.folds", "data.fold", "data.stratified", "data.val_fraction")


def _crossval(words: Sequence[str]) -> None:
    own, rest = parse("crossval", words)
    from mnist_lightning.studies import crossval
    from mnist_lightning.studies import crossval_report as report  # here: matplotlib imports slowly
    from mnist_lightning.studies.train import study_folder

    why = "each fold is validated in turn, so leave it out, and use --folds and --stratified"
    recipe.refuse(rest, FOLDS, why)
    if own.train_sizes:
        why = "a learning curve has the numbers of --train_sizes, so leave it out"
        recipe.refuse(rest, ["data.train_size"], why)
    shared = _study(own, rest)
    name = own.name or ("learning_curve" if own.train_sizes else "crossval")
    given = _with_signals(shared) | {
        "folds": own.folds,
        "repeats": own.repeats,
        "stratified": own.stratified,
        "seed": shared.seed,
        "name": name,
        "log_dir": own.log_dir,
    }
    folder = study_folder(own.log_dir, name)
    if own.train_sizes:
        curve = crossval.learning_curve(own.train_sizes, **given)
        report.write_curve(folder, curve)
        table = str(report.curve_table(curve))
    else:
        result = crossval.cross_validate(**given)
        report.write_crossval(result)
        table = report.crossval_table(result)
    say(f"\n{table}\n\nPage: {folder / 'index.html'}")


def _tune(words: Sequence[str]) -> None:
    own, rest = parse("tune", words)
    if own.space is None:
        raise InputError(
            "tune needs the settings to try: --space FILE, such as configs/tune/mlp.yaml"
        )
    from mnist_lightning.studies.train import study_folder
    from mnist_lightning.studies.tune import tune  # here, since Optuna is an extra
    from mnist_lightning.studies.tune_report import study_table

    space = read_config(Path(own.space))
    names = [flag.removeprefix("--") for flag in expand("fit", [f"--{name}" for name in space])]
    recipe.refuse(rest, names, "the space tries it, so leave it out of one of them")
    shared = _study(own, rest)

    def make(**settings: Any) -> Mapping[str, Any]:
        flags = []
        for flag, value in settings.items():
            flags.append(f"--{flag}={value if isinstance(value, str) else json.dumps(value)}")
        trial = recipe.read([*rest, *expand("fit", flags)])
        return trial.for_study() | {"seed": trial.seed}

    study = tune(
        space,
        make,
        own.trials,
        name=own.name,
        log_dir=own.log_dir,
        config=shared.config,
        storage=own.storage,
        pruner=own.pruner,
        workers=own.workers,
        worker=[sys.executable, "-m", "mnist_lightning", "tune", *words, "--workers=1"],
        callbacks=[CommandLine()],
    )
    folder = study_folder(own.log_dir, own.name)
    rest_line = "There is no best.yaml yet."
    if (folder / "best.yaml").exists():
        rest_line = f"Page and best.yaml: {folder}/"
    say(f"\n{study_table(study)}\n\n{rest_line}")


def _export(words: Sequence[str]) -> None:
    from mnist_lightning.export import write  # here, since torch.export takes a while to import

    run, _, own = load("export", words)
    suffix = write.FORMATS[own.format or "onnx"]
    path = Path(own.output or run.folder / f"{run.folder.name}{suffix}")
    if own.format and path.suffix != suffix:
        raise InputError(f"--output must end in {suffix} for --format {own.format}, got {path}")
    rows = run.export(path, logits=own.logits, quantize=own.quantize)
    say(f"\n{write.export_table(rows)}\n\nWritten: {path}, and its model card {path}.md")


def _import(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-"):
        raise InputError("import needs a Keras file first: import model.keras")
    from mnist_lightning.training.import_run import import_run  # here, since only it needs Keras

    own, rest = parse("import", words[1:])
    described = recipe.read(rest)
    like = described.model().net
    run = import_run(words[0], described.data, like=like, name=own.name, log_dir=own.log_dir)
    layers = "\n".join(run.record["layers"])
    command = shlex.join(["test", "--ckpt_path", str(run.folder)])
    say(f"{layers}\n\nRun folder: {run.folder}\nNext: {PROGRAM} {command}")


def _serve(words: Sequence[str]) -> None:
    own, _ = parse("serve", words)
    from mnist_lightning.serve.server import described, serve  # here, since FastAPI is an extra

    files = checkpoints(own.ckpt_path, own.log_dir, or_pretrained=True)
    if len(files) > MOST_SERVED:
        raise InputError(f"serve shows at most {MOST_SERVED} networks, got {len(files)}")
    networks = []
    for file in files:
        run = load_run(file, log_dir=own.log_dir, tta=own.tta)
        name = run.folder.name.removesuffix(".results")
        networks.append(described(run, name, _device(own.device)))
    drawings = Path(own.drawings or f"{DEFAULT_DATA_DIR}/Drawings")
    serve(networks, drawings, own.host or "127.0.0.1", own.port, own.token)


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "fit": _fit,
    "validate": _validate,
    "test": _test,
    "predict": _predict,
    "describe": _describe,
    "doctor": _doctor,
    "crossval": _crossval,
    "tune": _tune,
    "export": _export,
    "import": _import,
    "serve": _serve,
}


@rank_zero_only
def say(line: str) -> None:
    """Print a line, in the first process only."""
    print(line, flush=True)


def run(verb: str, words: Sequence[str]) -> int:
    """Run a verb, and return the exit code."""
    # Lightning 2.6 calls what jsonargparse 5 removes.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    try:
        with quiet():
            return COMMANDS[verb](words) or 0
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
