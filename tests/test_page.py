import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mnist_lightning.evaluation import figures, metrics, page

HOSTILE = "<script>alert('MNIST')</script>"
RUN = {"dataset": "MNIST", "epochs": 3, "global_step": 1234, "best_val_acc": 0.98765, "best_epoch": 2, "seed": None}
EMPTY = {"meta", "link", "br", "img"}
HISTORY = [
    {"epoch": str(epoch), "step": str(10 * epoch + 9), "train/acc": "0.5", "val/acc": "0.6"} for epoch in range(3)
]


class Page(HTMLParser):
    """The page's elements in order, each with its attributes and text; fails on a tag that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in EMPTY:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][2].append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(text).strip() for name, _, text in self.elements if name == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def content() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The metrics and figures of a logistic regression on scikit-learn's digits."""
    digits = load_digits()
    images = np.pad(np.kron(digits.images, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2))) * (255 / 16)
    x, labels = digits.images.reshape(-1, 64) / 16, digits.target
    probabilities = LogisticRegression(C=0.1).fit(x[:800], labels[:800]).predict_proba(x[800:]).astype(np.float32)
    test = images[800:].astype(np.uint8), labels[800:], probabilities
    result = {"dataset": HOSTILE, "num_examples": 997, "loss": 0.25, **metrics.classification(*test[1:])}
    drawn = figures.test_figures(*test, result, HISTORY)
    return result, {name: figures.png(figure) for name, figure in drawn.items()}


@pytest.fixture(scope="module")
def html(content: tuple[dict[str, Any], dict[str, bytes]]) -> str:
    return page.index_html("Test of runs/<a&b>", *content, RUN)


