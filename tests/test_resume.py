"""Runs that are stopped, and go on as if nothing had been: by signals, errors, and at every kind of place."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import ROOT
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from mnist_lightning import DigitClassifier, UCIDigits, signals
from mnist_lightning.checkpoints import AtomicCheckpointIO
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError
from mnist_lightning.files import sweep, write_atomic
from mnist_lightning.resume import STATE, LastCheckpoint, make_resumable

FIT = ["fit", "--data", "UCIDigits", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "3"]
UPDATES = 36  # of an epoch
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}


class Jitter(nn.Module):
    """An augmentation that draws from all generators there are on a CPU."""

    def forward(self, images: Tensor) -> Tensor:
        import random

        import numpy as np

        factor = random.random() * np.random.random()  # noqa: NPY002  the global generator is what is tested
        return images * (0.5 + 0.5 * factor) + 0.01 * torch.randn_like(images)


CASES = {
    "default": [],
    "augmentation": ["--data.augmentation", "test_resume.Jitter"],
    "validation within an epoch": ["--trainer.val_check_interval", "10"],
    "accumulated": ["--trainer.accumulate_grad_batches", "4"],
    "one cycle": [
        *("--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "0.01"),
        *("--model.lr_scheduler.total_steps", "108", "--model.lr_scheduler_interval", "step"),
    ],
    "early stopping": [
        *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/acc"),
        *("--trainer.callbacks.mode", "max", "--trainer.callbacks.patience", "1"),
    ],
    "lightning's own loop": ["--trainer.gradient_clip_val", "1.0"],
    "plateau": [
        *(
            "--model.lr_scheduler",
            "lightning.pytorch.cli.ReduceLROnPlateau",
            "--model.lr_scheduler.monitor",
            "val/loss",
        ),
        *("--model.lr_scheduler.patience", "0", "--model.lr_scheduler.threshold", "10"),
    ],
    "one batch an epoch": ["--trainer.limit_train_batches", "1"],
    "checkpoints on the way": ["--last_checkpoint.every_n_train_steps", "7"],
}


def fit(root: Path, *flags: str) -> int:
    return main([*FIT, "--trainer.default_root_dir", str(root), *flags])


def run_of(root: Path) -> Path:
    (run,) = (root / "lightning_logs").iterdir()
    return run


def last(root: Path) -> dict[str, Any]:
    return torch.load(run_of(root) / "checkpoints/last.ckpt", weights_only=True)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two checkpoints differ, leaving out seconds and the folders they lie in."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict):
        left_out = ("fit_seconds", "dirpath", "best_k_models", "current_score")  # Lightning forgets the last
        names = [name for name in one.keys() | other.keys() if name not in left_out]
        names = [name for name in names if not str(name).endswith("_path")]
        return [place for name in names for place in differences(one.get(name), other.get(name), f"{path}/{name}")]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return [
            place for i, pair in enumerate(zip(one, other, strict=True)) for place in differences(*pair, f"{path}/{i}")
        ]
    return [] if one == other else [path]


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something in the middle of the update with that number, after its forward pass."""
    training_step = DigitClassifier.training_step

    def interrupted(self: DigitClassifier, batch: Any, batch_idx: int) -> Tensor:
        loss = training_step(self, batch, batch_idx)
        if self.trainer.fit_loop.total_batch_idx == step:
            action()
        return loss

    monkeypatch.setattr(DigitClassifier, "training_step", interrupted)


def boom() -> None:
    raise RuntimeError("boom")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case's run that nothing stopped."""
    roots: dict[str, Path] = {}

    def root(case: str) -> Path:
        if case not in roots:
            roots[case] = tmp_path_factory.mktemp("undisturbed")
            assert fit(roots[case], *CASES[case]) == 0
        return roots[case]

    return root


