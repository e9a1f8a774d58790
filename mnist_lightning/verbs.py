"""The verbs that need torch: each parses, calls the library, and prints."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.data.augmentation import Augmentation, augmented
from mnist_lightning.data.base import DEFAULT_DATA_DIR, DigitDataModule
from mnist_lightning.errors import InputError
from mnist_lightning.files import check_writable
from mnist_lightning.parsing import look_ahead, parse
from mnist_lightning.report import text
from mnist_lightning.signals import listen
from mnist_lightning.studies.train import make, study_folder, train, train_seeds, trainer_kwargs
from mnist_lightning.training.loggers import show_pictures
from mnist_lightning.training.quiet import quieten
from mnist_lightning.training.run import Run, config_of, find_checkpoint, find_last, load_run
from mnist_lightning.training.runs import LOG_DIR, read_config, read_json
from mnist_lightning.usage import PROGRAM

PRUNERS = ("median", "hyperband", "none")


class CommandLine(Callback):
    """Let signals stop the process.

    Lightning 2.6 only notes SIGTERM and exits with 0, and on a SLURM cluster it requeues the job itself.
    """

    # Lightning has just replaced our signal handlers.
    on_train_start = on_validation_start = on_test_start = on_predict_start = listen  # type: ignore[assignment]


def load(verb: str, args: Sequence[str], **options: dict[str, Any]) -> tuple[Run, dict[str, Any], Namespace]:
    """Return the run that a verb is for, the Trainer's arguments, and the verb's options."""
    known = look_ahead(args)
    asks_for_help = any(re.fullmatch(r"--([\w.]+\.)?help", word) for word in args)
    files = [] if asks_for_help else checkpoints(known.ckpt_path, known.log_dir)
    parsed = parse(verb, args, (config_of(files[0]) if files else None) or {}, **options)
    run = load_run(
        files if len(files) > 1 else files[0], data=parsed.data, log_dir=known.log_dir, tta=parsed.get("tta", 0)
    )
    trainer = trainer_kwargs(parsed.trainer, [CommandLine()]) if "trainer" in parsed else {}
    return run, trainer, parsed


def checkpoints(paths: Sequence[str] | None, log_dir: Path) -> list[Path]:
    """Return the checkpoint files for paths, or of the newest run, and print them."""
    files = [find_checkpoint(path, "best", log_dir) for path in paths or (None,)]
    newest = "" if paths else f" (the {files[0].stem} of the newest run)"
    say(f"Checkpoint: {', '.join(map(str, files))}{newest}")
    return files


def options(verb: str, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return a verb's own options, and the flags of ``fit``."""
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {verb}", add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, option in OPTIONS[verb].items():
        parser.add_argument(f"--{name}", **option)
    return parser.parse_known_args(args)


def boolean(word: str) -> bool:
    """Return what true or false says."""
    return bool(["false", "true"].index(word.lower()))


def seeds(words: Sequence[str]) -> list[int]:
    """Return the seeds that words such as 42-46 or 7 mean."""
    try:
        ends = [word.partition("-")[::2] for word in words]
        found = [seed for first, last in ends for seed in range(int(first), int(last or first) + 1)]
    except ValueError:
        found = []
    if not found:
        raise InputError(f"--seeds takes numbers and ranges such as 42-46, got {' '.join(words)}")
    return found


def _seeds(words: Sequence[str], name: str | None, flags: list[str]) -> None:
    from mnist_lightning.studies.compare import compare, compare_table  # here, since no other training needs it

    configs = look_ahead(flags).config
    name = name or (Path(configs[-1]).stem if configs else "seed")
    runs = train_seeds(flags, name, seeds(words), callbacks=[CommandLine()])
    say(f"\n{compare_table(compare([run.folder for run in runs]))}\n\nNext: {PROGRAM} compare")


def _fit(args: Sequence[str]) -> None:
    own, flags = options("fit", args)
    if own.seeds:
        return _seeds(own.seeds, own.name, flags)
    known = look_ahead(args)
    resumed = find_last(known.ckpt_path[0], known.log_dir).parent.parent if known.ckpt_path else None
    before = read_json(resumed / "run.json") if resumed else {}
    run = train(args, [CommandLine()])
    record = run.record
    if not record:
        return say("fast_dev_run: nothing was written")
    say(f"\n{text.fit_table(record, str(run.folder))}\n")
    if before.get("finished") and before["global_step"] == record["global_step"]:
        say(f"Nothing was left to train; to train on, raise --epochs above {record['epochs']}.")
    if run.checkpoint and run.checkpoint.stem == record["weights"]:
        where = "" if run.folder.parent == Path(LOG_DIR) else f" --ckpt_path {run.folder}"
        say(f"Next: {PROGRAM} {'test' if run.data.has_test_labels else 'predict'}{where}")


