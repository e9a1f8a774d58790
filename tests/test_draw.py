import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image, ImageDraw
from selenium import webdriver
from selenium.webdriver import Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait
from torch import Tensor, nn

from mnist_lightning.pictures.detector import detect
from mnist_lightning.serve.app import Network, make_app

STROKES = {  # x and y of each corner, from 0 to 8
    0: ["40 20 11 04 18 38 57 64 51 40"],
    1: ["30 38"],
    2: ["02 20 41 52 43 08 58"],
    3: ["01 20 41 52 33 23 44 56 47 28 07"],
    4: ["30 05 55", "43 48"],
    5: ["50 10 13 33 45 56 47 28 07"],
    6: ["40 12 05 17 38 57 55 34 15"],
    7: ["00 50 28"],
    8: ["51 30 11 12 34 55 57 38 17 15 34 52 51"],
    9: ["52 30 11 13 34 52 58"],
}


DRAWINGS = "GET/drawings", "POST/drawings"


class Detector(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        pixels = (images[:, 0] * 255).round().byte().numpy()
        return torch.tensor(detect(pixels)[:, :10] + 1e-9).log()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = uvicorn.Server(
        uvicorn.Config(
            make_app([Network(Detector(), "detector", "96% of nothing")], folder, "secret"),
            log_level="error",
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        outcome = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        outcome("needs chromium and chromedriver on the PATH")
    options, home = webdriver.ChromeOptions(), str(tmp_path_factory.mktemp("home"))
    options.binary_location = program
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        f"user-data-dir={home}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    own = {**os.environ, **dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), home)}
    with webdriver.Chrome(options, Service(driver, env=own)) as opened:
        yield opened


class Page:
    """The page in a browser, and what draws on it: a mouse at 1280 pixels, or a finger at 390."""

    def __init__(self, chrome: webdriver.Chrome, pointer: str, url: str) -> None:
        self.chrome, self.is_touch = chrome, pointer == "finger"
        screen = {"width": 390 if self.is_touch else 1280, "height": 800, "deviceScaleFactor": 2}
        chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**screen, "mobile": self.is_touch}
        )
        chrome.get("about:blank")
        for log in ("performance", "browser"):
            chrome.get_log(log)  # forget earlier pages
        chrome.get(url)

    def js(self, script: str) -> Any:
        return self.chrome.execute_script(f"return {script}")

    def wait(self, script: str, expected: Any) -> None:
        WebDriverWait(self.chrome, 30, 0.05).until(
            lambda _: self.js(script) == expected, f"{script}: {expected}"
        )

    def reads(self, text: str) -> None:
        buttons = "[...document.querySelectorAll('#digits button')]"
        self.wait(f"{buttons}.map(each => each.textContent).join('')", text)
        self.wait("$('text').textContent", text)  # what a screen reader says

    def draw(self, digit: int | list[str], column: int = 1) -> None:
        left, top, width, unit = self.js(
            "(b => [b.left, b.top, b.width, b.width / 27])(paper.getBoundingClientRect())"
        )
        for stroke in STROKES[digit] if isinstance(digit, int) else digit:
            corners = np.array([[int(x), int(y)] for x, y in stroke.split()]) * unit
            corners += left + width * (column + 0.15) / 3, top + 2 * unit
            steps = np.linspace(0, len(corners) - 1, 3 * len(corners) - 2)
            path = [np.interp(steps, range(len(corners)), axis).tolist() for axis in corners.T]
            for step, (x, y) in enumerate(zip(*path, strict=True)):
                self.point(("Moved", "Move") if step else ("Pressed", "Start"), x, y)
            self.point(("Released", "End"), x, y)

    def point(self, kind: tuple[str, str], x: float, y: float) -> None:
        touch = {
            "type": f"touch{kind[1]}",
            "touchPoints": [{"x": x, "y": y}] if kind[1] != "End" else [],
        }
        mouse = {
            "type": f"mouse{kind[0]}",
            "x": x,
            "y": y,
            "button": "left",
            "buttons": 1,
            "clickCount": 1,
        }
        name = "Input.dispatchTouchEvent" if self.is_touch else "Input.dispatchMouseEvent"
        self.chrome.execute_cdp_cmd(name, touch if self.is_touch else mouse)

    def press(self, *keys: str) -> None:
        self.chrome.switch_to.active_element.send_keys(*keys)


@pytest.fixture(params=["mouse", "finger"])
def page(
    request: pytest.FixtureRequest, chrome: webdriver.Chrome, tmp_path: Path
) -> Iterator[Page]:
    """The page; after the test, it asked no other server, reported nothing, and fits the screen."""
    with served(tmp_path / "Drawings") as url:
        page = Page(chrome, request.param, f"{url}?token=secret")
        yield page
        messages = [
            json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")
        ]
        asked = {
            item["params"]["request"]["url"]
            for item in messages
            if item["method"] == "Network.requestWillBeSent"
        }
        assert [address for address in asked if not address.startswith((url, "data:"))] == []
        assert chrome.get_log("browser") == []
        assert page.js("document.documentElement.scrollWidth <= innerWidth")


def test_digits_are_read_chosen_undone_and_cleared(page: Page) -> None:
    for digit in STROKES:
        page.draw(digit)
        page.reads(f"{digit}")
        page.press(Keys.ESCAPE)
    for column, digit in enumerate((4, 0, 7)):
        page.draw(digit, column)
    page.reads("407")
    assert page.js("$('first').textContent").startswith("7 with ")  # the last that was drawn
    page.js("document.querySelector('#digits button').focus()")
    page.press(Keys.ENTER)
    assert page.js("$('first').textContent").startswith("4 with ")
    assert page.js("$('bars').querySelector('.best').textContent").startswith("4")
    assert page.js(
        "[pixels.naturalWidth, $('bars').rows.length, boxes.querySelectorAll('.box').length]"
    ) == [
        28,
        10,
        3,
    ]
    page.press(Keys.CONTROL, "z")
    page.reads("40")


def test_keyboard_draws_and_answers_are_kept(page: Page, tmp_path: Path) -> None:
    page.press(Keys.TAB)
    page.press(Keys.SHIFT, *[Keys.ARROW_UP] * 3, Keys.ARROW_LEFT, Keys.NULL, Keys.SPACE)
    assert page.js("said.textContent") == "Pen down."
    page.press(
        Keys.SHIFT, *[Keys.ARROW_RIGHT] * 4, Keys.NULL, *[Keys.END, Keys.ARROW_DOWN] * 8, Keys.SPACE
    )
    assert page.js("said.textContent") == "Pen up."
    page.reads("7")
    for label, button in ((7, "yes"), (3, "choices.children[3]")):
        page.js(f"{button}.click()")
        line = f"Kept as {label} ✓ 1 drawing in {tmp_path / 'Drawings'}."
        page.wait("$('kept').textContent", line)
    (file,) = (tmp_path / "Drawings/3").iterdir()
    assert Image.open(file).size == (28, 28)
    page.js("$('gallery').open = true")
    page.wait("$('score').textContent", "detector reads them: 0 of 1 right.")
    choose = "(e => (e.value = '7', e.onchange()))(document.querySelector('#tiles select'))"
    page.js(choose)
    page.wait("$('score').textContent", "detector reads them: 1 of 1 right.")
    assert (tmp_path / "Drawings/7" / file.name).exists()
    page.js("document.querySelector('#tiles button').click()")
    page.wait("$('score').textContent", "Nothing is kept yet.")
    assert list((tmp_path / "Drawings").glob("*/*.png")) == []


def test_letters_ignored_marks_the_eraser_and_what_was_seen(page: Page, tmp_path: Path) -> None:
    letter = ["08 00 58 50"]  # an N
    page.draw(letter)
    page.wait("$('heading').textContent", "Not a digit?")
    page.wait("answered === wanted && !isBusy", True)  # not of a part of the letter
    assert "does not look like a digit" in page.js("$('unsure').textContent")
    page.js("$('not').click()")
    page.wait("$('not').textContent", "Kept as no digit ✓")
    assert len(list((tmp_path / "Drawings/not").iterdir())) == 1
    page.press(Keys.ESCAPE)
    page.draw(7)
    page.draw(["00 01"], column=2)
    page.wait("$('left').textContent", "1 mark is not read: too small.")
    page.wait("document.querySelector('.tag.ignored').textContent", "too small")
    bounds = "['.box', '.tag'].flatMap(name => [...document.querySelectorAll(name)]).every(e =>"
    bounds += " (a => (b => b.left >= a.left && b.top >= a.top && b.right <= a.right"
    bounds += (
        " && b.bottom <= a.bottom)(e.getBoundingClientRect()))(paper.getBoundingClientRect()))"
    )
    assert page.js(bounds)
    page.js("$('look').open = true")
    page.wait("document.querySelectorAll('#sight img.saliency').length", 1)
    page.js("[$('width').value = 22, $('eraser').click()]")
    page.draw(["00 01"], column=2)
    page.wait("$('left').hidden", True)
    page.draw(7)
    page.wait("$('empty').textContent", "No digit found.")


def test_pictures_are_read_and_other_files_refused(page: Page, tmp_path: Path) -> None:
    picture = Image.new("RGB", (3000, 2000), "white")  # larger than what is sent
    for left, stroke in ((400, STROKES[2][0]), (1600, STROKES[7][0])):
        ImageDraw.Draw(picture).line(
            [(left + 120 * int(x), 400 + 120 * int(y)) for x, y in stroke.split()], "navy", 60
        )
    picture.save(tmp_path / "27.png")
    chooser = page.chrome.find_element("id", "file")
    chooser.send_keys(str(tmp_path / "27.png"))
    page.reads("27")
    for name, line in (
        ("a.heic", "This browser cannot open HEIC. Save it as JPEG first."),
        ("a.png", "This is not a"),
    ):
        (tmp_path / name).write_bytes(b"no picture")
        chooser.send_keys(str(tmp_path / name))
        page.wait(f"$('note').textContent.slice(0, {len(line)})", line)


def test_description_for_programs_and_errors(chrome: webdriver.Chrome, tmp_path: Path) -> None:
    with served(tmp_path) as url:
        page = Page(chrome, "finger", f"{url}docs")
        titles = "[...document.querySelectorAll('h2')].map(each => each.textContent)"
        page.wait(titles, ["GET/health", "GET/metrics", "POST/predict", *DRAWINGS, "POST/seen"])
        fields = "[...document.querySelectorAll('li > b')].map(each => each.textContent)"
        assert {"certain", "no_digit", "others", "reason", "saliency"} <= set(page.js(fields))
        assert page.js("document.querySelector('pre').textContent").endswith(f"{url}predict")
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        assert chrome.get_log("browser") == []
        page = Page(chrome, "mouse", url)
        page.draw(1)
        page.wait("$('note').textContent", "Open the whole address of this page: it has a token.")
    page.draw(1, 2)
    page.wait("$('note').textContent", "The server does not answer. Is it still running?")
