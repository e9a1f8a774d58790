"""The launchers in configs/cluster: bash can read them, and torchrun's trains with DDP, on one node and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from slurm import free_ports

from mnist_lightning.loggers import read_history

SCRIPTS = ROOT / "configs/cluster"
TWO_PROCESSES = [{"PROCESSES": "2"}]
TWO_NODES = [{"NNODES": "2", "NODE_RANK": rank, "MASTER_ADDR": "127.0.0.1", "PROCESSES": "1"} for rank in "01"]


def launch(folder: Path, nodes: list[dict[str, str]], *args: str) -> list[str]:
    """What each node printed when all have ended, and ended well."""
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_PORT": str(free_ports(1)[0]),
    }
    command = [SCRIPTS / "torchrun.sh", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launched = [subprocess.Popen(command, env=env | node, cwd=folder, **pipes) for node in nodes]
    try:
        printed = [node.communicate(timeout=120)[0] for node in launched]
    finally:
        for node in launched:
            node.terminate()
    assert [node.returncode for node in launched] == [0] * len(nodes), printed
    return printed


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_a_script(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [TWO_PROCESSES, TWO_NODES], ids=["two processes", "two nodes"])
def test_torchrun_trains_one_run_together(nodes: list[dict[str, str]], tmp_path: Path) -> None:
    printed = launch(tmp_path, nodes, "fit", "--data", "UCIDigits", "--trainer.max_epochs", "2")
    (run,) = (tmp_path / "lightning_logs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert (record["devices"], record["epochs"], record["global_step"]) == (2, 2, 2 * 18)  # 1,150 / 2 / 32 batches
    assert [row["epoch"] for row in read_history(run / "metrics.csv")] == ["0", "1"]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert "".join(printed).count("Run folder: ") == 1, "one process speaks"


def test_torchrun_asks_for_what_two_nodes_need(tmp_path: Path) -> None:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NNODES": "2"}
    done = subprocess.run([SCRIPTS / "torchrun.sh", "fit"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "NODE_RANK: says which node this is: 0 to NNODES - 1" in done.stderr
