"""The server answers as the library does.

Bad requests, slow clients and too many of them are refused in one line.
"""

import asyncio
import base64
import contextlib
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from conftest import attempt
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from painting import content, enlarged
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mnist_lightning import MLP
from mnist_lightning.data import drawings
from mnist_lightning.data.drawings import Drawings, keep
from mnist_lightning.inference import classify
from mnist_lightning.pictures.recognize import recognize
from mnist_lightning.serve import app as module
from mnist_lightning.serve import gate, server
from mnist_lightning.serve.app import Network, make_app

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
IMAGE = json.dumps(IMAGES[0].tolist()).encode()
LINE = [enlarged(image, 8) for image in load_digits().images[[3, 14, 27, 36]]]
PAGE = np.pad(np.hstack(LINE), ((28, 28), (20, 20)), constant_values=255)
REQUEST = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s\r\n\r\n"
SENT = REQUEST % (b"/predict", b"Content-Length: %d" % len(IMAGE)) + IMAGE
NUMBERS, FORM = "application/json", "multipart/form-data; boundary=x"


def form(*pictures: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\n'
    return b"".join(head + picture + b"\r\n" for picture in pictures) + b"--x--\r\n"


PNG, JPEG, BOMB = content(PAGE), content(PAGE, "JPEG"), bytearray(content(PAGE))
BOMB[16:24] = struct.pack(">II", 30_000, 30_000)
BOMB[29:33] = struct.pack(">I", zlib.crc32(BOMB[12:29]))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return MLP([8])


@pytest.fixture(scope="module")
def app(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return make_app([Network(net)], tmp_path_factory.mktemp("data") / "Drawings")


def link(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")


def ask(
    app: FastAPI, path: str = "/predict", body: Any = None, kind: Any = NUMBERS, **headers: str
) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with link(app) as client:
            method = "GET" if body is None else "POST"
            return await client.request(
                method, path, content=body, headers={"Content-Type": kind, **headers}
            )

    return asyncio.run(asked())


def refused(answer: httpx.Response) -> int:
    """Return the status of an answer that refuses in one line."""
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].isprintable()
    return answer.status_code


def drawing(image: np.ndarray, label: object) -> str:
    """What the page sends to keep a drawing."""
    return json.dumps({"label": label, "pixels": base64.b64encode(content(image)).decode()})


def test_images_as_numbers(app: FastAPI, net: nn.Module) -> None:
    shares, rows = IMAGES / 255, classify(net, IMAGES)
    for sent in (
        {"images": IMAGES.tolist()},
        shares.tolist(),
        [*IMAGES[:9].tolist(), *shares[9:].tolist()],
    ):
        answer = ask(app, body=json.dumps(sent)).json()
        assert answer["digits"] == rows.argmax(axis=1).tolist()
        np.testing.assert_allclose(answer["probabilities"], rows, atol=1e-6)
        np.testing.assert_allclose(answer["confidences"], rows.max(axis=1), atol=1e-6)
    assert ask(app, body=IMAGE).json()["digits"] == [rows[0].argmax()]


def test_pictures(app: FastAPI, net: nn.Module) -> None:
    pictures = [PAGE, PAGE[:, :150]]
    readings, bodies, path = (
        recognize(pictures, net),
        list(map(content, pictures)),
        "/predict?pixels=true",
    )
    answers = ask(app, path, form(*bodies), FORM).json()["pictures"]
    assert [len(answer["digits"]) for answer in answers] == [4, 2]
    assert ask(app, path, PNG, "image/png").json()["pictures"] == answers[:1]
    for reading, answer in zip(readings, answers, strict=True):
        assert answer["text"] == reading.text
        for digit, said in zip(reading, answer["digits"], strict=True):
            assert all(
                said[name] == getattr(digit, name)
                for name in ("digit", "certain", "line", "number")
            )
            assert tuple(said["box"]) == digit.box
            np.testing.assert_allclose(said["probabilities"], digit.probabilities, atol=1e-6)
            seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(said["pixels"]))))
            np.testing.assert_array_equal(seen, digit.pixels)


