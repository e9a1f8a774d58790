"""Run the web application until a signal stops it."""

import gc
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from torch import nn

from mnist_lightning.errors import InputError, needs
from mnist_lightning.serve.app import make_app

with needs("serve"):
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SECONDS_TO_ASK = 10  # for a request's headers
SECONDS_TO_TAKE = 30  # for the client to read its answer
SECONDS_TO_FINISH = 30  # for the requests in progress when the server stops
MAX_CONNECTIONS = 500


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, which closes connections that stand still: uvicorn itself would wait for ever."""

    def connection_made(self, transport: Any) -> None:
        """Begin to watch a new connection."""
        super().connection_made(transport)
        self.watch("new")

    def watch(self, earlier: Any) -> None:
        """Close the connection if no request came since the last look, and cut it if it is still not closed then."""
        if self.parser is None:  # the connection is lost
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        state = "closing" if self.transport.is_closing() else self.cycle if is_idle else "busy"
        if state == earlier == "closing":
            self.transport.abort()
        elif is_idle and state is earlier:
            self.transport.close()
        self.loop.call_later(SECONDS_TO_ASK, self.watch, state)

    def pause_writing(self) -> None:
        """Give the client a while to take what is written."""
        super().pause_writing()
        self.unread = self.loop.call_later(SECONDS_TO_TAKE, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it did."""
        super().resume_writing()
        self.unread.cancel()


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
        raise InputError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from error


def serve(net: nn.Module, drawings: Path, host: str, port: int, token: str | None) -> None:
    """Serve a network until SIGINT or SIGTERM; the requests in progress are answered first.

    Args:
        net: From ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``.
        drawings: The folder for the drawings that users keep.
        host: The address to listen on; 127.0.0.1 is reached from this machine only.
        port: The port; 0 takes a free one.
        token: What clients must send; None for nothing.

    Raises:
        InputError: If the address cannot be used.
    """
    with listen(host, port) as opened:
        address = f"{f'[{host}]' if ':' in host else host}:{opened.getsockname()[1]}"
        print(
            f"Draw a digit: http://{address}/{f'?token={token}' if token else ''}   API: http://{address}/docs",
            flush=True,
        )
        if host != "localhost" and not ip_address(host).is_loopback:
            advice = "" if token else "; --token asks for a password"
            print(
                f"Anyone who reaches {host} over the network can send pictures and keep drawings{advice}.", flush=True
            )
        config = uvicorn.Config(
            make_app(net, drawings, token),
            http=Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=SECONDS_TO_FINISH,
            server_header=False,
        )
        gc.freeze()  # what is loaded stays: looking through it for garbage would stop all requests for 0.3 s
        uvicorn.Server(config).run(sockets=[opened])
