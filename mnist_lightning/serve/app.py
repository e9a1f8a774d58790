"""The server's answers. `gate.py` stands before them."""

import asyncio
import json
import os
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mnist_lightning import __version__
from mnist_lightning.data.drawings import NO_DIGIT, keep, newest
from mnist_lightning.errors import InputError, needs
from mnist_lightning.inference import classify
from mnist_lightning.pictures.ignored import find_ignored
from mnist_lightning.pictures.read import Pixels, read_picture
from mnist_lightning.pictures.recognize import Page, find_pages, images_of, readings
from mnist_lightning.report.pages import png_base64
from mnist_lightning.serve.batcher import Batcher
from mnist_lightning.serve.gate import RETRY, Gate, refusal
from mnist_lightning.serve.schema import (
    BODY,
    REFUSALS,
    Answer,
    Answers,
    Digit,
    Drawing,
    Drawings,
    Kept,
    KeptDrawing,
    Look,
    Mark,
    Picture,
    Seen,
)
from mnist_lightning.serve.seen import look

with needs("serve"):
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, Response
    from prometheus_client import CollectorRegistry, Counter, generate_latest
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException as StarletteHTTPException

SHORT = 100_000  # bytes of JSON
MAX_PIXELS = 16_000_000  # of a page
MAX_PICTURES = 20  # of a request
MAX_PAGES = 50  # of the pictures of a request
MAX_DRAWINGS = 10_000  # kept
MAX_SHOWN = 300  # drawings that were kept last
READERS = min(8, os.cpu_count() or 1)  # threads that read pictures
SECONDS_TO_ANSWER = 30
SECONDS_TO_READ = 20  # after which a thread begins no further page
CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
PAGE_HEADERS = {"Content-Security-Policy": CSP, "Referrer-Policy": "no-referrer"}


def kind_of(request: Request) -> str:
    """Return the media type of a request's body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def files_of(request: Request, body: bytes) -> list[bytes]:
    """Return the pictures in a multipart body, or the one that it is."""
    if kind_of(request) != "multipart/form-data":
        return [body]
    try:
        async with request.form(max_files=MAX_PICTURES, max_fields=MAX_PICTURES) as form:
            pictures = [
                await file.read() for _, file in form.multi_items() if isinstance(file, UploadFile)
            ]
    except UnicodeError as error:  # of a character set that decodes nothing
        raise InputError("the form cannot be decoded") from error
    if not pictures:
        raise InputError("the form has no file: curl -F pictures=@photo.jpg")
    return pictures


def find(pictures: list[bytes]) -> list[list[Page]]:
    """Return what was found on the pages of each picture."""
    end = time.monotonic() + SECONDS_TO_READ
    number, found = 0, []
    for picture in pictures:
        pages = []
        for page in find_pages(picture, max_pixels=MAX_PIXELS):
            number += 1
            if page.error:
                place = f"page {page.number}: " if page.number > 1 else ""
                raise InputError(place + page.error)
            if number > MAX_PAGES or time.monotonic() > end:
                most = f"{MAX_PAGES} pages, and what takes {SECONDS_TO_READ} seconds to read"
                raise InputError(f"too many pages: a request may have at most {most}")
            pages.append(page)
        found.append(pages)
    return found


def images_in(body: bytes) -> NDArray[np.float32]:
    """Return the images ``(N, 28, 28)`` in [0, 1] of a JSON text.

    In an image whose numbers are up to 1 they are shares of white, otherwise 0-255.
    """
    try:
        content = json.loads(body)
        numbers = content.get("images") if isinstance(content, dict) else content
        images = np.array(numbers, np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise InputError(
            'expected JSON: {"images": [...]}, 28 rows of 28 numbers for each image'
        ) from error
    is_shaped = images.ndim <= 3 and images.shape[-2:] == (28, 28)
    if not is_shaped or not ((images >= 0) & (images <= 255)).all():
        raise InputError(f"images must be (N, 28, 28) with numbers in 0-255, got {images.shape}")
    images = images.reshape(-1, 28, 28).astype(np.float32)
    is_share = images.max(axis=(1, 2), keepdims=True) <= 1
    return np.where(is_share, images, images / 255)


def ignored_in(picture: bytes, found: Sequence[Page]) -> list[Mark]:
    """Return the marks of a picture's first page that are part of no digit."""
    pixels = read_picture(picture, MAX_PIXELS)
    return [
        Mark(box=list(mark.box), reason=mark.reason)
        for mark in find_ignored(pixels, found[0].digits)
    ]


def image_of(pixels: str) -> Pixels:
    """Return the image ``(28, 28)`` of a PNG in base64."""
    try:
        image = read_picture(b64decode(pixels, validate=True), 28 * 28)
    except ValueError as error:
        raise InputError(f"pixels must be a 28x28 PNG in base64: {error}") from error
    if image.shape != (28, 28):
        raise InputError(f"pixels must be 28x28 and grey, got {image.shape}")
    return image


class Network(NamedTuple):
    """A network that is served."""

    net: nn.Module  # from (B, 1, 28, 28) in [0, 1] to logits (B, 10), on any device
    name: str = "network"
    about: str = ""  # its accuracy and its data, in a few words