def _validate(args: Sequence[str]) -> None:
    run, trainer, _ = load("validate", args)
    metrics = run.validate(**trainer)
    say(f"\nvalidation accuracy {metrics['accuracy']:.2%}   loss {metrics['loss']:.4f}")
    if warning := text.seen_text(run.data.seen(run.trained_on), len(run.data.val_set or ())):
        say(warning)


def _test(args: Sequence[str]) -> None:
    run, trainer, parsed = load("test", args, robustness={"type": bool, "default": False}, output={"type": str})
    metrics = run.test(robustness=parsed.robustness, output=parsed.output, **trainer)
    if not metrics:
        return say("fast_dev_run: nothing was written")
    say(f"\n{text.test_table(metrics)}\n\nReport: {run.written[0] / 'index.html'}")


def _predict(args: Sequence[str]) -> int:
    args = ["--images", *args] if args and args[0][:1] != "-" else args
    run, trainer, parsed = load("predict", args, images={"type": str, "nargs": "+"}, output={"type": str})
    if parsed.images is None:
        run.predict(output=parsed.output, **trainer)
        say(f"Written: {', '.join(map(str, run.written))}" if run.written else "fast_dev_run: nothing was written")
        return 0
    from mnist_lightning.pictures.read import picture_files  # here, since OpenCV takes a while to import
    from mnist_lightning.pictures.recognize import CARDS, COPIES, write_digits

    uses_gpu = torch.cuda.is_available() and trainer.get("accelerator") != "cpu"
    run.model.setup("predict")
    net = run.model.net.to("cuda" if uses_gpu else "cpu")
    folder, files = check_writable(Path(parsed.output or run.folder)), picture_files(parsed.images)
    if not any(map(os.path.exists, files)):
        raise InputError(f"no such file: {files[0]}")
    done = write_digits(folder, files, net)
    shown = {file.stem: file for file in sorted((folder / COPIES).glob("*.jpg"))[:10]}
    if shown and parsed.output is None:
        pngs = {name: file.read_bytes() for name, file in {"cards": folder / CARDS, **shown}.items()}
        show_pictures(run.folder, run.record.get("global_step", 0), pngs)
    doubtful = f" ({done.doubtful:,} doubtful)" if done.doubtful else ""
    say(f"\nDigits: {done.digits:,}{doubtful}   pictures: {done.pictures:,}   without a digit: {done.failures:,}")
    say(f"Written: {', '.join(map(str, done.written))}")
    return 1 if done.failures else 0


def _describe(args: Sequence[str]) -> None:
    parsed = parse("describe", args, output={"type": str}, augmentation={"type": bool, "default": False})
    data: DigitDataModule = parsed.data
    data.prepare_data()
    data.setup()
    splits = {"training": data.train_set, "validation": data.val_set, "test": data.test_set}
    from mnist_lightning.report.describe import write_description  # here, since matplotlib imports slowly

    folder = Path(parsed.output or f"{LOG_DIR}/describe_{type(data).__name__}")
    shown = {name: split.arrays() for name, split in splits.items() if split is not None and len(split)}
    augment = partial(augmented, data.augmentation or Augmentation()) if parsed.augmentation else None
    described = write_description(folder, shown, augment)
    say(f"{type(data).__name__}\n\n{text.description_table(described)}\n\nWritten: {folder}/")


def _doctor(args: Sequence[str]) -> int:
    from mnist_lightning.doctor import doctor  # here, since no other verb needs it

    options: dict[str, dict[str, Any]] = {"default_root_dir": {"type": str}, "num_nodes": {"type": int}}
    options |= {"accelerator": {"type": str, "default": "auto"}, "devices": {"type": int | str, "default": "auto"}}
    parsed = parse("doctor", args, **options)
    log_dir = Path(parsed.default_root_dir or "") / LOG_DIR
    return doctor(parsed.data, log_dir, parsed.accelerator, parsed.devices, parsed.num_nodes)


def _crossval(args: Sequence[str]) -> None:
    own, flags = options("crossval", args)
    from mnist_lightning.studies import crossval
    from mnist_lightning.studies import crossval_report as report  # here, since matplotlib imports slowly

    given = {name: getattr(own, name) for name in ("folds", "repeats", "stratified")} | {"callbacks": [CommandLine()]}
    name = own.name or ("learning_curve" if own.train_sizes else "crossval")
    folder = study_folder(flags, name)
    if own.train_sizes:
        curve = crossval.learning_curve(own.train_sizes, flags, name, **given)
        report.write_curve(folder, curve)
        table = report.curve_table(curve)
    else:
        result = crossval.cross_validate(flags, name, **given)
        report.write_crossval(result)
        table = report.crossval_table(result)
    say(f"\n{table}\n\nPage: {folder / 'index.html'}")


