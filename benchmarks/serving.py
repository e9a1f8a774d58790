"""Measure `serve` beside other servers with the same network.

Requests per second, their latency, and memory.

    python benchmarks/serving.py --ckpt_path RUN [--seconds 10] [--peers_python PYTHON]

`wrk` sends one image as JSON, and a photograph of a page with digits, over 1, 8 and 64 connections.
Each server is a process of its own, or several, and first has to give the answer that the network
gives here. FastAPI is the usual handler without batching, with the settings of uvicorn that `serve`
has; Gradio is asked without its queue; LitServe waits up to 5 ms for a batch of up to 64. Those
that are not installed are skipped.
"""

import argparse
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import measure
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from mnist_lightning import load_run
from mnist_lightning.inference import classify
from mnist_lightning.pictures.read import read_picture
from mnist_lightning.pictures.recognize import recognize

try:
    from litserve import LitAPI
except ImportError:
    LitAPI = object

OURS, CONNECTIONS = "serve", (1, 8, 64)
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "CUDA_VISIBLE_DEVICES": "",
}
ENVIRONMENT = os.environ | ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent.parent)}
URLS = {OURS: "/predict", "fastapi": "/{}", "gradio": "/gradio_api/run/{}", "litserve": "/predict"}
LUA = """wrk.method, wrk.headers["Content-Type"] = "POST", "%s"
wrk.body = io.open("%s", "rb"):read("*a")
function done(summary, latency)
  local errors, n = summary.errors, latency:percentile(50)
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format("\\nmeasured %%d %%d %%d %%d %%d %%d",
    summary.requests, summary.duration, errors.status, lost, n, latency:percentile(99)))
end"""


def numbers(net: nn.Module, images: list[list[list[int]]]) -> dict[str, Any]:
    """Return what a server says of images."""
    rows = classify(net, np.array(images, np.uint8))
    return {"digits": rows.argmax(axis=1).tolist(), "probabilities": rows.tolist()}


def page(net: nn.Module, jpeg: bytes) -> dict[str, Any]:
    """Return what a server says of a photograph."""
    reading = recognize(read_picture(jpeg), net)
    digits = [
        digit._asdict() | {"probabilities": digit.probabilities.tolist(), "pixels": None}
        for digit in reading
    ]
    return {"text": reading.text, "digits": digits}


def fastapi(net: nn.Module, port: int) -> None:
    import uvicorn
    from fastapi import Body, FastAPI

    app = FastAPI()

    @app.post("/images")
    def of_images(images: Annotated[list[list[list[int]]], Body(embed=True)]) -> dict[str, Any]:
        return numbers(net, images)

    @app.post("/photo")
    def of_photo(photo: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
        return page(net, photo)

    uvicorn.run(
        app, port=port, http="httptools", log_level="warning", access_log=False, server_header=False
    )


def gradio(net: nn.Module, port: int) -> None:
    from gradio import Blocks, api

    def images(images: list) -> dict:  # type: ignore[type-arg]
        return numbers(net, images)

    def photo(photo: str) -> dict:  # type: ignore[type-arg]
        return page(net, base64.b64decode(photo))

    with Blocks() as blocks:
        api(images, api_name="images", queue=False)
        api(photo, api_name="photo", queue=False)
    blocks.launch(server_name="127.0.0.1", server_port=port, quiet=True)


class Lit(LitAPI):
    """LitServe's model; it has a process of its own."""

    def __init__(self, ckpt_path: str) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.005)
        self.ckpt_path = ckpt_path

    def setup(self, device: str) -> None:
        """Load the network, in the process that uses it."""
        self.net = load_run(self.ckpt_path).model.net

    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what is said of each request of a batch."""
        if "photo" in requests[0]:
            return [page(self.net, base64.b64decode(request["photo"])) for request in requests]
        rows = classify(
            self.net, np.array([request["images"][0] for request in requests], np.uint8)
        )
        return [{"digits": [int(row.argmax())], "probabilities": [row.tolist()]} for row in rows]


def litserve(ckpt_path: str, port: int) -> None:
    from litserve import LitServer

    LitServer(Lit(ckpt_path), accelerator="cpu", timeout=60).run(
        host="127.0.0.1",
        port=port,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


def processes(pid: int) -> list[int]:
    """Return a process and all those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in processes(int(child)))]


def megabytes(pid: int) -> float:
    """Return the resident memory of a server, all its processes together."""
    status = "".join(Path(f"/proc/{each}/status").read_text() for each in processes(pid))
    return (
        sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1e3
    )


