"""The verb `doctor`: what it says of a sound machine, and of each thing that can be wrong with it."""

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import snapshot
from lightning.pytorch.utilities import rank_zero_only
from mirror import mirror

from mnist_lightning import MLP, UCIDigits, doctor
from mnist_lightning.callbacks import versions
from mnist_lightning.checks import machine, run
from mnist_lightning.checks.findings import Finding, Report, merge
from mnist_lightning.checks.machine import check_collective, check_compute, loss_and_gradients
from mnist_lightning.checks.memory import host_memory
from mnist_lightning.checks.site import Site
from mnist_lightning.cli import main
from mnist_lightning.errors import InputError

GIB = 2**30
DOCTOR = ["doctor", "--accelerator", "cpu"]
NAMES = ["versions", "devices", "memory", "compute", "collective", "data", "log folder", "checkpoint"]
TASKS = {"JOB_NAME": "a", "JOB_ID": "1", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "NODELIST": "127.0.0.1"}

pytestmark = pytest.mark.usefixtures("folder")


def masked(text: str) -> list[str]:
    """The lines without what differs from one time to the next."""
    for pattern, replacement in (
        (r"[\d.]+ (GiB|ms)\b", r"# \1"),
        (r"\d+ CPU cores \(torch uses \d+\), [^;]*;", "# CPU cores;"),
        (r"fingerprint [0-9a-f]{8}\b", "fingerprint #"),
    ):
        text = re.sub(pattern, replacement, text)
    return text.splitlines()


def sound(data: str, collective: str = "one process: nothing to reduce", least: str = "", end: str = "") -> list[str]:
    """The lines for a sound machine, masked."""
    installed = versions()
    installed["torch"] += f" (CUDA {torch.version.cuda})" if torch.version.cuda else " (no CUDA)"
    found = {
        "versions": ", ".join(f"{name} {number}" for name, number in installed.items()),
        "devices": "# CPU cores; training would run on cpu",
        "memory": f"host # GiB; {least}# GiB free",
        "compute": "loss and gradients on cpu in float32 agree with the CPU in float64",
        "collective": collective,
        "data": f"{data} test images with fingerprint #",
        "log folder": f"lightning_logs can be written to and read; {least}# GiB free",
        "checkpoint": "1.3 MB of weights and optimizer state come back as they were saved",
    }
    return [f"ok    {name:<10}  {text}{end}" for name, text in found.items()]


def test_a_sound_machine_is_told_so_and_nothing_is_left_behind(
    folder: Path, tiny_mnist: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folder.parent)
    assert main([*DOCTOR, "--data.data_dir", str(tiny_mnist)]) == 0
    data = f"MNIST in {tiny_mnist}/MNIST/raw: four files, SHA-256 as published; 160 training, 40 validation, 50"
    assert masked(capfd.readouterr().out) == sound(data)
    assert snapshot(folder.parent) == before


def fails(*args: Any) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> Any:
        raise args[0]

    return failing


def last_bit(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, weights_only=True)
    moment = checkpoint["optimizer_states"][0]["state"][0]["exp_avg"]
    moment.view(-1)[400] = torch.nextafter(moment.view(-1)[400], torch.tensor(1.0))
    return checkpoint


def nan_gradients(net: torch.nn.Module) -> list[torch.Tensor]:
    return [torch.tensor(torch.nan) if value.dtype == torch.float32 else value for value in loss_and_gradients(net)]


def wrong_gradients(net: torch.nn.Module) -> list[torch.Tensor]:
    return [value * 1.001 if value.dtype == torch.float32 else value for value in loss_and_gradients(net)]


