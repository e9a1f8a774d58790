"""What stands before the answers: the token, the limits of requests, and their measurements."""

import asyncio
import hmac
import time
from collections.abc import Mapping

from mnist_lightning.errors import needs

with needs("serve"):
    from fastapi import HTTPException
    from fastapi.responses import JSONResponse
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_REQUESTS = 64  # in progress; the next one is refused with 503
MAX_BODY = 10_000_000  # bytes
SECONDS_TO_SEND = 10  # for a request's body
PATHS = ("/", "/docs", "/openapi.json", "/health", "/metrics", "/predict", "/drawings", "/seen")
PRIVATE = ("/metrics", "/drawings")  # what asks for the token also with GET
RETRY = {"Retry-After": "1"}  # seconds


class Gate:
    """Let a bounded number of requests in, with the token, and count them.

    Args:
        app: The application behind it.
        token: What ``Authorization: Bearer`` must give for POST and ``PRIVATE``; None for nothing.
        registry: Where the measurements are kept.
    """

    def __init__(self, app: ASGIApp, token: str | None, registry: CollectorRegistry) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode() if token else None
        self.requests = Counter(
            "digits_requests", "Answered requests.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram("digits_request_seconds", "Seconds to answer.", registry=registry)
        self.number = 0
        busy = Gauge("digits_requests_in_progress", "Requests in progress.", registry=registry)
        busy.set_function(lambda: self.number)

    def has_token(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request has the token, if one is asked for."""
        given = headers.get(b"authorization", b"")
        return self.expected is None or hmac.compare_digest(given, self.expected)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500
        path, is_post = scope["path"], scope["method"] == "POST"

        async def note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        app, headers = self.app, dict(scope["headers"])
        if is_post and headers.get(b"sec-fetch-site") == b"cross-site":
            app = refusal(403, "another website may not send requests")
        elif (is_post or path in PRIVATE) and not self.has_token(headers):
            app = refusal(401, "the token is missing or wrong: send Authorization: Bearer TOKEN")
        elif is_post and self.number >= MAX_REQUESTS:
            app = refusal(503, f"{MAX_REQUESTS} requests are in progress: try again later", RETRY)
        self.number += 1
        try:
            await app(scope, bounded(receive), note)
        finally:
            self.number -= 1
            self.requests.labels(path if path in PATHS else "other", status).inc()
            if path == "/predict":
                self.seconds.observe(time.perf_counter() - start)


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer to a request that is refused."""
    return JSONResponse({"error": message}, status, headers)


def bounded(receive: Receive) -> Receive:
    """Return ``receive``, but it refuses a body with too many bytes, or that takes too long."""
    size, end = 0, asyncio.get_running_loop().time() + SECONDS_TO_SEND

    async def part() -> Message:
        nonlocal size
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not come within {SECONDS_TO_SEND} seconds"
            ) from None
        if message["type"] == "http.disconnect":  # nobody reads this: the client has left
            raise HTTPException(400, "the body is not complete")
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            raise HTTPException(413, f"the body must have at most {MAX_BODY:,} bytes")
        return message

    return part
