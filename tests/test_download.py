"""Downloads from mirrors that misbehave: what is tried again, what is not, and that nothing half-written is left."""

import gzip
import hashlib
import io
import multiprocessing
import re
import ssl
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from conftest import snapshot
from mirror import mirror

from mnist_lightning import MNIST, FashionMNIST
from mnist_lightning.data import download
from mnist_lightning.errors import InputError

FIRST = "train-images-idx3-ubyte.gz"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wait for nothing between rounds; return how long was to be waited."""
    asked: list[float] = []
    monkeypatch.setattr(download.time, "sleep", asked.append)
    return asked


def fetched(folder: Path, *mirrors: str) -> dict[str, bytes | None]:
    MNIST(str(folder / "new"), mirrors=mirrors).prepare_data()
    return snapshot(folder / "new/MNIST/raw")


def refusal(folder: Path, *mirrors: str) -> str:
    """Return what is said when no mirror has it, and see that nothing is left."""
    with pytest.raises(InputError) as error:
        MNIST(str(folder / "new"), mirrors=mirrors).prepare_data()
    assert list(folder.iterdir()) == []
    assert str(error.value).startswith(f"{folder}/new/MNIST/raw/train-images-idx3-ubyte is missing, and no mirror has")
    assert str(error.value).endswith(
        f"; put MNIST's files into {folder}/new/MNIST/raw, name other --data.mirrors, or use --data UCIDigits, which "
        "needs no download"
    )
    return str(error.value)


@pytest.mark.parametrize("fault", ["408", "429", "500", "503", "reset", "cut", "short", "chunked cut"])
def test_what_may_pass_is_tried_again_after_a_while(
    gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path, fault: str, waits: list[float]
) -> None:
    with mirror(gzipped, fault, times=2) as (address, requested):
        assert fetched(tmp_path, address) == tiny_files
    assert sorted(requested) == sorted([*gzipped] * 3)
    assert len(waits) == 2 * len(gzipped)
    for short, long in zip(waits[::2], waits[1::2], strict=True):
        assert 1 <= short <= 2 <= long <= 4


CUT = {
    "cut": r"cut off: [\d,]+ bytes arrived, [\d,]+ are missing",
    "short": r"cut off: [\d,]+ bytes arrived, [\d,]+ unpacked",
}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("503", "HTTP 503"), ("reset", "Connection reset by peer"), ("chunked cut", "cut off"), *CUT.items()],
)
def test_it_is_given_up_after_three_rounds(
    gzipped: dict[str, bytes], tmp_path: Path, fault: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with mirror(gzipped, fault) as (address, requested):
        message = refusal(tmp_path, address)
    assert requested == [FIRST] * 3
    assert re.search(rf": tried {address} \({reason}\); put", message)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Downloading", "Trying", "Downloading", "Trying", "Downloading"]
    assert re.fullmatch(rf"Trying again in \d\.\d s: {address} \({reason}\)", lines[1])


WILL_NOT_PASS = [
    ("403", r"HTTP 403"),
    ("404", r"HTTP 404"),
    ("410", r"HTTP 410"),
    ("long", r"too large: more than [\d,]+ bytes"),
    ("endless", r"too large: more than [\d,]+ bytes"),
    ("noise", r"\\x1b\[2J no HTTP"),
    ("to file:///etc/passwd", r"redirected to file:///etc/passwd, which is not https or http"),
    (
        "to ftp://127.0.0.1/NAME",
        r"redirected to ftp://127\.0\.0\.1/train-images-idx3-ubyte\.gz, which is not https or .*",
    ),
    ("to http://[", r"redirected to http://\[, which is not https or http|Invalid IPv6 URL"),
]


@pytest.mark.parametrize(("fault", "reason"), WILL_NOT_PASS)
def test_what_will_not_pass_is_not_tried_again(
    gzipped: dict[str, bytes], tmp_path: Path, fault: str, reason: str, waits: list[float]
) -> None:
    with mirror(gzipped, fault) as (address, requested):
        message = refusal(tmp_path, address)
    assert re.search(rf": tried {address} \(({reason})\); put", message)
    assert requested == [FIRST]
    assert waits == []


@pytest.mark.parametrize("fault", ["404", "503", "cut", "short", "long", "noise"])
def test_another_mirror_is_tried_before_waiting(
    gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path, fault: str, waits: list[float]
) -> None:
    with mirror(gzipped, fault) as (bad, asked), mirror(gzipped) as (good, _):
        assert fetched(tmp_path, bad, good) == tiny_files
    assert sorted(asked) == sorted(gzipped)
    assert waits == []


def test_a_mirror_that_will_not_do_is_left_out_of_the_later_rounds(gzipped: dict[str, bytes], tmp_path: Path) -> None:
    with mirror(gzipped, "404") as (gone, asked), mirror(gzipped, "503") as (busy, requested):
        message = refusal(tmp_path, gone, busy)
    assert f"tried {gone} (HTTP 404), {busy} (HTTP 503);" in message
    assert (asked, requested) == ([FIRST], [FIRST] * 3)


@pytest.mark.parametrize("fault", ["chunked", "no length"])
def test_a_length_need_not_be_told(
    gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path, fault: str
) -> None:
    with mirror(gzipped, fault) as (address, _):
        assert fetched(tmp_path, address) == tiny_files


def test_a_stall_is_waited_for_three_times(
    gzipped: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
    with mirror(gzipped, "stall") as (address, requested):
        assert f"tried {address} (timed out);" in refusal(tmp_path, address)
    assert requested == [FIRST] * 3


@pytest.mark.parametrize("fault", ["drip", "drip headers"])
def test_a_drip_is_waited_for_once_and_for_so_long_only(
    gzipped: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(download, "DEADLINE_SECONDS", 0.3)
    with mirror(gzipped, fault) as (address, requested):
        assert f"tried {address} (too slow: not whole after 0.3 s);" in refusal(tmp_path, address)
    assert requested == [FIRST]


def test_a_redirect_is_followed(gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path) -> None:
    with mirror(gzipped) as (good, _), mirror(gzipped, f"to {good}NAME") as (address, _):
        assert fetched(tmp_path, address) == tiny_files


def test_redirects_are_followed_five_times(gzipped: dict[str, bytes], tmp_path: Path) -> None:
    with mirror(gzipped, "to /NAME") as (address, requested):
        assert f"tried {address} (redirected more than 5 times);" in refusal(tmp_path, address)
    assert requested == [FIRST] * 6


def test_a_redirect_does_not_leave_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(self: object, url: str, timeout: float) -> None:
        asked.append(url)
        headers = Message()
        headers["Location"] = "http://mirror.test/file"
        raise urllib.error.HTTPError(url, 302, "Found", headers, io.BytesIO())

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", answer)
    with pytest.raises(InputError, match=r"\(redirected to http://mirror\.test/file, which is not https\)$"):
        download.download("file", ["https://mirror.test"], 10, bytes)
    assert asked == ["https://mirror.test/file"]


@pytest.mark.parametrize(
    ("error", "times"),
    [
        (urllib.error.URLError(ssl.SSLCertVerificationError("certificate verify failed")), 1),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), 3),
        (urllib.error.URLError(TimeoutError("timed out")), 3),
        (urllib.error.URLError("no host given"), 1),
    ],
)
def test_which_failures_to_connect_may_pass(
    monkeypatch: pytest.MonkeyPatch, error: urllib.error.URLError, times: int
) -> None:
    asked = []

    def fail(self: object, url: str, timeout: float) -> None:
        asked.append(url)
        raise error

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", fail)
    with pytest.raises(InputError, match=r"no mirror has it: tried https://mirror\.test "):
        download.download("file", ["https://mirror.test"], 10, bytes)
    assert len(asked) == times


@pytest.mark.parametrize(
    "address", ["file:///etc", "ftp://mirror.test/", "mirror.test/mnist", "", "http://[", "data:,x"]
)
def test_mirrors_are_web_addresses(address: str) -> None:
    with pytest.raises(InputError) as error:
        MNIST(mirrors=["https://mirror.test", address])
    assert str(error.value) == f"mirrors must be https:// or http:// addresses, got {address}"


def test_the_default_mirrors_are_encrypted() -> None:
    for data in (MNIST(), FashionMNIST()):
        assert len(data.mirrors) == 2
        assert all(mirror.startswith("https://") for mirror in data.mirrors)


def test_wrong_bytes_are_refused_with_both_hashes(gzipped: dict[str, bytes], tmp_path: Path) -> None:
    wrong = bytearray(gzip.decompress(gzipped[FIRST]))
    wrong[-1] ^= 1
    with mirror(gzipped | {FIRST: gzip.compress(wrong)}) as (address, requested):
        message = refusal(tmp_path, address)
    expected = MNIST.files["train"][0].sha256
    assert f"wrong bytes: SHA-256 {hashlib.sha256(wrong).hexdigest()} instead of {expected}" in message
    assert requested == [FIRST]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (gzip.compress(b"\0" * 10_000_000), "too large: unpacked more than 156,816 bytes"),
        (b"\x1f\x8b no gzip", r"Error -3 while decompressing data: .*"),
        (b"<html>", r"Error -3 while decompressing data: .*"),
        (b"", "cut off: 0 bytes arrived, 0 unpacked"),
    ],
    ids=["bomb", "bad", "html", "empty"],
)
def test_what_is_no_such_file_is_refused(gzipped: dict[str, bytes], tmp_path: Path, body: bytes, reason: str) -> None:
    with mirror(gzipped | {FIRST: body}) as (address, _):
        assert re.search(rf"tried {address} \({reason}\); put", refusal(tmp_path, address))


def test_processes_that_need_the_data_download_it_once(
    gzipped: dict[str, bytes], tiny_files: dict[str, bytes], tmp_path: Path
) -> None:
    context: Any = multiprocessing.get_context("fork")  # started in no time
    with mirror(gzipped) as (address, requested):
        processes = [context.Process(target=fetched, args=(tmp_path, address)) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert sorted(requested) == sorted(gzipped)
    assert snapshot(tmp_path / "new/MNIST/raw") == tiny_files