def answer(url: str, body: bytes, kind: str) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@contextmanager
def started(name: str, python: str, ckpt_path: str) -> Iterator[tuple[int, str]]:
    """Start a server; yield its process and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ours = ["-m", "mnist_lightning", "serve", "--accelerator", "cpu"]
    command = [
        python,
        *(ours if name == OURS else [__file__, "--server", name]),
        "--ckpt_path",
        ckpt_path,
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--port", port], env=ENVIRONMENT, stdout=log, stderr=log
        )
        try:
            for _ in range(1200):
                with socket.socket() as link:
                    if process.poll() is not None or link.connect_ex(("127.0.0.1", int(port))) == 0:
                        break
                time.sleep(0.1)
            yield process.pid, f"http://127.0.0.1:{port}"
        except (OSError, AssertionError) as error:
            log.seek(0)
            raise SystemExit(f"{name} failed: {error!r}\n{log.read()[-4000:]}") from error
        finally:
            running = processes(process.pid) if process.poll() is None else []
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            for each in running:  # LitServe leaves processes behind
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            process.wait()


def load(url: str, body: bytes, kind: str, connections: int, seconds: int) -> list[str]:
    """Return the figures of a load.

    Requests per second, p50, p99 in ms, answers with an error, lost connections.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "body").write_bytes(body)
        Path(folder, "post.lua").write_text(LUA % (kind, f"{folder}/body"))
        flags = [
            "-t",
            "1",
            "-c",
            str(connections),
            "-d",
            f"{seconds}s",
            "--timeout",
            "30s",
            "-s",
            f"{folder}/post.lua",
        ]
        printed = subprocess.run(
            ["wrk", *flags, "--latency", url], capture_output=True, text=True, check=True
        ).stdout
    number, time, failed, lost, p50, p99 = map(int, printed.split("measured ")[1].split())
    return [
        f"{(number - failed) / time * 1e6:,.0f}",
        f"{p50 / 1e3:.1f}",
        f"{p99 / 1e3:.1f}",
        f"{failed}",
        f"{lost}",
    ]


def photograph() -> bytes:
    """Return a JPEG of 1200x900 pixels with 40 digits in grey ink, in uneven light, with noise."""
    rng, digits = np.random.default_rng(0), load_digits().images[:40]
    ink = np.zeros((900, 1200))
    for number, digit in enumerate(digits):
        row, column = divmod(number, 8)
        soft = Image.fromarray((digit * 15.9).astype(np.uint8)).resize(
            (80, 80), Image.Resampling.BICUBIC
        )
        ink[70 + 160 * row : 150 + 160 * row, 90 + 135 * column : 170 + 135 * column] = (
            np.asarray(soft) / 255
        )
    light = np.linspace(0.75, 1, 1200) * np.linspace(1, 0.9, 900)[:, None] * 235
    grey = light * (1 - 0.8 * ink) + rng.normal(0, 4, ink.shape)
    file = io.BytesIO()
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB").save(
        file, "jpeg", quality=90
    )
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt_path", required=True, help="a run, or a checkpoint")
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument(
        "--peers_python", default=sys.executable, help="an interpreter with Gradio and LitServe"
    )
    parser.add_argument(
        "--only", nargs="+", choices=URLS, default=list(URLS), help="only these servers"
    )
    parser.add_argument("--server", choices=URLS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.server == "litserve":
        return litserve(args.ckpt_path, args.port)
    net = load_run(args.ckpt_path).model.net
    if args.server:
        return {"fastapi": fastapi, "gradio": gradio}[args.server](net, args.port)

    images, jpeg = (
        (load_digits().images[:1] * 15.9).astype(int).repeat(3, 1).repeat(3, 2),
        photograph(),
    )
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).tolist()
    encoded = base64.b64encode(jpeg).decode()
    expected = {
        "images": numbers(net, images)["digits"],
        "photo": [each["digit"] for each in page(net, jpeg)["digits"]],
    }
    rows = []
    for name in args.only:
        python = args.peers_python if name in ("gradio", "litserve") else sys.executable
        if (
            name != OURS
            and subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode
        ):
            print(f"{name} is not installed for {python}: skipped", file=sys.stderr)
            continue
        for what, content in {"images": images, "photo": encoded}.items():
            body, kind = (
                json.dumps({"data": [content]} if name == "gradio" else {what: content}).encode(),
                "json",
            )
            if what == "photo" and name in (OURS, "fastapi"):
                body, kind = jpeg, "jpeg"
            kind = f"{'image' if kind == 'jpeg' else 'application'}/{kind}"
            with started(name, python, args.ckpt_path) as (pid, address):
                url = address + URLS[name].format(what)
                said = answer(url, body, kind)
                said = said["data"][0] if name == "gradio" else said.get("pictures") or said
                said = said[0] if isinstance(said, list) else said
                digits = [
                    each["digit"] if isinstance(each, dict) else each for each in said["digits"]
                ]
                assert digits == expected[what], f"{name} reads {digits}, not {expected[what]}"
                for connections in CONNECTIONS:
                    time.sleep(
                        args.seconds / 2
                    )  # what the last load left behind is answered meanwhile
                    before = megabytes(pid)
                    figures = load(url, body, kind, connections, args.seconds)
                    memory = [f"{before:.0f}", f"{megabytes(pid):.0f}"]
                    rows.append([f"{what}, {connections}", name, *figures, *memory])
                    print(*rows[-1], file=sys.stderr, flush=True)
    order = [f"{what}, {connections}" for what in expected for connections in CONNECTIONS]
    rows.sort(key=lambda row: order.index(row[0]))
    print(
        measure.table(
            ["", "", "requests/s", "p50, ms", "p99, ms", "errors", "lost", "MB before", "MB after"],
            rows,
        )
    )
    return None


if __name__ == "__main__":
    main()