def test_files_with_pages(app: FastAPI, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [Image.fromarray(page) for page in (PAGE, PAGE[:, :150])]
    scan = content(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    (answer,) = ask(app, body=scan, kind="image/tiff").json()["pictures"]
    assert [digit["page"] for digit in answer["digits"]] == [1, 1, 1, 1, 2, 2]
    assert answer["text"] == recognize(scan, net).text
    small = Image.new("L", (8, 8))
    many = content(small, "TIFF", save_all=True, append_images=[small] * 50)
    answer = ask(app, body=many, kind="image/tiff")
    assert refused(answer) == 422
    assert "at most 50 pages" in answer.json()["error"]
    monkeypatch.setattr(module, "SECONDS_TO_READ", -1)
    assert "at most 50 pages" in ask(app, body=scan, kind="image/tiff").json()["error"]


def test_pdf_and_heic(app: FastAPI, net: nn.Module) -> None:
    pytest.importorskip("pypdfium2")
    heif = pytest.importorskip("pillow_heif")
    page = Image.fromarray(PAGE)
    heic = io.BytesIO()
    heif.from_pillow(page.convert("RGB")).save(heic)
    pdf = content(page, "PDF", save_all=True, append_images=[page.copy(), page.copy()])
    first, second = ask(app, body=form(pdf, heic.getvalue()), kind=FORM).json()["pictures"]
    assert [digit["page"] for digit in first["digits"]] == [1] * 4 + [2] * 4 + [3] * 4
    assert len(second["digits"]) == 4


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        *(("image/png", body, 422) for body in (PNG[:200], JPEG[:900], bytes(BOMB), b"", b"[[0]]")),
        *(
            (NUMBERS, body, 422)
            for body in (b"", PNG, b"\xff", b"null", b"[[[NaN]]]", b"[" * 100_000, b"9" * 5000)
        ),
        *(
            (NUMBERS, json.dumps([[[x] * 28] * 28]), 422)
            for x in (-1, 256, 1e300, 10**400, "a", None, [0])
        ),
        *(
            (NUMBERS, json.dumps({"images": x}), 422)
            for x in ([], {}, "x", [[0] * 28] * 27 + [[0]], [[[0]]])
        ),
        (NUMBERS, json.dumps(["A" * 50_000, *"x" * 9_900]), 422),  # as NumPy's strings 2 GB
        (
            "image/jpeg",
            JPEG.replace(b"\xff\xda", b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 200 + b"\xff\xda"),
            422,
        ),
        *(
            (FORM, form(*[PNG] * pictures), status)
            for pictures, status in ((0, 422), (20, 200), (21, 400))
        ),
        *(
            (f"{FORM}; charset={name}", form(PNG), status)
            for name, status in (("none", 200), ("undefined", 422))
        ),
        (FORM, form(PNG[:100]), 422),
        ("multipart/form-data", PNG, 400),
        ("Application/JSON; charset=utf-8", IMAGE, 200),
    ],
)
def test_bodies(kind: str, body: bytes, status: int, app: FastAPI) -> None:
    answer = ask(app, body=body, kind=kind)
    assert answer.status_code == status
    assert status == 200 or refused(answer)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner)
)
NEARLY = st.fixed_dictionaries(
    {}, optional={"images": TREES, "label": TREES, "pixels": TREES | st.just("iVBORw0KGgo=")}
)
BODIES = (
    st.binary()
    | (TREES | NEARLY).map(lambda tree: json.dumps(tree).encode())
    | st.sampled_from([PNG, JPEG])
)
KINDS = [
    NUMBERS,
    "application/json; charset=utf-16",
    "image/png",
    "",
    FORM,
    f"{FORM}; charset=idna",
]