@pytest.mark.parametrize(
    ("case", "step"),
    [
        *(("default", step) for step in (0, UPDATES - 1, UPDATES, 3 * UPDATES - 2)),
        *((case, UPDATES + 8) for case in CASES if case != "one batch an epoch"),
        ("plateau", 2 * UPDATES - 1),
        ("one batch an epoch", 1),
    ],
)
def test_a_signal_stops_after_the_update_and_the_run_goes_on_as_if_it_had_not(
    undisturbed: Callable[[str], Path],
    case: str,
    step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    reference = undisturbed(case)
    number = list(EXIT_CODES)[step % 3]
    with monkeypatch.context() as patch:
        interrupt(patch, step, lambda: os.kill(os.getpid(), number))
        capfd.readouterr()
        assert fit(tmp_path, *CASES[case]) == EXIT_CODES[number]
    run = run_of(tmp_path)
    saved = last(tmp_path)["global_step"]
    assert capfd.readouterr().err.splitlines()[-2:] == [
        f"python -m mnist_lightning: stopped by {number.name}",
        f"Saved: {saved} updates. To go on: python -m mnist_lightning fit --ckpt_path {run}",
    ]
    if case == "default":
        assert saved == step + 1
    assert fit(tmp_path, "--ckpt_path", str(run)) == 0
    assert differences(last(reference), last(tmp_path)) == []
    for name in ("metrics.csv", "config.yaml"):
        assert (run / name).read_bytes().replace(bytes(tmp_path), b"") == (
            run_of(reference) / name
        ).read_bytes().replace(bytes(reference), b"")
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize(
    ("case", "step"),
    [
        *(("default", step) for step in (10, UPDATES)),
        *((case, UPDATES + 9) for case in ("one cycle", "lightning's own loop")),
        ("plateau", UPDATES),
    ],
)
def test_an_error_in_an_update_loses_that_update_only(
    undisturbed: Callable[[str], Path], case: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = undisturbed(case)
    with monkeypatch.context() as patch:
        interrupt(patch, step, boom)
        with pytest.raises(RuntimeError, match="boom") as error:
            fit(tmp_path, *CASES[case])
    run = run_of(tmp_path)
    assert error.value.__notes__ == [
        f"Saved: {step} updates. To go on: python -m mnist_lightning fit --ckpt_path {run}"
    ]
    assert last(tmp_path)["global_step"] == step
    assert fit(tmp_path, "--ckpt_path", "last") == 0
    assert differences(last(reference), last(tmp_path)) == []
    assert (run / "metrics.csv").read_bytes() == (run_of(reference) / "metrics.csv").read_bytes()


@pytest.mark.parametrize(("case", "epoch"), [("default", 0), ("default", 2), ("validation within an epoch", 1)])
def test_an_error_in_a_validation_loses_that_validation_only(
    undisturbed: Callable[[str], Path], case: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*CASES[case], "--data.eval_batch_size", "100")  # three batches, of which the second fails

    def fail(self: DigitClassifier, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and self.trainer.current_epoch == epoch and not self.trainer.sanity_checking:
            boom()
        validation_step(self, batch, batch_idx)

    assert fit(tmp_path / "undisturbed", *flags) == 0
    validation_step = DigitClassifier.validation_step
    with monkeypatch.context() as patch:
        patch.setattr(DigitClassifier, "validation_step", fail)
        with pytest.raises(RuntimeError, match="boom"):
            fit(tmp_path / "stopped", *flags)
    saved = UPDATES * (epoch + 1) if case == "default" else UPDATES * epoch + 10
    assert last(tmp_path / "stopped")["global_step"] == saved
    assert fit(tmp_path / "stopped", "--ckpt_path", "last") == 0
    assert differences(last(tmp_path / "undisturbed"), last(tmp_path / "stopped")) == []
    one, other = (run_of(tmp_path / name) / "metrics.csv" for name in ("undisturbed", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def test_a_full_disk_leaves_the_last_good_checkpoints_and_the_run_goes_on_once_there_is_room(
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: dict[str, bytes] = {}

    def fill_the_disk() -> None:
        kept.update({path.name: path.read_bytes() for path in (run_of(tmp_path) / "checkpoints").iterdir()})
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))  # half a checkpoint

    with monkeypatch.context() as patch:
        interrupt(patch, UPDATES + 9, fill_the_disk)
        try:
            code = fit(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = run_of(tmp_path)
    assert code == 2
    assert capfd.readouterr().err.splitlines()[-2:] == [
        f"python -m mnist_lightning: error: {run / 'checkpoints/best.ckpt'}: File too large",
        f"Saved: {UPDATES} updates. To go on: python -m mnist_lightning fit --ckpt_path {run}",
    ]
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()} == kept
    assert not list(run.rglob("*.part"))
    assert fit(tmp_path, "--ckpt_path", "last") == 0
    assert differences(last(undisturbed("default")), last(tmp_path)) == []
    assert (run / "metrics.csv").read_bytes() == (run_of(undisturbed("default")) / "metrics.csv").read_bytes()


def test_an_error_in_the_first_update_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 0, boom)
    with pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_after_the_last_update_stops_nothing(
    undisturbed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 3 * UPDATES - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert fit(tmp_path) == 0
    assert differences(last(undisturbed("default")), last(tmp_path)) == []


def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    interrupt(monkeypatch, UPDATES + 5, hang)
    assert fit(tmp_path) == 130
    assert last(tmp_path)["global_step"] == UPDATES, "an update that was not done was saved"


def test_checkpoints_on_the_way_are_whole_and_can_be_gone_on_from(
    undisturbed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill finds: wherever last.ckpt was replaced, the run goes on to the same end."""
    kept: dict[int, bytes] = {}
    save = LastCheckpoint._save

    def keep(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        kept[trainer.global_step] = (run_of(tmp_path) / "checkpoints/last.ckpt").read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", keep)
        assert fit(tmp_path, *CASES["checkpoints on the way"]) == 0
    assert list(kept) == [*range(7, 36, 7), 36, *range(42, 72, 7), 72, *range(77, 108, 7), 108]
    for content in [kept[step] for step in (7, 36, 77)]:
        write_atomic(run_of(tmp_path) / "checkpoints/last.ckpt", content)
        assert fit(tmp_path, "--ckpt_path", "last") == 0
        assert differences(last(undisturbed("checkpoints on the way")), last(tmp_path)) == []


def test_checkpoints_are_due_after_updates_not_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[int, int]] = []
    save = LastCheckpoint._save

    def note(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        saved.append((trainer.global_step, trainer.fit_loop.total_batch_idx + 1))

    monkeypatch.setattr(LastCheckpoint, "_save", note)
    flags = ("--last_checkpoint.every_n_train_steps", "4", "--trainer.accumulate_grad_batches", "2")
    assert fit(tmp_path, *flags, "--trainer.max_epochs", "1") == 0
    assert saved == [(4, 8), (8, 16), (12, 24), (16, 32), (18, 36)]


def test_a_signal_in_the_last_update_that_is_asked_for_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 49, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert fit(tmp_path, "--trainer.max_steps", "50") == 0
    assert last(tmp_path)["global_step"] == 50


def test_a_checkpoint_io_of_ones_own_is_kept(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        pass

    plain, own = (L.Trainer(default_root_dir=tmp_path, logger=False, plugins=given) for given in ([], [Own()]))
    for trainer in (plain, own):
        make_resumable(trainer)
    assert (type(plain.strategy.checkpoint_io), type(own.strategy.checkpoint_io)) == (AtomicCheckpointIO, Own)


def test_elsewhere_than_in_training_a_signal_is_obeyed_at_once() -> None:
    with signals.heard():
        with pytest.raises(signals.Interrupted, match="SIGTERM") as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.code == 143
        os.kill(os.getpid(), signal.SIGTERM)  # once more while all is wound up: not again
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_forked_process_leaves_ctrl_c_to_the_first_and_ends_with_sigterm() -> None:
    with signals.heard():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended with SIGINT"
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


@pytest.mark.parametrize("every", [0, -3])
def test_no_checkpoint_is_due_after_less_than_one_update(
    every: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, "--last_checkpoint.every_n_train_steps", str(every)) == 2
    assert f"every_n_train_steps must be at least 1, got {every}" in capfd.readouterr().err


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGUSR1))],
)
def test_exit_codes_of_the_process(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnist_lightning", *FIT, "--trainer.max_epochs", "-1"]
    with subprocess.Popen(
        [*command, "--trainer.default_root_dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("Epoch 1 "):
                break
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODES[number]
    assert errors.splitlines()[-2] == f"python -m mnist_lightning: stopped by {number.name}"
    assert last(tmp_path)["global_step"] >= 2 * UPDATES


def test_the_rest_of_an_epoch_is_the_same_for_any_batch_size_and_number_of_processes() -> None:
    def loaders(batch_size: int, world_size: int) -> list[Any]:
        data = UCIDigits(batch_size=batch_size)
        data.setup("fit")
        found = []
        for rank in range(world_size):
            strategy = SimpleNamespace(broadcast=lambda seed: 5)
            data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, strategy=strategy)
            found.append(data.train_dataloader())
            found[-1].sampler.set_epoch(3)
        return found

    def pixels(batches: list[Any]) -> list[bytes]:
        return sorted(image.numpy().tobytes() for batch in batches for image in batch[0])

    everything = pixels(list(loaders(32, 1)[0]))
    for batch_size, world_size in ((32, 2), (10, 3), (64, 1)):
        taken = []
        before = loaders(batch_size, world_size)
        for loader in before:
            batches = iter(loader)
            taken += [next(batches) for _ in range(4)]
        state = before[0].state_dict()
        assert state == {"seed": 5, "images": 4 * batch_size * world_size}
        for new_batch_size, new_world_size in ((state["images"], 1), (state["images"] // 2, 2)):
            rest = []
            for loader in loaders(new_batch_size, new_world_size):
                loader.load_state_dict(state)
                rest += list(loader)
                assert sum(1 for _ in loader) == len(loader), "the epoch after that is whole"
            assert pixels(taken + rest) == everything


def test_what_a_killed_process_had_begun_to_write_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/.last.ckpt.x1.part", ".run.json.y2.part", "notes.part", "checkpoints/last.ckpt"):
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"notes.part", "checkpoints/last.ckpt"}


@pytest.mark.slow
def test_25_runs_killed_at_random_moments_end_as_if_they_had_not_been() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/kills.py", "--kills", "25"], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "25 of 25 ended as the undisturbed run did"


@pytest.mark.parametrize("state", [None, [], {}, {"seed": 1}, {"seed": "1", "images": 2}, {"seed": 1, "images": -1}])
def test_a_place_in_the_data_that_is_none_is_refused(state: Any) -> None:
    data = UCIDigits()
    data.setup("fit")
    with pytest.raises(InputError, match="the checkpoint's place in the data is damaged: "):
        data.train_dataloader().load_state_dict(state)


def test_a_damaged_state_of_the_run_is_refused_in_one_line(
    undisturbed: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = last(undisturbed("default"))
    (whole,) = checkpoint[STATE]["ranks"]
    version, numbers, gauss = whole["random"]["python"]
    ranks = [
        {},
        {"random": {"python": 3}},
        {"random": {**whole["random"], "python": (version, -numbers, gauss)}},
        {**whole, "epoch": {"lr": 1, "pending": [(0, *(torch.zeros(3),) * 3)], "metrics": {}}},
        {**whole, "epoch": {"lr": 1, "pending": [], "metrics": {"train_loss": (1, {"mean_value": torch.zeros(9)})}}},
    ]
    for damaged in (3, {}, {"ranks": 7}, *({"ranks": [rank]} for rank in ranks)):
        path = tmp_path / "damaged.ckpt"
        torch.save({**checkpoint, STATE: damaged}, path)
        capfd.readouterr()
        assert fit(tmp_path, "--ckpt_path", str(path), "--trainer.max_epochs", "4") == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("python -m mnist_lightning: error: the checkpoint's state of the run is damaged: ")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.ckpt"]