def test_the_page_needs_nothing_beside_itself(html: str) -> None:
    parsed = Page(html)
    assert html.startswith("<!DOCTYPE html>\n")
    assert parsed.attributes("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.attributes("meta")
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//|@import|url\(|<script|<iframe", without_pictures)
    ids = {attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes}
    for _, attributes, _ in parsed.elements:
        assert attributes.get("src", "data:").startswith("data:")
        href = attributes.get("href", "data:,")
        assert href == "data:," or href[1:] in ids
    assert len(parsed.attributes("a")) == len(ids)  # the table of contents is complete


def test_the_page_shows_every_figure_but_those_it_has_as_tables(
    html: str, content: tuple[dict[str, Any], dict[str, bytes]]
) -> None:
    parsed = Page(html)
    pngs = {name: png for name, png in content[1].items() if name not in ("per_digit", "confused_pairs")}
    shown = [
        base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in parsed.attributes("img")
    ]
    assert sorted(shown) == sorted(pngs.values())
    assert all(image["alt"] for image in parsed.attributes("img"))
    assert len(parsed.texts("figcaption")) == len(pngs)
    assert all(caption.endswith(".") for caption in parsed.texts("figcaption"))


def test_the_numbers_are_the_metrics(html: str, content: tuple[dict[str, Any], dict[str, bytes]]) -> None:
    result, parsed = content[0], Page(html)
    facts = dict(zip(parsed.texts("dt"), parsed.texts("dd"), strict=True))
    assert facts == {
        "accuracy": f"{result['accuracy']:.2%}",
        "loss (cross-entropy, nats)": "0.2500",
        "F1 (macro)": f"{result['f1_macro']:.2%}",
        "precision (macro)": f"{result['precision_macro']:.2%}",
        "recall (macro)": f"{result['recall_macro']:.2%}",
        "AUROC (macro)": f"{result['auroc_macro']:.4f}",
        "calibration error (ECE)": f"{result['ece']:.2%}",
        "of 997 images wrong": str(round(997 * (1 - result["accuracy"]))),
        "Trained on": "MNIST",
        "Epochs": "3",
        "Updates": "1,234",
        "Best epoch (the first is 0)": "2",
        "Best validation accuracy": "98.77%",
    }
    rows = [row.split() for row in parsed.texts("tr") if row]
    cells = parsed.texts("td")
    names = ("per_digit", "precision_per_digit", "f1_per_digit")
    for digit in range(10):
        shares = [f"{result[name][digit]:.2%}" for name in names]
        support = str(sum(result["confusion_matrix"][digit]))
        assert cells[5 * digit : 5 * digit + 5] == [*shares, f"{result['auroc_per_digit'][digit]:.4f}", support]
    mistakes = metrics.frequent_mistakes(np.array(result["confusion_matrix"]), 10)
    assert len(rows) == 1 + 10 + 1 + len(mistakes)
    expected = [text for _, _, count, share in mistakes for text in (str(count), f"{share:.1%}")]
    assert cells[50:] == expected
    assert parsed.texts("th")[-len(mistakes) :] == [f"{true} taken for {predicted}" for true, predicted, *_ in mistakes]


def test_what_comes_from_outside_is_escaped(html: str) -> None:
    parsed = Page(html)
    assert parsed.texts("h1") == parsed.texts("title") == ["Test of runs/<a&b>"]
    assert parsed.texts("p")[0] == f"{HOSTILE}, 997 test images"
    assert not parsed.attributes("script")


def test_the_page_of_a_diverged_network_without_a_run() -> None:
    result = metrics.classification(np.arange(10), np.full((10, 10), np.nan))
    parsed = Page(page.index_html("Test", {"dataset": "MNIST", "num_examples": 10, "loss": None, **result}, {}, None))
    facts = dict(zip(parsed.texts("dt"), parsed.texts("dd"), strict=True))
    assert [facts[name] for name in ("loss (cross-entropy, nats)", "AUROC (macro)", "calibration error (ECE)")] == (
        ["n/a"] * 3
    )
    assert parsed.attributes("img") == []
    assert len(parsed.texts("h2")) == 2


def test_the_page_of_a_test_without_a_mistake() -> None:
    result = metrics.classification(np.arange(10), np.eye(10))
    text = page.index_html("Test", {"dataset": "MNIST", "num_examples": 10, "loss": 0.0, **result}, {}, None)
    assert "No mistake: every image was recognised." in Page(text).texts("p")


def test_the_report_imports_no_torch_and_no_lightning() -> None:
    code = "import sys, mnist_lightning.evaluation.page, mnist_lightning.evaluation.figures; "
    code += "sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def browser(html: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with the page opened from a file."""
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        pytest.skip("needs chromium and chromedriver on the PATH")
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text(html)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The profile apart, Chromium leaves crash reports and caches in the user's folders.
    own = {name: str(folder) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    opened = webdriver.Chrome(options, Service(driver, env={**os.environ, **own}))
    try:
        opened.get("about:blank")
        opened.get_log("performance")  # forgets what the browser's own first page asked for
        opened.get((folder / "index.html").as_uri())
        yield opened
    finally:
        opened.quit()
        shutil.rmtree(folder)


def set_screen(browser: webdriver.Chrome, width: int, height: int) -> None:
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def test_the_browser_has_nothing_to_complain_about_and_asks_nobody(browser: webdriver.Chrome) -> None:
    set_screen(browser, 1280, 800)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {browser.current_url}
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (768, 1024), (360, 800)])
def test_every_figure_is_visible_and_the_page_fits_the_screen(
    browser: webdriver.Chrome, width: int, height: int
) -> None:
    set_screen(browser, width, height)
    pictures = browser.execute_script(
        "return [...document.images].map(image => ({complete: image.complete, natural: image.naturalWidth,"
        " width: image.getBoundingClientRect().width, height: image.getBoundingClientRect().height,"
        " shown: image.checkVisibility({opacityProperty: true, visibilityProperty: true})}))"
    )
    assert len(pictures) == 9
    for picture in pictures:
        assert picture["complete"]
        assert picture["shown"]
        assert min(picture["natural"], picture["width"], picture["height"]) > 200
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # Neither do the tables stick out of their cards.
    stuck = "return [...document.querySelectorAll('.card')].filter(card => card.scrollWidth > card.clientWidth).length"
    assert browser.execute_script(stuck) == 0


def test_the_page_prints_on_a_few_sheets(browser: webdriver.Chrome) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
    # A sheet's area is 182 x 269 mm, 96 CSS pixels to 25.4 mm: no figure is higher, so that none must be cut.
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    set_screen(browser, 688, 1016)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map(figure => [figure.getBoundingClientRect().height,"
        " getComputedStyle(figure).breakInside])"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(heights) == 9
    assert all(height < 1016 and inside == "avoid" for height, inside in heights)