def make_app(networks: Sequence[Network], drawings: Path, token: str | None = None) -> FastAPI:
    """Return the web application that answers with one network, or with several side by side.

    Args:
        networks: The first one answers; the others are asked for with ``networks=all``.
        drawings: The folder for the drawings that users keep.
        token: What a client must send as ``Authorization: Bearer``; None for nothing.
    """

    def classify_with_all(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([classify(each.net, images) for each in networks], axis=1)

    registry, batcher = CollectorRegistry(), Batcher(classify_with_all)
    readers = ThreadPoolExecutor(READERS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal readers
        yield
        for threads in (readers, batcher.thread):
            threads.shutdown(wait=False)  # a network may compute for ever
        readers = ThreadPoolExecutor(READERS)  # if it is started again
        batcher.thread = ThreadPoolExecutor(1)

    app = FastAPI(
        title="mnist_lightning",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, token=token, registry=registry)
    found = Counter("digits_classified", "Digits that were classified.", registry=registry)
    pages = {
        name: files(__package__).joinpath(f"{name}.html").read_text(encoding="utf-8")
        for name in ("page", "docs")
    }

    @app.exception_handler(InputError)
    async def _(request: Request, error: InputError) -> Response:
        return refusal(422, str(error))

    @app.exception_handler(StarletteHTTPException)
    async def _(request: Request, error: StarletteHTTPException) -> Response:
        return refusal(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refusal(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(pages["page"], headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(pages["docs"], headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> dict[str, str | list[dict[str, str]]]:
        """Say that the server runs, and with which networks."""
        return {
            "status": "ok",
            "network": type(networks[0].net).__name__,
            "version": __version__,
            "networks": [{"name": each.name, "about": each.about} for each in networks],
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return measurements for Prometheus."""
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @asynccontextmanager
    async def in_time() -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(SECONDS_TO_ANSWER):
                yield
        except TimeoutError:
            line = f"no answer within {SECONDS_TO_ANSWER} seconds"
            raise HTTPException(503, line, RETRY) from None

    async def answer_numbers(body: bytes) -> Answers:
        if len(body) <= SHORT:  # another thread would take longer
            images = images_in(body)
        else:
            images = await asyncio.get_running_loop().run_in_executor(readers, images_in, body)
        rows = (await batcher(images))[:, 0]
        found.inc(len(rows))
        return Answers(
            digits=rows.argmax(axis=1).tolist(),
            confidences=rows.max(axis=1).tolist(),
            probabilities=rows.tolist(),
        )

    async def answer_pictures(
        pictures: list[bytes], with_pixels: bool, with_ignored: bool, with_all: bool
    ) -> Answers:
        loop = asyncio.get_running_loop()
        lists = await loop.run_in_executor(readers, find, pictures)
        rows = await batcher(images_of(lists).astype(np.float32) / np.float32(255))
        found.inc(len(rows))
        first, *others = [readings(lists, rows[:, number]) for number in range(len(networks))]
        answers = []
        for number, reading in enumerate(first):
            digits = [Digit.of(digit) for digit in reading]
            for place, digit in enumerate(digits):
                if with_pixels:
                    digit.pixels = png_base64(reading[place].pixels)
                if with_all:
                    digit.others = [Answer.of(other[number][place]) for other in others]
            answer = Picture(text=reading.text, digits=digits)
            if with_ignored:
                page = pictures[number], lists[number]
                answer.ignored = await loop.run_in_executor(readers, ignored_in, *page)
            answers.append(answer)
        return Answers(pictures=answers)

    @app.post(
        "/predict",
        response_model_exclude_unset=True,
        openapi_extra={"requestBody": BODY},
        responses=REFUSALS,
    )
    async def predict(
        request: Request,
        pixels: bool = False,
        ignored: bool = False,
        networks: Literal["first", "all"] = "first",
    ) -> Answers:
        """Read the digits in pictures, or classify 28x28 images."""
        body = await request.body()
        async with in_time():
            if kind_of(request) == "application/json":
                return await answer_numbers(body)
            pictures = await files_of(request, body)
            return await answer_pictures(pictures, pixels, ignored, networks == "all")

    @app.post("/drawings", responses=REFUSALS)
    def drawing(drawing: Drawing) -> Kept:  # in a thread: it writes a file
        """Keep a drawing with its label, give it another label, or remove it."""
        image = image_of(drawing.pixels)
        try:
            kept = keep(drawings, image, drawing.label, MAX_DRAWINGS)
        except OSError as error:
            raise HTTPException(507, f"cannot keep it in {drawings}: {error.strerror}") from error
        return Kept(kept=kept, folder=str(drawings))

    @app.get("/drawings", responses=REFUSALS)
    async def kept_drawings() -> Drawings:
        """Return the drawings that were kept last, at most 300, and how many are read rightly."""
        loop = asyncio.get_running_loop()
        async with in_time():
            images, labels = await loop.run_in_executor(readers, newest, drawings, MAX_SHOWN)
            rows = (await batcher(images.astype(np.float32) / np.float32(255)))[:, 0]
        shown, right = [], 0
        for image, label, digit in zip(images, labels, rows.argmax(axis=1).tolist(), strict=True):
            right += label == str(digit)
            shown.append(KeptDrawing(label=label, digit=digit, pixels=png_base64(image)))
        digits = len(labels) - labels.count(NO_DIGIT)
        return Drawings(right=right, digits=digits, drawings=shown)

    @app.post("/seen", responses=REFUSALS)
    async def seen(asked: Look) -> Seen:
        """Show which parts of a 28x28 image speak for a digit, and what each layer gives."""
        if asked.network >= len(networks):
            raise InputError(f"network must be below {len(networks)}, got {asked.network}")
        image, net = image_of(asked.pixels), networks[asked.network].net
        loop = asyncio.get_running_loop()
        async with in_time():
            return await loop.run_in_executor(batcher.thread, look, net, image, asked.digit)

    return app