def _tune(args: Sequence[str]) -> None:
    own, flags = options("tune", args)
    if own.space is None:
        raise InputError("tune needs the settings to try: --space FILE, such as configs/tune/mlp.yaml")
    from mnist_lightning.studies.tune import tune  # here, since Optuna is an extra
    from mnist_lightning.studies.tune_report import study_table

    settings = {name: value for name, value in vars(own).items() if name != "space"}
    study = tune(read_config(Path(own.space)), flags, **settings, callbacks=[CommandLine()])
    folder = study_folder(flags, own.name)
    rest = f"Page and best.yaml: {folder}/" if (folder / "best.yaml").exists() else "There is no best.yaml yet."
    say(f"\n{study_table(study)}\n\n{rest}")


def _export(args: Sequence[str]) -> None:
    from mnist_lightning.export import write  # here, since torch.export takes a while to import

    flags: dict[str, dict[str, Any]] = {name: {"type": bool, "default": False} for name in ("logits", "quantize")}
    flags |= {"format": {"type": Literal[*write.FORMATS] | None}, "output": {"type": str | None}}
    run, _, parsed = load("export", args, **flags)
    suffix = write.FORMATS[parsed.format or "onnx"]
    path = Path(parsed.output or run.folder / f"{run.folder.name}{suffix}")
    if parsed.format and path.suffix != suffix:
        raise InputError(f"--output must end in {suffix} for --format {parsed.format}, got {path}")
    rows = run.export(path, logits=parsed.logits, quantize=parsed.quantize)
    say(f"\n{write.export_table(rows)}\n\nWritten: {path}")


def _import(args: Sequence[str]) -> None:
    if not args or args[0].startswith("-"):
        raise InputError("import needs a Keras file first: import model.keras")
    from mnist_lightning.training.imported import import_run  # here, since no other verb needs it

    cli, _ = make(args[1:])
    name, log_dir = cli.config_init.name, look_ahead(args[1:]).log_dir
    run = import_run(args[0], cli.datamodule, like=cli.model.net, name=name, log_dir=log_dir)
    say(
        "\n".join([*run.record["layers"], f"\nRun folder: {run.folder}\nNext: {PROGRAM} test --ckpt_path {run.folder}"])
    )


def _serve(args: Sequence[str]) -> None:
    own, rest = options("serve", args)
    if rest:
        raise InputError(f"unknown argument {rest[0]}; see --help")
    from mnist_lightning.serve.server import serve  # here, since FastAPI is an extra

    files = checkpoints(own.ckpt_path, Path(LOG_DIR))
    run = load_run(files if len(files) > 1 else files[0], tta=own.tta)
    if own.accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("--accelerator gpu: torch finds no GPU; use cpu or auto")
    uses_gpu = own.accelerator == "gpu" or (own.accelerator == "auto" and torch.cuda.is_available())
    serve(run.model.net.to("cuda" if uses_gpu else "cpu"), Path(own.drawings), own.host, own.port, own.token)


INT: dict[str, Any] = {"type": int}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {"fit": {"seeds": {"nargs": "+"}, "name": {}}}
OPTIONS["crossval"] = {
    "folds": INT | {"default": 5},
    "repeats": INT | {"default": 1},
    "train_sizes": INT | {"nargs": "+"},
}
OPTIONS["crossval"] |= {"stratified": {"type": boolean}, "name": {}}
OPTIONS["tune"] = {"space": {}, "trials": INT | {"default": 20}, "workers": INT | {"default": 1}, "storage": {}}
OPTIONS["tune"] |= {"pruner": {"choices": PRUNERS, "default": PRUNERS[0]}, "name": {"default": "tune"}}
OPTIONS["import"] = {}
OPTIONS["serve"] = {"ckpt_path": {"nargs": "+"}, "host": {"default": "127.0.0.1"}, "port": INT | {"default": 8000}}
OPTIONS["serve"] |= {"token": {}, "drawings": {"default": f"{DEFAULT_DATA_DIR}/Drawings"}, "tta": INT | {"default": 0}}
OPTIONS["serve"]["accelerator"] = {"choices": ["auto", "cpu", "gpu"], "default": "auto"}
COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {"fit": _fit, "validate": _validate, "test": _test}
COMMANDS |= {"predict": _predict, "describe": _describe, "doctor": _doctor, "crossval": _crossval, "tune": _tune}
COMMANDS |= {"export": _export, "import": _import, "serve": _serve}


@rank_zero_only
def say(line: str) -> None:
    """Print a line, in the first process only."""
    print(line, flush=True)


def run(verb: str, args: Sequence[str]) -> int:
    """Run a verb, and return the exit code."""
    quieten()
    try:
        return COMMANDS[verb](args) or 0
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
