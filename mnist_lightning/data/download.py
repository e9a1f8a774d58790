"""Files from mirrors, which may be slow, broken or hostile: bounded in size and time, and tried again if that may help.

A mirror is not trusted, whoever named it: the caller verifies what it sends.
"""

import http.client
import random
import ssl
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from urllib.parse import urljoin, urlsplit

from mnist_lightning.errors import InputError, printable

SCHEMES = ("https", "http")
TIMEOUT_SECONDS = 30  # for each wait: to connect, and for whatever comes next
DEADLINE_SECONDS = 900  # for a whole file from one mirror: FashionMNIST's 26 MB at 30 kB/s
ROUNDS = 3
BACK_OFF_SECONDS = 1.0  # before the second round; twice that before the third, and up to as much again by chance
REDIRECTS = 5
CHUNK = 1 << 16


def check_mirrors(mirrors: Sequence[str]) -> None:
    """Check that mirrors are web addresses.

    Raises:
        InputError: If one is anything else, such as ``file://`` or ``ftp://``.
    """
    for mirror in mirrors:
        if _scheme(mirror) not in SCHEMES:
            raise InputError(f"mirrors must be https:// or http:// addresses, got {mirror}")


def download(name: str, mirrors: Sequence[str], largest: int, verified: Callable[[bytes], bytes]) -> bytes:
    """Download a file from the first mirror that has it.

    What may pass, such as a timeout or a body that was cut off, is tried again once every mirror has been tried; what
    will not, such as wrong bytes, is not.

    Args:
        name: The file's name on the mirrors.
        mirrors: Addresses of folders.
        largest: Bytes that the file may have at most; no more are read.
        verified: Turns what arrived into what is wanted, or raises: ``ConnectionError`` where it is cut off,
            ``ValueError`` where it is anything else.

    Returns:
        What ``verified`` made of it.

    Raises:
        InputError: If no mirror has it; the reason is told for each.
    """
    failures: dict[str, str] = {}
    remaining = list(mirrors)
    for attempt in range(ROUNDS):
        if attempt:
            seconds = BACK_OFF_SECONDS * 2 ** (attempt - 1) * random.uniform(1, 2)
            reasons = ", ".join(f"{mirror} ({failures[mirror]})" for mirror in remaining)
            print(f"Trying again in {seconds:.1f} s: {reasons}", flush=True)
            time.sleep(seconds)
        for mirror in list(remaining):
            url = f"{mirror.rstrip('/')}/{name}"
            print(f"Downloading {url}", flush=True)
            try:
                return verified(_fetch(url, largest))
            except (OSError, http.client.HTTPException, zlib.error, ValueError) as error:
                failures[mirror] = _reason(error)
                if not _may_pass(error):
                    remaining.remove(mirror)
        if not remaining:
            break
    tried = ", ".join(f"{mirror} ({reason})" for mirror, reason in failures.items())
    raise InputError(f"no mirror has it: tried {tried or 'none'}")


class _Refused(ValueError):
    """What a mirror answered is not for us."""


def _fetch(url: str, largest: int) -> bytes:
    """Return what is at an address, within the deadline.

    The timeout is for each wait alone: a mirror that sends a byte now and then would keep us for ever, be it within
    its headers, where only another thread can see to it.
    """
    body: Future[bytes] = Future()
    deadline = time.monotonic() + DEADLINE_SECONDS

    def read() -> None:
        try:
            body.set_result(_read(url, largest, deadline))
        except BaseException as error:
            body.set_exception(error)

    Thread(target=read, daemon=True).start()  # daemon: left behind, it keeps no process from ending
    try:
        return body.result(DEADLINE_SECONDS)
    except TimeoutError:
        if body.done():  # a timeout of its own
            raise
        raise _too_slow() from None


def _read(url: str, largest: int, deadline: float) -> bytes:
    content = bytearray()
    with _open(url) as response:
        while chunk := response.read1(CHUNK):
            content += chunk
            if len(content) > largest:
                raise _Refused(f"too large: more than {largest:,} bytes")
            if time.monotonic() > deadline:
                raise _too_slow()
        if response.length:
            raise ConnectionError(f"cut off: {len(content):,} bytes arrived, {response.length:,} are missing")
    return bytes(content)


def _open(url: str) -> http.client.HTTPResponse:
    """Open an address and follow a few redirects, within the web and never out of TLS."""
    # urllib's own opener would also take file: and ftp:, and reads the body of a redirect, however large.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    for _ in range(REDIRECTS + 1):
        try:
            response: http.client.HTTPResponse = opener.open(url, timeout=TIMEOUT_SECONDS)
            return response
        except urllib.error.HTTPError as error:
            with error:
                target = urljoin(url, error.headers["Location"] or "")
                if error.code not in (301, 302, 303, 307, 308):
                    raise
        safe = SCHEMES[:1] if _scheme(url) == "https" else SCHEMES
        if _scheme(target) not in safe:
            raise _Refused(f"redirected to {target}, which is not {' or '.join(safe)}")
        url = target
    raise _Refused(f"redirected more than {REDIRECTS} times")


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:  # such as half an IPv6 address
        return ""


def _too_slow() -> _Refused:
    return _Refused(f"too slow: not whole after {DEADLINE_SECONDS:,} s")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429) or error.code >= 500
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(cause, (OSError, http.client.IncompleteRead)) and not isinstance(
        cause, ssl.SSLCertVerificationError
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, http.client.IncompleteRead):
        return "cut off"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = (getattr(reason, "strerror", None) or str(reason)).strip() or type(reason).__name__
    return printable(text if len(text) <= 300 else f"{text[:297]}...")
