"""The run folder, the checkpoints, and what the arguments leave open."""

import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch

from mnist_lightning import MLP
from mnist_lightning.checkpoints import check_fits, load_checkpoint
from mnist_lightning.errors import InputError
from mnist_lightning.files import write_atomic
from mnist_lightning.request import Request, resolve
from mnist_lightning.runs import claim, discard, find_checkpoint, newest, run_of


def make_run(root: Path, name: str, time: int, config: str = "data: {class_path: mnist_lightning.UCIDigits}\n") -> Path:
    run = root / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    for kind in ("best", "last"):
        path = run / "checkpoints" / f"{kind}.ckpt"
        path.write_text(kind)
        os.utime(path, (time, time))
    return run


def test_runs_are_numbered_on_from_the_highest(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    assert claim(root) == root / "version_0"
    for name in ("version_7", "version_x", "mine"):
        (root / name).mkdir()
    assert claim(root) == root / "version_8"


def test_runs_claimed_at_once_get_a_folder_each(tmp_path: Path) -> None:
    barrier, folders = threading.Barrier(8), []

    def start() -> None:
        barrier.wait()
        folders.append(claim(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folders) == [tmp_path / f"version_{number}" for number in range(8)]


def test_a_run_that_came_to_nothing_is_removed_and_one_with_a_checkpoint_kept(tmp_path: Path) -> None:
    folder = claim(tmp_path / "logs")
    (folder / "events").write_text("")
    discard(folder)
    assert list(tmp_path.iterdir()) == []
    run = make_run(tmp_path / "logs", "version_0", 1)
    discard(run)
    assert run.exists()


def test_the_newest_run_is_the_one_that_saved_last(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run with a checkpoint in .*; train one first: "):
        newest(tmp_path)
    make_run(tmp_path, "version_2", 100)
    make_run(tmp_path, "version_1", 200)
    (tmp_path / "version_3").mkdir()  # claimed, but nothing saved yet
    assert newest(tmp_path) == tmp_path / "version_1"


def test_what_a_ckpt_path_means(tmp_path: Path) -> None:
    run = make_run(tmp_path, "version_0", 1)
    best, last = run / "checkpoints/best.ckpt", run / "checkpoints/last.ckpt"
    assert find_checkpoint("best", tmp_path, "last") == best
    assert find_checkpoint("last", tmp_path, "best") == last
    assert find_checkpoint(str(run), tmp_path, "best") == best
    assert find_checkpoint(str(last), tmp_path, "best") == last
    with pytest.raises(InputError, match=r"no checkpoint at nope\.ckpt; give --ckpt_path "):
        find_checkpoint("nope.ckpt", tmp_path, "best")
    assert run_of(best) == run
    elsewhere = shutil.copy(best, tmp_path / "copy.ckpt")
    assert run_of(elsewhere) is None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_run(Path("lightning_logs"), "version_0", 1)


def test_test_takes_the_newest_runs_best_checkpoint_and_data(run: Path) -> None:
    best = run / "checkpoints/best.ckpt"
    data = json.dumps({"data": {"class_path": "mnist_lightning.UCIDigits"}})
    args = ["test", "--config", data, "--data.batch_size", "5", "--ckpt_path", str(best)]
    assert resolve(["test", "--data.batch_size", "5"]) == Request(
        args, Path("lightning_logs"), best, run, " (the best of the newest run)"
    )


def test_fit_continues_a_run_from_its_last_checkpoint_only(run: Path) -> None:
    for given in ("last", str(run), str(run / "checkpoints/last.ckpt")):
        request = resolve(["fit", "--ckpt_path", given])
        assert request.args[:3] == ["fit", "--config", str(run / "config.yaml")]
        assert (request.checkpoint, request.run) == (run / "checkpoints/last.ckpt", run)
    branch = resolve(["fit", "--ckpt_path", str(run / "checkpoints/best.ckpt")])
    assert (branch.checkpoint, branch.run) == (run / "checkpoints/best.ckpt", None)
    assert resolve(["fit"]) == Request(["fit"], Path("lightning_logs"), None, None)


def test_ckpt_path_and_root_are_found_in_flags_and_files_and_the_last_given_wins(run: Path) -> None:
    moved = shutil.move(str(run.parent), "elsewhere/lightning_logs")
    Path("a.yaml").write_text("ckpt_path: nope.ckpt\ntrainer:\n  default_root_dir: elsewhere\n")
    best = Path(moved) / "version_0/checkpoints/best.ckpt"
    assert resolve(["test", "-c", "a.yaml", "--ckpt_path=best"]).checkpoint == best
    with pytest.raises(InputError, match=r"no checkpoint at nope\.ckpt"):
        resolve(["test", "--ckpt_path", "best", "-c", "a.yaml"])
    assert resolve(["test", "--trainer.default_root_dir=elsewhere"]).checkpoint == best


def test_a_damaged_config_is_named(run: Path) -> None:
    (run / "config.yaml").write_text("a: 1")
    with pytest.raises(InputError, match=r"version_0/config.yaml is damaged: it has no data settings"):
        resolve(["test"])
    (run / "config.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"version_0/config.yaml is no configuration: while parsing a flow sequence"):
        resolve(["test"])


@pytest.mark.parametrize("args", [["test", "--help"], ["predict", "-h"], ["--help"], [], ["bogus"]])
def test_help_and_nonsense_need_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(args).args == args


class Code:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def bad_checkpoint(path: Path, kind: str, trap: Path) -> None:
    good = {"state_dict": MLP((8,)).state_dict()}
    if kind == "code":
        torch.save(good | {"x": Code(trap)}, path)
    elif kind == "legacy code":
        torch.save(good | {"x": Code(trap)}, path, _use_new_zipfile_serialization=False)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Code(trap)))
    elif kind == "module":
        torch.save(MLP((8,)), path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "truncated":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes({"text": b"no checkpoint\n", "empty": b"", "gzip": b"\x1f\x8b123"}[kind])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "code",
            r"was not loaded: it holds (posix|nt).mkdir, and anything but",
        ),
        ("legacy code", "is no checkpoint, or is damaged; give one that fit wrote"),
        ("plain pickle", "is no checkpoint, or is damaged; give one that fit wrote"),
        ("module", r"was not loaded: it holds mnist_lightning.models.MLP, and anything but"),
        ("list", "is no Lightning checkpoint: it has no state_dict; give one that fit wrote"),
        ("truncated", "is no checkpoint, or is damaged; give one that fit wrote"),
        ("text", "is no checkpoint, or is damaged; give one that fit wrote"),
        ("empty", "is no checkpoint, or is damaged; give one that fit wrote"),
        ("gzip", "is no checkpoint, or is damaged; give one that fit wrote"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused_and_run_nothing(tmp_path: Path, kind: str, message: str) -> None:
    path, trap = tmp_path / "bad.ckpt", tmp_path / "trap"
    bad_checkpoint(path, kind, trap)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)
    assert not trap.exists()


def test_a_checkpoint_for_another_network_names_the_first_difference() -> None:
    check_fits(Path("x.ckpt"), MLP((8,)).state_dict(), MLP((8,)))
    with pytest.raises(InputError, match=r"for another network: layers.1.bias is \(9,\) there and \(8,\) here"):
        check_fits(Path("x.ckpt"), MLP((9,)).state_dict(), MLP((8,)))
    partial = MLP((8,)).state_dict()
    del partial["layers.4.bias"]
    with pytest.raises(InputError, match=r"layers.4.bias is missing there and \(10,\) here"):
        check_fits(Path("x.ckpt"), partial, MLP((8,)))


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