CONTRADICTIONS = ["torch>=99,<100", "no-such-package", "numpy", "no-such-tool; extra == 'dev'"]
FAULTS: dict[str, tuple[list[str], list[tuple[Any, str, Any]], list[str], str]] = {
    "version": (
        [],
        [(machine, "requires", lambda name: CONTRADICTIONS)],
        ["versions"],
        f"torch {versions()['torch']} is not <100,>=99, no-such-package is missing; install what mnist-lightning "
        "requires: pip install -e .",
    ),
    "not installed": ([], [(machine, "requires", fails(ModuleNotFoundError("no\nmetadata")))], ["versions"],
                      "ModuleNotFoundError: no metadata"),
    "device": (["--devices", "0"], [], ["devices", "collective"], "; `Fabric(devices=0)` value is not a valid input"),
    "little memory": ([], [(machine, "host_memory", lambda: (8 * GIB, GIB // 2))], ["memory"],
                      "the host has 512 MiB free, and fit takes about 1.0 GiB"),
    "unexpected": ([], [(machine, "host_memory", fails(KeyError("MemTotal")))], ["memory"], "KeyError: 'MemTotal'"),
    "nan": ([], [(machine, "loss_and_gradients", nan_gradients)], ["compute"], "gradient on cpu is not finite"),
    "wrong gradient": ([], [(machine, "loss_and_gradients", wrong_gradients)], ["compute"],
                       "cpu in float32 differs from the CPU in float64: "),
    "data missing": (
        ["--data", "MNIST", "--data.data_dir", "new"],
        [],
        ["data"],
        "new/MNIST/raw/train-images-idx3-ubyte is missing; put MNIST's files into new/MNIST/raw, or download them "
        "where there is a network: python -m mnist_lightning describe --data MNIST --data.data_dir new",
    ),
    "data unreadable": (["--data", "MNIST", "--data.data_dir", "file"], [], ["data"], "check data_dir, got file"),
    "CSV missing": (["--data", "Kaggle", "--data.data_dir", "new"], [], ["data"], "new/train.csv is missing"),
    "folder is a file": (["--default_root_dir", "file"], [], ["log folder", "checkpoint"],
                         "file/lightning_logs: Not a directory; choose another --default_root_dir"),
    "read-only": (
        [],
        [(run, "write_atomic", fails(OSError(errno.EROFS, os.strerror(errno.EROFS))))],
        ["log folder"],
        "lightning_logs: Read-only file system; choose another --default_root_dir",
    ),
    "bad disk": ([], [(run, "write_atomic", lambda path, content: path.write_bytes(content[:-1]))], ["log folder"],
                 "lightning_logs does not give back what is written"),
    "full disk": ([], [(run.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * 2**20))], ["log folder"],
                  "lightning_logs has 50 MiB free, a run needs 100 MiB; make room there"),
    "damaged checkpoint": ([], [(run, "load_checkpoint", last_bit)], ["checkpoint"],
                           "a checkpoint in lightning_logs comes back damaged: "),
}  # fmt: skip


@pytest.mark.parametrize(("args", "patches", "failing", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_fails_its_own_check_in_one_line_and_hides_no_other(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    args: list[str],
    patches: list[tuple[Any, str, Any]],
    failing: list[str],
    message: str,
) -> None:
    Path("file").write_text("")
    for owner, name, replacement in patches:
        monkeypatch.setattr(owner, name, replacement)
    assert main([*DOCTOR, "--data", "UCIDigits", *args]) == 1
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line[6:18].rstrip() for line in lines] == NAMES
    assert [line[6:18].rstrip() for line in lines if line.startswith("FAIL  ")] == failing
    assert message in next(line for line in lines if line.startswith("FAIL"))
    assert "Traceback" not in err
    assert list(snapshot(folder)) == ["file"]


def test_corrupt_data_are_told_and_not_replaced(
    tiny_mnist: Path, gzipped: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tiny_mnist / "MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    before = snapshot(tiny_mnist)
    with mirror(gzipped) as (address, requested):
        assert main([*DOCTOR, "--data.data_dir", str(tiny_mnist), "--data.mirrors", f'["{address}"]']) == 1
    failed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert re.search(rf"{path} is corrupt: SHA-256 \w{{64}} instead of \w{{64}}; put MNIST's files into", failed[0])
    assert requested == []
    assert snapshot(tiny_mnist) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--trainer.devices", "2"], "unrecognized arguments: --trainer.devices 2"),
        (
            ["--accelerator", "warp"],
            "--accelerator: expected one of ['auto', 'cpu', 'gpu', 'cuda', 'mps', 't",
        ),
        (["--num_nodes", "0"], "--num_nodes: "),
        (["--data", "Nope"], "--data: no class is named Nope"),
        (["--config", "nope.yaml"], "no configuration file at nope.yaml"),
        (["--data", "UCIDigits", "--data.batch_size", "0"], "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_flags_are_no_finding(args: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *args]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


def test_compute_is_compared_with_the_networks_formula() -> None:
    net = MLP().eval()
    loss, *gradients = loss_and_gradients(net)
    weights = [value.detach().double().numpy() for value in net.parameters()]
    inputs = [torch.rand((32, 784), generator=torch.Generator().manual_seed(0)).double().numpy()]
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        inputs.append(np.maximum(inputs[-1] @ weight.T + bias, 0 if len(inputs) < 3 else -np.inf))
    probabilities = np.exp(inputs[-1]) / np.exp(inputs[-1]).sum(axis=1, keepdims=True)
    labels = np.arange(32) % 10
    assert loss.item() == pytest.approx(-np.log(probabilities[np.arange(32), labels]).mean(), rel=1e-6)
    delta = (probabilities - np.eye(10)[labels]) / 32
    for layer in (2, 1, 0):
        np.testing.assert_allclose(gradients[2 * layer], delta.T @ inputs[layer], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(gradients[2 * layer + 1], delta.sum(axis=0), rtol=1e-4, atol=1e-7)
        delta = delta @ weights[2 * layer] * (inputs[layer] > 0)


def site(fabric: Any, stack: ExitStack) -> Site:
    return Site(fabric, "", UCIDigits(), Path("lightning_logs"), stack)


@pytest.mark.parametrize("wrong", [0, 2])
def test_a_sum_must_be_exact_everywhere(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    def all_reduce(values: torch.Tensor, op: object, async_op: bool) -> Any:
        if values.ndim:  # of two ranks, 1 + 2
            values.fill_(3)[:wrong] += 2**-20
        return SimpleNamespace(wait=lambda timeout: None)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    strategy = SimpleNamespace(num_nodes=1)
    fabric = SimpleNamespace(world_size=2, global_rank=0, device=torch.device("cpu"), strategy=strategy)
    with ExitStack() as stack:
        if wrong:
            with pytest.raises(InputError, match="2 of 109,386 sums over 2 processes are not 3"):
                check_collective(site(fabric, stack))
        else:
            assert check_collective(site(fabric, stack)).text.startswith("gloo sums 109,386 numbers over 2 processes")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_what_the_cpu_does_and_keeps_its_checkpoint() -> None:
    fabric = SimpleNamespace(device=torch.device("cuda:0"))
    with ExitStack() as stack:
        assert check_compute(site(fabric, stack)).text.startswith("loss and gradients on cuda")
        assert run.check_checkpoint(site(fabric, stack)).ok
        assert len(machine.check_memory(site(fabric, stack)).free) == 2
        assert torch.cuda.get_device_name(0) in machine.check_devices(site(fabric, stack)).text


def reports(*texts: str | Finding, check: str = "memory", per_host: int = 2) -> list[Report]:
    found = [Finding(text) if isinstance(text, str) else text for text in texts]
    return [Report(rank, f"n{rank // per_host}", {check: finding}) for rank, finding in enumerate(found)]


@pytest.mark.parametrize(
    ("found", "merged"),
    [
        (reports("a"), [("a", True)]),
        (reports("a", "a", "a"), [("a (3 ranks)", True)]),
        (reports("a", "a", "b", "a"), [("a (ranks 0-1 on n0, rank 3 on n1)", True), ("b (rank 2 on n1)", True)]),
        (
            reports("a", Finding("b", ok=False), "a", per_host=3),
            [("a (ranks 0, 2 on n0)", True), ("b (rank 1 on n0)", False)],
        ),
        (
            reports("a", "b", check="versions"),
            [
                ("a; must be the same everywhere (rank 0 on n0)", False),
                ("b; must be the same everywhere (rank 1 on n0)", False),
            ],
        ),
        (
            reports("a", Finding("b", ok=False), check="data"),
            [("a (rank 0 on n0)", True), ("b (rank 1 on n0)", False)],
        ),
        (
            reports(Finding("a", free=(3 * GIB, GIB)), Finding("a", free=(2 * GIB, 4 * GIB))),
            [("a; at least 2.0 GiB and 1.0 GiB free (2 ranks)", True)],
        ),
        (reports(Finding("a", free=(3 * GIB - 1,))), [("a; 2.9 GiB free", True)]),
        (
            reports(*"aaaaab", per_host=1),
            [("a (rank 0 on n0, rank 1 on n1, rank 2 on n2, rank 3 on n3 and on 1 more)", True),
             ("b (rank 5 on n5)", True)],
        ),
    ],
)  # fmt: skip
def test_ranks_share_a_line_where_they_agree_and_are_named_where_not(
    found: list[Report], merged: list[tuple[str, bool]]
) -> None:
    assert [(finding.text, finding.ok) for _, finding in merge(found)] == merged


STAT = {"": "anon 1\ninactive_file {}", "memory": "cache 1\ninactive_file 7\ntotal_inactive_file {}"}
V1 = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
V2 = "", "memory.max", "memory.current"
UNLIMITED = str(2**63 - 4096)


@pytest.mark.parametrize(
    ("cgroup", "version", "groups", "expected"),
    [
        ("0::/", V2, {}, (64 * GIB, 60 * GIB)),
        ("0::/job/step", V2, {"job/step": ("max", 3, 1)}, (64 * GIB, 60 * GIB)),
        ("0::/job/step", V2, {"job/step": ("max", 3, 1), "job": (str(8 * GIB), 3, 1)}, (8 * GIB, 6 * GIB)),
        ("0::/job", V2, {"job": (str(8 * GIB), 9, 0)}, (8 * GIB, 0)),
        ("7:cpu:/a\n3:memory:/job\n0::/", V1, {"job": (str(8 * GIB), 3, 0)}, (8 * GIB, 5 * GIB)),
        ("3:memory:/job", V1, {"job": (UNLIMITED, 3, 0)}, (64 * GIB, 60 * GIB)),
        ("3:memory:/outside/of/the/container", V1, {"": (str(2 * GIB), 1, 1)}, (2 * GIB, 2 * GIB)),
    ],
)
def test_memory_is_what_the_tightest_limit_leaves(
    tmp_path: Path,
    cgroup: str,
    version: tuple[str, str, str],
    groups: dict[str, tuple[str, int, int]],
    expected: tuple[int, int],
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {60 * 2**20} kB\nHugePages: 0\n")
    (tmp_path / "proc/self/cgroup").write_text(cgroup + "\n")
    mount, limit_file, used_file = version
    for group, (limit, used, cached) in groups.items():
        home = tmp_path / "sys/fs/cgroup" / mount / group
        home.mkdir(parents=True, exist_ok=True)
        (home / limit_file).write_text(limit + "\n")
        (home / used_file).write_text(f"{used * GIB}\n")
        (home / "memory.stat").write_text(STAT[mount].format(cached * GIB) + "\n")
    assert host_memory(tmp_path) == expected


def test_a_system_that_tells_of_no_free_memory_has_its_total_told(tmp_path: Path) -> None:
    assert host_memory(tmp_path) == (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make this process one of two that srun started on two nodes."""

    def become(rank: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        variables = TASKS | {"PROCID": str(rank), "NODEID": str(rank), "LOCALID": "0"}
        for name, value in variables.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(port)), ("OMP_NUM_THREADS", "1")):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        monkeypatch.setattr(doctor, "GRACE_SECONDS", 0)
        monkeypatch.setattr(doctor, "TIMEOUT", timedelta(seconds=1))

    return become


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_fit_the_devices_are_told_at_once(
    task: Callable[[int], None], capfd: pytest.CaptureFixture[str], rank: int
) -> None:
    task(rank)
    assert main([*DOCTOR, "--data", "UCIDigits", "--num_nodes", "1"]) == 1
    failed = [line for line in capfd.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == (2 if rank == 0 else 1)
    assert "; 2 processes were started, but --devices 1 on each of --num_nodes 1 take 1; start one pro" in failed[0]
    assert failed[0].endswith(f" (rank 1 on {socket.gethostname()})") == (rank == 1)


def test_a_rank_that_never_comes_is_one_line(task: Callable[[int], None], capfd: pytest.CaptureFixture[str]) -> None:
    task(0)
    assert main([*DOCTOR, "--data", "UCIDigits"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line[6:18].rstrip() for line in lines] == NAMES
    failed = [line for line in lines if line.startswith("FAIL")]
    assert len(failed) == 1
    assert "2 processes were awaited for 1 s: Timed out after " in failed[0]
    assert "1/2 clients joined; start all of them, on nodes that reach 127.0.0.1:" in failed[0]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}, (4, 2, 8)),
        ({"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}, (4, 2, 8)),
        ({"SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"}, (2, 2, 3)),
        ({"SLURM_NTASKS": "1"}, (1, 1, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "interactive"}, None),
    ],
)
def test_the_launcher_says_how_many_processes_there_are(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: tuple[int, int, int] | None
) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert doctor.launched() == expected


def test_two_processes_agree(folder: Path) -> None:
    """The one test that starts real processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "mnist_lightning", *DOCTOR, "--data", "UCIDigits"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr
    collective = (
        "gloo sums 109,386 numbers over 2 processes exactly, in # ms; fit takes them with --trainer.devices 2 "
        "--trainer.num_nodes 1"
    )
    data = "UCIDigits; 1,150 training, 287 validation, 360"
    assert masked(done.stdout) == sound(data, collective, least="at least ", end=" (2 ranks)")
    assert list(folder.iterdir()) == []
