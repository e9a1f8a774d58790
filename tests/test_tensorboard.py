"""TensorBoard, started for real on runs, serves what they logged."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_lightning.cli import main
from mnist_lightning.loggers import read_history


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the second resumed once and tested."""
    folder = tmp_path_factory.mktemp("tensorboard")
    with contextlib.chdir(folder):
        fit = ["fit", "--data", "UCIDigits", "--trainer.accelerator", "cpu", "--trainer.max_epochs"]
        assert main([*fit, "2"]) == 0
        assert main([*fit, "2", "--data.batch_size", "64"]) == 0
        assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
        assert main(["test"]) == 0
    return folder / "lightning_logs"


@pytest.fixture(scope="module")
def ask(logs: Path) -> Iterator[Callable[..., Any]]:
    """A function that asks the server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:

        def ask(path: str, body: dict[str, Any] | None = None) -> Any:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/data/{path}")
            if body is not None:
                request.data = json.dumps(body).encode()
                request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=10) as response:
                content = response.read().decode()
            return content if "/graph?" in path else json.loads(content)

        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    # The reload that follows the start may still be reading the second run.
                    if "test/acc" in ask("plugin/scalars/tags").get("version_1", {}):
                        break
                except (OSError, urllib.error.URLError):
                    pass
                assert time.monotonic() < deadline, "TensorBoard did not serve the runs within a minute"
                assert server.poll() is None, "TensorBoard ended"
                time.sleep(0.2)
            yield ask
        finally:
            server.terminate()


def test_scalars(ask: Callable[..., Any], logs: Path) -> None:
    tags = set(ask("plugin/scalars/tags")["version_0"])
    assert tags == {"epoch", "lr", "train/loss", "train/acc", "val/loss", "val/acc"}
    for tag in ("train/loss", "val/acc"):
        points = ask(f"plugin/scalars/scalars?run=version_1&tag={tag}")
        expected = [(int(row["step"]), float(row[tag])) for row in read_history(logs / "version_1/metrics.csv")]
        assert [(step, value) for _, step, value in points] == [
            (step, pytest.approx(value)) for step, value in expected
        ]


def test_graph(ask: Callable[..., Any]) -> None:
    assert ask("plugin/graphs/info")["version_0"]["run_graph"]
    graph = ask("plugin/graphs/graph?run=version_0")
    for layer in ("Flatten", "Linear", "ReLU"):
        assert layer in graph


def test_hparams_show_real_metrics(ask: Callable[..., Any], logs: Path) -> None:
    experiment = ask("plugin/hparams/experiment", {})
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} == {"val/loss", "val/acc"}
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"batch_size", "net/init_args/hidden_sizes", "optimizer/init_args/lr"} <= names
    assert not any(name.startswith("_") for name in names)
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    groups = ask("plugin/hparams/session_groups", {"startIndex": 0, "sliceSize": 10, "allowedStatuses": statuses})
    sessions = {group["sessions"][0]["name"]: group for group in groups["sessionGroups"]}
    assert {name: group["hparams"]["batch_size"] for name, group in sessions.items()} == {
        "version_0": 32,
        "version_1": 64,
    }
    for name, group in sessions.items():
        last = read_history(logs / name / "metrics.csv")[-1]
        shown = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        assert shown == {tag: pytest.approx(float(last[tag])) for tag in ("val/loss", "val/acc")}
