"""A mirror on loopback that can misbehave."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def mirror(files: dict[str, bytes], fault: str = "", times: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve files; give the address and the list of requested names.

    Args:
        files: Content by name.
        fault: A number is the status of every answer. ``to ADDRESS`` redirects there, NAME in it being the file's.
            ``stall`` sends nothing after the headers, ``drip`` a byte of the body every 10 ms, ``drip headers`` does
            so before the body; ``reset`` resets the connection half way, ``cut`` closes it; ``short`` sends half as if
            it were all, ``long`` and ``endless`` too much, with and without saying how much; ``noise`` is no HTTP.
            ``chunked``, ``chunked cut`` and ``no length`` do not say the length. Wrong bytes are a matter of ``files``.
        times: How many requests of each name meet the fault; all by default.
    """
    requested: list[str] = []
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            name = self.path.removeprefix("/")
            requested.append(name)
            now = "" if times is not None and Counter(requested)[name] > times else fault
            if now.isdecimal() or name not in files:
                self.send_error(int(now or 404))
                return
            if now.startswith("to "):
                self.send_response(302)
                self.send_header("Location", now.removeprefix("to ").replace("NAME", name))
                self.end_headers()
                return
            if now == "noise":
                self.wfile.write(b"\x1b[2J no HTTP\r\n\r\n")
                return
            body = files[name]
            half = body[: len(body) // 2]
            body = {"short": half, "long": body + bytes(10_000_000)}.get(now, body)
            self.send_response(200)
            if now == "drip headers":
                self.flush_headers()
                self._drip(b"X-Header: x\r\n" * 1000)
            if now.startswith("chunked") or now == "endless":
                self.send_header("Transfer-Encoding", "chunked")
            elif now != "no length":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if now == "stall":
                stopped.wait()
            elif now == "drip":
                self._drip(body)
            elif now in ("cut", "reset"):
                self.wfile.write(half)
                if now == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
            elif now.startswith("chunked"):
                for part in (half, body[len(half) :]):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"" if now.endswith("cut") else b"0\r\n\r\n")
            elif now == "endless":
                while not stopped.is_set():
                    self.wfile.write(b"10000\r\n%s\r\n" % bytes(0x10000))
            else:
                self.wfile.write(body)

        def _drip(self, content: bytes) -> None:
            for byte in content:
                if stopped.wait(0.01):
                    return
                self.wfile.write(bytes([byte]))

        def handle(self) -> None:
            with suppress(OSError):  # whoever asked has gone
                super().handle()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", requested
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
