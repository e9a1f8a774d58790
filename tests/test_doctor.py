"""The verb `doctor`: its lines on a sound machine, and the one line of each fault."""

import re
import socket
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import files_in
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.cli import doctor
from mnist_lightning.cli.doctor import merge
from mnist_lightning.cli.main import main
from mnist_lightning.training.record import versions

DOCTOR = ["doctor", "--device", "cpu", "--data", "UCIDigits"]
NAMES = ["versions", "devices", "processes", "compute", "data", "log folder"]
TASK = {
    "JOB_NAME": "a",
    "JOB_ID": "1",
    "NTASKS": "2",
    "NTASKS_PER_NODE": "1",
    "NNODES": "2",
    "NODELIST": "127.0.0.1",
}


def test_sound_machine(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*DOCTOR, "--log_dir", "new"]) == 0
    found = {
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items())
        + "; CUDA *",
        "devices": "* CPU cores, *; training would run on cpu",
        "processes": "one process: nothing to sum",
        "compute": "loss and gradients on cpu in float32 agree with the CPU in float64",
        "data": "UCIDigits; 1,150 training, 287 validation, 360 test images with fingerprint *",
        "log folder": "new: a checkpoint is the same when it is read back",
    }
    expected = [f"ok    {name:<10}  {text}" for name, text in found.items()]
    for line, pattern in zip(capfd.readouterr().out.splitlines(), expected, strict=True):
        assert re.fullmatch(re.escape(pattern).replace(r"\*", ".+"), line)
    assert list(folder.iterdir()) == []


def denied(**kwargs: object) -> Any:
    raise PermissionError("denied")


def last_bit(path: Path) -> Any:
    checkpoint = torch.load(path)
    bias = checkpoint["state_dict"]["layers.1.bias"]
    bias[0] = torch.nextafter(bias[0], torch.tensor(1.0))
    return checkpoint


def imprecise(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.mean() * (1 if logits.dtype == torch.float64 else 1.001)


class Disk(NamedTuple):
    free: int


FAULTS: dict[str, tuple[list[str], Any, list[str], str]] = {
    "version": (
        [],
        (doctor, "requires", lambda name: ["torch>=99"]),
        ["versions"],
        "expected torch>=99, got ",
    ),
    "missing package": (
        [],
        (doctor, "requires", lambda name: ["no-such"]),
        ["versions"],
        "PackageNotFoundError: ",
    ),
    "device": (["--device", "warp"], None, ["devices", "processes"], "warp"),
    "no devices": (
        ["--devices", "0"],
        None,
        ["devices", "processes"],
        "`Fabric(devices=0)` value is not a valid ",
    ),
    "no data": (
        ["--data", "MNIST", "--data.data_dir", "new"],
        None,
        ["data"],
        "--data MNIST --data.data_dir new",
    ),
    "no CSV": (["--data", "Kaggle", "--data.data_dir", "new"], None, ["data"], "train.csv"),
    "a file": (["--log_dir", "file"], None, ["log folder"], "file"),
    "read-only": ([], (doctor, "TemporaryDirectory", denied), ["log folder"], "denied"),
    "full disk": (
        [],
        (doctor.shutil, "disk_usage", lambda path: Disk(50 << 20)),
        ["log folder"],
        "has 50 MiB free",
    ),
    "bad disk": (
        [],
        (doctor, "read_checkpoint", last_bit),
        ["log folder"],
        "Tensor-likes are not equal!",
    ),
    "arithmetic": (
        [],
        (torch.nn.functional, "cross_entropy", imprecise),
        ["compute"],
        "Scalars are not close!",
    ),
}


@pytest.mark.parametrize(("args", "patch", "failing", "message"), FAULTS.values(), ids=FAULTS)
def test_fault(
    args: list[str],
    patch: Any,
    failing: list[str],
    message: str,
    folder: Path,
    monkeypatch: Any,
    capfd: Any,
) -> None:
    """A fault fails its own check in one line, and hides no other."""
    (folder / "file").touch()
    if patch:
        monkeypatch.setattr(*patch)
    assert main([*DOCTOR, *args]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line[6:16].rstrip() for line in lines] == NAMES
    failed = [line for line in lines if line.startswith("FAIL  ")]
    assert [line[6:16].rstrip() for line in failed] == failing
    assert message in failed[0]
    assert files_in(folder) == {"file"}


@pytest.mark.parametrize(
    "args", [["--trainer.devices", "2"], ["--data", "Nope"], ["--data.batch_size", "0"]]
)
def test_usage_error(args: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*DOCTOR, *args]) == 2
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("wrong", [0, 2])
def test_sum_is_exact(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(total: torch.Tensor, async_op: bool) -> Any:
        total.fill_(3)[:wrong] += 2**-20  # of two ranks, 1 + 2
        return SimpleNamespace(wait=lambda timeout: None)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    two: Any = SimpleNamespace(
        world_size=2, global_rank=0, device=torch.device("cpu"), launch=lambda: None
    )
    if wrong:
        with pytest.raises(ValueError, match="2 of 109,386 sums over 2 processes are wrong"):
            doctor.check_processes(two)
    else:
        assert doctor.check_processes(two) == "gloo sums 109,386 numbers over 2 processes exactly"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu() -> None:
    gpu: Any = SimpleNamespace(device=torch.device("cuda:0"))
    assert doctor.check_compute(gpu).startswith("loss")


def test_processes_differ() -> None:
    reports = [
        (rank, f"n{rank // 2}", ["ok    versions    a", f"ok    data        {rank % 2}"])
        for rank in range(12)
    ]
    assert merge(reports) == [
        "ok    versions    a (12 processes)",
        "FAIL  data        the processes differ, but must have the same:",
        "ok    data        0 (rank 0 on n0, rank 2 on n1, rank 4 on n2, rank 6 on n3 and 2 more)",
        "ok    data        1 (rank 1 on n0, rank 3 on n1, rank 5 on n2, rank 7 on n3 and 2 more)",
    ]
    reports = [
        (rank, "n", [f"{result:<4}  data        {rank}"])
        for rank, result in enumerate(("ok", "FAIL"))
    ]
    assert merge(reports) == [
        "ok    data        0 (rank 0 on n)",
        "FAIL  data        1 (rank 1 on n)",
    ]
    assert merge(reports[:1]) == ["ok    data        0"]
    assert merge(reports[1:]) == ["FAIL  data        1 (rank 1 on n)"]


@pytest.mark.parametrize(
    ("rank", "args", "code", "failing"),
    [
        (0, ["--num_nodes", "1"], 1, ["devices", "processes"]),
        (
            1,
            ["--num_nodes", "1"],
            0,
            ["devices", "processes"],
        ),  # the first process's exit code counts
        (0, [], 1, ["processes"]),  # the other process never comes
    ],
)
def test_task_of_two(
    rank: int,
    args: list[str],
    code: int,
    failing: list[str],
    folder: Path,
    monkeypatch: Any,
    capfd: Any,
) -> None:
    """One of two processes that srun started on two nodes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name, value in (TASK | {"PROCID": str(rank), "NODEID": str(rank), "LOCALID": "0"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr(doctor, "TIMEOUT", timedelta(seconds=1))
    assert main([*DOCTOR, *args]) == code
    lines = capfd.readouterr().out.splitlines()
    assert [line[6:16].rstrip() for line in lines if line.startswith("FAIL")] == failing
    assert len(lines) == (len(NAMES) if rank == 0 else len(failing))
    assert "1/2 clients joined" in "".join(lines) or args