@given(
    body=BODIES | st.lists(BODIES, max_size=3).map(lambda bodies: form(*bodies)),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    kind=st.sampled_from(KINDS) | st.text(st.characters(codec="latin-1", min_codepoint=32)),
    path=st.sampled_from(["/predict", "/predict?pixels=1", "/predict?pixels=x", "/drawings"]),
)
def test_any_body(
    body: bytes, changes: list[tuple[int, int]], kind: str, path: str, app: FastAPI
) -> None:
    damaged = bytearray(body)
    for place, value in changes if body else []:
        damaged[place % len(body)] = value
    answer = ask(app, path, bytes(damaged), kind.encode("latin-1"))
    assert answer.status_code == 200 or 400 <= refused(answer) < 500


def eventually(is_so: Callable[[], object]) -> None:
    """Wait until something is so, and fail after a minute."""
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def connected(net: nn.Module, folder: Path) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """Serve in another thread; yield the server and a connection that takes little at once."""
    config = uvicorn.Config(
        make_app([Network(net)], folder),
        http=server.Protocol,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    with server.listen("127.0.0.1", 0) as opened, socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mine.settimeout(60)
        thread = threading.Thread(target=running.run, args=([opened],), daemon=True)
        thread.start()
        try:
            mine.connect(opened.getsockname())
            yield running, mine
        finally:
            running.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        *(
            (REQUEST % (path, b"Content-Length: 2000") + bytes(1500), b"413")
            for path in (b"/predict", b"/drawings")
        ),
        (
            REQUEST % (b"/predict", b"Transfer-Encoding: chunked")
            + (b"3e8\r\n%s\r\n" % bytes(1000)) * 2,
            b"413",
        ),
        *(
            (REQUEST % (path, b"Content-Length: 50") + b"{", b"408")
            for path in (b"/predict", b"/drawings")
        ),
        (REQUEST % (b"/predict", b"Transfer-Encoding: chunked"), b"408"),
        (REQUEST % (b"/predict", b"X: a body without a length has no bytes"), b"422"),
        (REQUEST % (b"/predict", b"Content-Length: 1") + bytes(100), b"400"),
        (REQUEST % (b"/predict", b"Content-Length: 1\r\nContent-Length: 2"), b"400"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\nHost: ", None),
        (b"", None),
    ],
)
def test_a_client_that_stalls(
    sent: bytes,
    status: bytes | None,
    net: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "MAX_BODY", 1000)
    monkeypatch.setattr(gate, "SECONDS_TO_SEND", 0.5)
    monkeypatch.setattr(server, "SECONDS_TO_WAIT", 0.5)
    monkeypatch.setattr(server, "MAX_HEAD", 3000)
    with connected(net, tmp_path) as (_, mine):
        mine.sendall(sent)
        answer = b"".join(iter(lambda: mine.recv(65536), b""))  # until the server closes
    assert answer.split(b" ")[1:2] == ([status] if status else [])


