"""Run the web application until a signal stops it."""

import gc
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mnist_lightning.errors import InputError, needs
from mnist_lightning.files import read_json
from mnist_lightning.serve.app import Network, make_app
from mnist_lightning.training.run import Run

with needs("serve"):
    import segno
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SECONDS_TO_WAIT = 10  # for a request's headers, and for a client that reads nothing of its answer
SECONDS_TO_FINISH = 30  # for the requests in progress when the server stops
MAX_CONNECTIONS = 500
NEW, ANSWERING = "new", "answering"  # states of a connection
MAX_HEAD = 64_000  # bytes of a request's headers, and of the trailers after its body


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, but connections that stand still are cut: uvicorn would wait for ever."""

    head = 0  # bytes since headers ended, or a part of a body came

    def connection_made(self, transport: Any) -> None:
        """Begin to watch a new connection."""
        super().connection_made(transport)
        self.watch(NEW)

    def watch(self, earlier: Any) -> None:
        """Cut the connection if nothing happened since the last look.

        Args:
            earlier: The state at that look: the bytes of an answer that the client has not read, or
                ``ANSWERING``, or else the last request, if there was one.
        """
        if self.parser is None:  # the connection is lost
            return
        is_answering = self.cycle is not None and not self.cycle.response_complete
        unread = self.transport.get_write_buffer_size()
        state = unread or (ANSWERING if is_answering else self.cycle)
        if state == earlier and state != ANSWERING:
            self.transport.abort()
        self.loop.call_later(SECONDS_TO_WAIT, self.watch, state)

    def on_headers_complete(self) -> None:
        """Count anew: the headers have ended."""
        super().on_headers_complete()
        self.head = 0

    def on_body(self, body: bytes) -> None:
        """Count anew: the body has its own bound."""
        super().on_body(body)
        self.head = 0

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request, and cut the connection if its headers or trailers do not end."""
        self.head += len(data)
        super().data_received(data)
        if self.head > MAX_HEAD:
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        InputError: If that is not possible.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(
            f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host"
        ) from error


def described(run: Run, name: str, device: str) -> Network:
    """Return a run's network with what the page says of it.

    Args:
        run: The run, or an exported file.
        name: What the user calls it.
        device: Torch's device.
    """
    record = run.record
    report = read_json(run.folder / "report" / "metrics.json")
    about = ""
    if "accuracy" in report:
        about = f"{report['accuracy']:.2%} right on {report['num_examples']:,} test images"
        about += f" of {report['dataset']}"
    elif record.get("best_val_acc") is not None:
        about = (
            f"{record['best_val_acc']:.2%} right on the validation images of {record['dataset']}"
        )
    elif run.checkpoint and run.checkpoint.suffix == ".safetensors":
        with suppress(KeyError, ValueError), safe_open(run.checkpoint, "pt") as file:
            texts = file.metadata()
            about = f"{float(texts['accuracy']):.2%} right on {texts['accuracy_on']}"
    net = run.model.net.to(device)
    kind = type(net).__name__
    return Network(net, name if name == kind else f"{name} ({kind})", about)


def own_addresses() -> list[str]:
    """Return the addresses of this machine that others in its network may reach, the usual first.

    It sends nothing.
    """
    found = []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("192.0.2.1", 9))  # where a packet would leave: an address of nobody
        found.append(asked.getsockname()[0])
    with suppress(OSError):
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    return [each for each in dict.fromkeys(found) if not ip_address(each).is_loopback]


def serve(
    networks: Sequence[Network], drawings: Path, host: str, port: int, token: str | None
) -> None:
    """Serve networks until SIGINT or SIGTERM; the requests in progress are answered first.

    Args:
        networks: The first one answers; the page shows the others beside it.
        drawings: The folder for the drawings that users keep.
        host: The address to listen on; 127.0.0.1 is reached from this machine only.
        port: The port; 0 takes a free one.
        token: What clients must send; None for nothing.

    Raises:
        InputError: If the address cannot be used.
    """
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        raise InputError(f"--token must be letters, digits and . _ ~ - alone, got {token!r}")
    with listen(host, port) as opened:
        own_address, own_port = opened.getsockname()[:2]
        is_local, is_ipv6 = ip_address(own_address).is_loopback, ":" in host
        is_everywhere = ip_address(own_address).is_unspecified
        here = "localhost" if is_everywhere else f"[{host}]" if is_ipv6 else host
        address, asked = f"http://{here}:{own_port}", f"?token={token}" if token else ""
        print(f"Draw a digit: {address}/{asked}   API: {address}/docs", flush=True)
        hosts = own_addresses() if is_everywhere else [] if is_local else [here]
        pages = [f"http://{each}:{own_port}/{asked}" for each in hosts]
        for page in pages[:1]:
            print(f"On a phone in the same network: {'   or '.join(pages)}", flush=True)
            segno.make(page, micro=False).terminal(sys.stdout, compact=True)
        if not is_local and not token:
            reach = f"Anyone who reaches {host} can send pictures and keep drawings"
            print(f"{reach}; --token asks for a password.", flush=True)
        app = make_app(networks, drawings, token)
        if is_local and not is_ipv6:  # a website whose name means 127.0.0.1 is refused
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1"])
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=SECONDS_TO_FINISH,
            server_header=False,
        )
        # What is loaded stays: looking through it for garbage would stop all requests for 0.3 s.
        gc.freeze()
        uvicorn.Server(config).run(sockets=[opened])
