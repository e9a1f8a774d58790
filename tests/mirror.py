"""A mirror on loopback that can misbehave."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def mirror(files: dict[str, bytes], fault: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve files; give the address and the list of requested names.

    Args:
        files: Content by name.
        fault: ``missing`` answers 404; ``cut`` closes the connection half way; ``short`` sends half as if it were
            all. Wrong bytes are a matter of ``files``.
    """
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            requested.append(name)
            if fault == "missing" or name not in files:
                self.send_error(404)
                return
            body = files[name][: len(files[name]) // 2] if fault == "short" else files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