CHUNKED = REQUEST % (b"/predict", b"Transfer-Encoding: chunked")
CHUNKS = b"".join(b"1\r\n%c\r\n" % byte for byte in IMAGE)  # of one byte each


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /health HTTP/1.1\r\n", b"X-A: aaaaaaaa\r\n"),
        (b"GET /health HTTP/1.1\r\nX: ", b"a"),
        (b"GET /", b"a"),
        (b"", b"\r\n"),
        (CHUNKED + CHUNKS + b"0\r\n", b"X-A: aaaaaaaa\r\n"),
        (CHUNKED + CHUNKS + b"0\r\nX: ", b"a"),
        (CHUNKED + CHUNKS + b"1;", b"a"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + CHUNKED + b"0\r\n", b"X-A: aaaaaaaa\r\n"),
    ],
)
def test_what_has_no_end(
    start: bytes, more: bytes, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_HEAD", 3000)
    sent = 0
    with connected(net, tmp_path) as (_, mine):
        mine.sendall(start)
        with pytest.raises(ConnectionError):  # noqa: PT012
            while sent < 30_000_000:
                mine.sendall(more * 3000)
                sent += len(more) * 3000
    assert sent < 10_000_000  # what the operating system's buffers hold


@pytest.mark.parametrize(
    "sent",
    [
        CHUNKED + CHUNKS + b"0\r\n\r\n",
        CHUNKED + CHUNKS + b"0\r\nX-A: %s\r\n\r\n" % bytes([97] * 2000),
        CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(IMAGE) + 200_000, IMAGE + b" " * 200_000),
        REQUEST % (b"/predict", b"Content-Length: %d" % (len(IMAGE) + 200_000))
        + IMAGE
        + b" " * 200_000,
    ],
)
def test_bodies_that_are_longer_than_headers_may_be(
    sent: bytes, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_HEAD", 3000)
    with connected(net, tmp_path) as (_, mine):
        for _ in range(3):
            mine.sendall(sent)
            assert mine.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_other_websites_are_refused(app: FastAPI) -> None:
    assert refused(ask(app, body=IMAGE, **{"Sec-Fetch-Site": "cross-site"})) == 403
    assert ask(app, body=IMAGE, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_a_client_that_takes_no_answer(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_WAIT", 0.5)
    body = json.dumps(np.zeros((4000, 28, 28), int).tolist(), separators=(",", ":")).encode()
    with connected(net, tmp_path) as (running, mine):
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(100):
                mine.sendall(REQUEST % (b"/predict", b"Content-Length: %d" % len(body)) + body)
        eventually(lambda: not running.server_state.connections and not running.server_state.tasks)


class Counting(nn.Module):
    """A network that notes its batches, and waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.sizes, self.opened = MLP([8]), list[int](), threading.Event()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        assert self.opened.wait(60)
        return self.net(images)


def test_many_at_once_and_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_REQUESTS", 50)
    net = Counting()

    async def asked() -> list[list[int]]:
        async with asyncio.timeout(60), link(make_app([Network(net)], tmp_path)) as client:
            requests = [
                asyncio.create_task(client.post("/predict", json=image.tolist()))
                for image in IMAGES
            ]
            while not net.sizes or "in_progress 51.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.001)
            another = await client.post("/predict", json=IMAGES[0].tolist())
            assert refused(another) == 503
            assert another.headers["Retry-After"] == "1"
            net.opened.set()
            return [answer.json()["digits"] for answer in await asyncio.gather(*requests)]

    answers = asyncio.run(asked())
    assert len(net.sizes) < 50 == sum(net.sizes)
    assert answers == classify(net, IMAGES).argmax(axis=1)[:, None].tolist()


def test_threads_end_with_the_server(net: nn.Module, tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def threads() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    async def used(app: FastAPI) -> None:
        requests = [
            ("/predict", PNG, "image/png"),
            ("/predict", IMAGE, NUMBERS),
            ("/predict", IMAGE + b" " * module.SHORT, NUMBERS),
            ("/drawings", drawing(IMAGES[0], 3), NUMBERS),
        ]
        async with app.router.lifespan_context(app), link(app) as client:
            for path, body, kind in requests:
                answer = await client.post(path, content=body, headers={"Content-Type": kind})
                assert answer.is_success
            assert len(threads()) >= 3

    apps = [make_app([Network(net)], tmp_path / str(number)) for number in range(3)]
    for app in (*apps, apps[0]):  # the first one is started again
        asyncio.run(used(app))
        eventually(lambda: not threads())
    with connected(net, tmp_path) as (_, mine):
        mine.sendall(SENT)
        assert mine.recv(65536).startswith(b"HTTP/1.1 200 ")
    eventually(lambda: not threads())


def test_a_network_that_computes_for_ever_does_not_hold_the_server(tmp_path: Path) -> None:
    net = Counting()
    try:
        with connected(net, tmp_path) as (_, mine):
            mine.sendall(SENT)
            eventually(lambda: net.sizes)
    finally:
        net.opened.set()


def test_token(net: nn.Module, tmp_path: Path) -> None:
    app = make_app([Network(net)], tmp_path, "a b")
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer a"}, 401),
        ({"Authorization": "Bearer a b"}, 200),
    ):
        assert ask(app, "/predict", PNG, "image/png", **headers).status_code == status
        assert ask(app, "/metrics", **headers).status_code == status
        assert [ask(app, path, **headers).status_code for path in ("/", "/docs", "/health")] == [
            200
        ] * 3


def test_drawings(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DRAWINGS", 50)
    app, data = (
        make_app([Network(net)], tmp_path / "Drawings"),
        Drawings(str(tmp_path), test_share=0.3),
    )

    def kept(image: np.ndarray, label: object) -> httpx.Response:
        return ask(app, "/drawings", drawing(image, label))

    earlier: set[bytes] = set()
    for number, image in enumerate(IMAGES):
        assert kept(image, 9 - number % 10).json()["kept"] == number + 1
        assert kept(image, number % 10).json()["kept"] == number + 1  # the second label counts
        earlier = earlier or (
            {each.tobytes() for each in data.load("test")[0]} if number == 40 else set()
        )
    for image, label in (
        (255 - IMAGES[0], 1),
        (IMAGES[0], 10),
        (IMAGES[0], "x"),
        (IMAGES[0, 1:], 1),
        (PAGE, 1),
    ):
        assert refused(kept(image, label)) == 422  # the first, since there are 50
    read = [zip(*data.load(split), strict=True) for split in ("train", "test")]
    train, test = ({image.tobytes(): label for image, label in pairs} for pairs in read)
    assert train | test == {image.tobytes(): number % 10 for number, image in enumerate(IMAGES)}
    assert earlier <= set(test)
    assert set(test).isdisjoint(train)


def gallery(app: FastAPI, **headers: str) -> Any:
    return ask(app, "/drawings", **headers).json()


def test_gallery_has_a_score_and_removes(net: nn.Module, tmp_path: Path) -> None:
    app = make_app([Network(net)], tmp_path / "Drawings")
    assert gallery(app) == {"right": 0, "digits": 0, "drawings": []}
    digits = classify(net, IMAGES[:6]).argmax(axis=1).tolist()
    labels: list[Any] = [*digits[:3], (digits[3] + 1) % 10, "not", None]
    for image, label, kept in zip(IMAGES, labels, (1, 2, 3, 4, 5, 5), strict=False):
        assert ask(app, "/drawings", drawing(image, label)).json()["kept"] == kept
    shown = gallery(app)
    assert (shown["right"], shown["digits"]) == (3, 4)
    said = {each["pixels"]: (each["label"], each["digit"]) for each in shown["drawings"]}
    expected = zip(IMAGES[:5], labels, digits, strict=False)
    assert said == {
        base64.b64encode(content(image)).decode(): (str(label), digit)
        for image, label, digit in expected
    }
    assert len(Drawings(str(tmp_path), test_share=0).load("train")[0]) == 4  # not what is none
    assert ask(app, "/drawings", drawing(IMAGES[4], None)).json()["kept"] == 4
    assert not list(tmp_path.glob("Drawings/not/*"))


def test_no_file_outside_is_shown_or_removed(net: nn.Module, tmp_path: Path) -> None:
    app = make_app([Network(net)], tmp_path / "Drawings", "secret")
    assert refused(ask(app, "/drawings")) == 401
    token = {"Authorization": "Bearer secret"}
    assert ask(app, "/drawings", drawing(IMAGES[0], 1), **token).json()["kept"] == 1
    (kept,) = tmp_path.glob("Drawings/1/*.png")
    outside = tmp_path / "outside" / kept.name
    outside.parent.mkdir()
    outside.write_bytes(content(IMAGES[1]))
    (tmp_path / "Drawings/2").symlink_to(outside.parent)
    (tmp_path / "Drawings/1" / ("a" * 16 + ".png")).symlink_to(outside)
    assert len(gallery(app, **token)["drawings"]) == 1
    for label in ("..", "../1", "../outside", "1/..", "/", "", "not/../1", "NOT", -1, 10, 1.5, []):
        assert refused(ask(app, "/drawings", drawing(IMAGES[0], label), **token)) == 422
    assert ask(app, "/drawings", drawing(IMAGES[0], None), **token).status_code == 200
    assert outside.exists()
    for path in ("/drawings/1", "/drawings/..%2f..%2fetc/passwd"):
        assert refused(ask(app, path, **token)) == 404


def test_networks_side_by_side(net: nn.Module, tmp_path: Path) -> None:
    other = MLP([4])
    app = make_app([Network(net, "one", "90%"), Network(other, "two")], tmp_path)
    assert ask(app, "/health").json()["networks"] == [
        {"name": "one", "about": "90%"},
        {"name": "two", "about": ""},
    ]
    (alone,) = ask(app, "/predict", PNG, "image/png").json()["pictures"]
    (both,) = ask(app, "/predict?networks=all", PNG, "image/png").json()["pictures"]
    for digit, first, second in zip(
        both["digits"], recognize(PNG, net), recognize(PNG, other), strict=True
    ):
        ((said),) = digit.pop("others")
        np.testing.assert_allclose(digit["probabilities"], first.probabilities, atol=1e-6)
        np.testing.assert_allclose(said["probabilities"], second.probabilities, atol=1e-6)
        assert (said["digit"], said["certain"]) == (second.digit, second.certain)
    assert both == alone
    assert ask(app, body=IMAGE).json()["digits"] == [classify(net, IMAGES[:1]).argmax()]


def test_marks_that_are_not_read_say_why(app: FastAPI) -> None:
    page = PAGE.copy()
    page[2:5, 100:103] = page[-40:, 120:124] = 0  # a dot, and a bar at the edge
    (answer,) = ask(app, "/predict?ignored=true", content(page), "image/png").json()["pictures"]
    reasons = {each["reason"]: each["box"] for each in answer["ignored"]}
    assert set(reasons) <= {"too small", "touches the edge"}
    (alone,) = ask(app, "/predict", PNG, "image/png").json()["pictures"]
    assert "ignored" not in alone


def test_what_the_network_saw(net: nn.Module, app: FastAPI) -> None:
    body = {**json.loads(drawing(IMAGES[0], 0)), "digit": 3}
    seen = ask(app, "/seen", json.dumps(body)).json()
    assert [layer["shape"] for layer in seen["layers"]] == [[8], [10]]
    shapes = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).shape
        for picture in (seen["saliency"], seen["layers"][1]["picture"])
    ]
    assert shapes == [(28, 28, 3), (1, 10)]
    for change in ({"network": 1}, {"digit": 10}, {"pixels": "x"}):
        assert refused(ask(app, "/seen", json.dumps(body | change))) == 422


@pytest.mark.parametrize(
    ("host", "token", "own", "expected"),
    [
        ("127.0.0.1", None, "127.0.0.1", []),
        ("0.0.0.0", "abc", "0.0.0.0", ["http://10.0.0.7:8000/?token=abc"]),
        ("10.0.0.9", None, "10.0.0.9", ["http://10.0.0.9:8000/"]),
    ],
)
def test_addresses_for_a_phone(
    host: str,
    token: str | None,
    own: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    class Listening(contextlib.nullcontext):
        def __enter__(self) -> Any:
            return self

        def getsockname(self) -> tuple[str, int]:
            return own, 8000

    codes: list[str] = []
    make = server.segno.make
    monkeypatch.setattr(server, "listen", lambda *_: Listening())
    monkeypatch.setattr(server, "own_addresses", lambda: ["10.0.0.7"])
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda *_, **__: None)
    monkeypatch.setattr(
        server.segno, "make", lambda page, **given: codes.append(page) or make(page, **given)
    )
    server.serve([Network(MLP([8]))], tmp_path, host, 8000, token)
    printed = capsys.readouterr().out
    assert codes == expected
    assert all(page in printed for page in expected)
    assert ("█" in printed) == bool(expected)


def at_once(
    apps: list[FastAPI], contents: list[tuple[np.ndarray, int]], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """Keep drawings with labels, as nearly at once as the server lets them; return the answers."""
    barrier, write = threading.Barrier(len(contents)), drawings.write_atomic

    def meet() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # the others are not let in
            barrier.wait(0.5)

    def written(file: Path, content: bytes) -> None:
        meet()
        write(file, content)
        meet()

    def kept(app: FastAPI, content: tuple[np.ndarray, int]) -> httpx.Response:
        return ask(app, "/drawings", drawing(*content))

    monkeypatch.setattr(drawings, "write_atomic", written)
    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(kept, apps, contents))


@pytest.mark.parametrize("servers", [1, 2])
def test_labels_at_once(
    servers: int, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps = [make_app([Network(net)], tmp_path / "Drawings") for _ in range(servers)]
    answers = at_once([apps[0], apps[-1]], [(IMAGES[0], 3), (IMAGES[0], 5)], monkeypatch)
    assert [answer.json()["kept"] for answer in answers] == [1, 1]
    images, labels = Drawings(str(tmp_path), test_share=0).load("train")
    np.testing.assert_array_equal(images, IMAGES[:1])
    assert labels[0] in (3, 5)


@pytest.mark.parametrize("servers", [1, 2])
def test_last_drawings_at_once(
    servers: int, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DRAWINGS", 2)
    apps = [make_app([Network(net)], tmp_path / "Drawings") for _ in range(servers)]
    answers = at_once(
        [apps[0], apps[-1], apps[0]], [(IMAGES[number], 7) for number in range(3)], monkeypatch
    )
    assert sorted(answer.status_code for answer in answers) == [200, 200, 422]
    assert sorted(answer.json().get("kept", 0) for answer in answers) == [0, 1, 2]
    assert len(Drawings(str(tmp_path), test_share=0).load("train")[0]) == 2


PROGRAM = """import signal, time
from pathlib import Path; from torch import nn; from mnist_lightning import MLP
from mnist_lightning.serve.server import serve
from mnist_lightning.serve.app import Network
class Slow(nn.Module):
    def __init__(self): super().__init__(); self.net, self.images = MLP([8]), 0
    def forward(self, images): time.sleep(0.01); self.images += len(images); return self.net(images)
signal.signal(signal.SIGTERM, lambda *_: None); net = Slow()
serve([Network(net)], Path("Drawings"), "127.0.0.1", 0, None); print(net.images)"""


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_stopped_under_load() -> None:
    counts = dict.fromkeys(("answered", "torn", "refused"), 0)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while True:
                head = b""
                writer.write(SENT)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
                counts["answered"] += 1
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            counts["torn" if head or getattr(error, "partial", b"") else "refused"] += 1
        writer.close()

    async def stop(process: subprocess.Popen, port: int) -> None:
        clients = [asyncio.create_task(client(port)) for _ in range(40)]
        while counts["answered"] < 400 and not any(each.done() for each in clients):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)

    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            asyncio.run(stop(process, int(re.search(r":(\d+)/", process.stdout.readline())[1])))
            printed = process.stdout.read()
        except BaseException:
            process.kill()  # else the end of this block would wait for it
            raise
    assert process.returncode == 0
    assert counts["torn"] == 0
    assert int(printed) == counts["answered"] >= 400  # whatever the network saw was answered


@given(place=st.integers(8, 200), byte=st.integers(0, 255))
def test_a_damaged_drawing(place: int, byte: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("data")
    assert keep(folder / "Drawings", IMAGES[0], 3, most=1) == 1
    (file,) = folder.glob("Drawings/3/*.png")
    content = bytearray(file.read_bytes())
    content[place] = byte
    file.write_bytes(content)
    attempt(Drawings(str(folder), test_share=0).load, "train")
