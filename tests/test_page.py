import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from mnist_lightning.data.mnist import FashionMNIST
from mnist_lightning.report.blocks import Card, Gallery, Picture, Table
from mnist_lightning.report.pages import write_page
from mnist_lightning.report.results import frequent_mistakes
from mnist_lightning.report.run_report import write_report

HOSTILE = "<script>alert('MNIST')</script>"
ESCAPED = "&lt;script&gt;alert(&#39;MNIST&#39;)&lt;/script&gt;"
RECORD = {"dataset": HOSTILE, "network": "MLP", "lr": 0.001, "epochs": 3, "global_step": 1234}
RECORD |= {"best_val_acc": 0.98765, "best_epoch": 2, "seed": None, "command": HOSTILE}
RECORD |= {"net_arguments": {"hidden_sizes": [32], "dropout": 0.2}, "layers": ["layer", "Linear"]}
RECORD |= {"started": "2026-11-26T17:41:12+00:00"}
HISTORY = [
    {"epoch": str(epoch), "step": str(epoch), "train/acc": "0.5", "val/acc": "0.6"}
    for epoch in range(3)
]


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any], dict[str, bytes]]:
    """The page, metrics and figures of a logistic regression on scikit-learn's digits."""
    digits = load_digits()
    tripled = np.kron(digits.images * (255 / 16), np.ones((1, 3, 3)))
    images = np.pad(tripled, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    x, labels = digits.data / 16, digits.target
    probabilities = LogisticRegression(C=0.1).fit(x[:800], labels[:800]).predict_proba(x[800:])
    test = images[800:], labels[800:], probabilities
    folder = tmp_path_factory.mktemp("report")
    written = write_report(folder, "runs/<a&b>", HOSTILE, test, 0.25, HISTORY, RECORD)
    return folder / "index.html", *written


def test_page_needs_no_other_file_and_shows_every_figure(
    report: tuple[Path, Any, dict[str, bytes]],
) -> None:
    html = report[0].read_text()
    without_figures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//|@import|url\(|<script|<iframe", without_figures)
    assert {link.strip("#") for link in re.findall(r'href="(#\w+)"', html)} == set(
        re.findall(r' id="(\w+)"', html)
    )
    plots = re.findall(
        r'<img class="plot" src="data:image/svg\+xml;base64,([^"]*)" alt="[^"]{20,}">', html
    )
    assert ["<svg" in base64.b64decode(plot).decode() for plot in plots] == [True] * 7
    tiles = re.findall(r'png;base64,([^"]*)" alt="\d → \d [✓✗], [\d.]+%, row \d+"', html)
    assert len(tiles) == round(997 * (1 - report[1]["accuracy"])) + 40  # all mistakes
    assert {Image.open(io.BytesIO(base64.b64decode(tile))).size for tile in tiles} == {(28, 28)}
    assert len(html) < 2_000_000
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == [
        "Metrics per digit",
        "Confusion matrix",
        "Mistakes and typical images",
        "Confidence and calibration",
        "ROC and precision-recall curves",
        "Training curves",
        "The run",
    ]


def test_page_shows_the_metrics_and_escapes_text(report: tuple[Path, dict[str, Any], Any]) -> None:
    html, result = report[0].read_text(), report[1]
    assert f'<h1>runs/&lt;a&amp;b&gt;</h1>\n<p class="lead">{ESCAPED}, 997 test images</p>' in html
    wrong = round(997 * (1 - result["accuracy"]))
    assert dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html.replace("\n", "|"))) == {
        "accuracy": f"{result['accuracy']:.2%}",
        "loss (cross-entropy, nats)": "0.2500",
        "F1 (macro)": f"{result['f1_macro']:.2%}",
        "precision (macro)": f"{result['precision_macro']:.2%}",
        "recall (macro)": f"{result['recall_macro']:.2%}",
        "AUROC (macro)": f"{result['auroc_macro']:.4f}",
        "calibration error (ECE)": f"{result['ece']:.2%}",
        "wrong of 997 images": str(wrong),
        "Trained on": ESCAPED,
        "Network": "MLP",
        "Learning rate": "0.001",
        "Best validation accuracy": "98.77%",
        "Best epoch": "3",  # counted from 1
        "Epochs": "3",
        "Updates": "1,234",
        "Started": "2026-11-26 17:41",
        "Arguments of the network": "hidden_sizes [32], dropout 0.2",
        "Layers": "layer|Linear",
        "To repeat it": ESCAPED,
    }
    cells = np.reshape(re.findall(r'<td class="\w+">([^<]*)</td>', html)[:60], (10, 6))
    confusion = np.array(result["confusion_matrix"])
    assert cells[:, 0].tolist() == [str(images) for images in confusion.sum(axis=1)]
    for column, name in ((1, "recall"), (2, "precision"), (3, "f1")):
        expected = [f"{share:.2%}" for share in result[f"{name}_per_digit"]]
        assert cells[:, column].tolist() == expected
    assert cells[:, 4].tolist() == [f"{area:.4f}" for area in result["auroc_per_digit"]]
    np.fill_diagonal(confusion, 0)
    most = zip(confusion.argmax(axis=1), confusion.max(axis=1), strict=True)
    assert cells[:, 5].tolist() == [
        f"{digit} ({count}x)" if count else "-" for digit, count in most
    ]
    mistakes = re.findall(r">(\d) → (\d)</th><td[^>]*>(\d+)</td>", html)
    expected = frequent_mistakes(result["confusion_matrix"], 10)
    assert mistakes == [(str(i), str(j), str(count)) for i, j, count, _ in expected]
    first = float(re.findall(r"--part:([\d.]+)", html)[1])
    assert first == pytest.approx(expected[1][2] / expected[0][2], abs=1e-3)


def test_page_names_the_classes(tmp_path: Path) -> None:
    names, labels = FashionMNIST.class_names, np.arange(60) % 10
    probabilities = np.eye(10)[labels]
    probabilities[7] = np.eye(10)[9]  # a sneaker
    test = np.zeros((60, 28, 28), np.uint8), labels, probabilities
    write_report(tmp_path, "A run", "FashionMNIST", test, 0.1, HISTORY, {}, names=names)
    html = (tmp_path / "index.html").read_text()
    heads = re.findall(r'<th scope="row" class="text">(.*?)</th>', html)
    assert heads == [*names, "Sneaker → Ankle boot"]
    assert "Sneaker → Ankle boot ✗</b><small>100.0%" in html
    assert "digit" not in re.sub(r"<style>.*?</style>|<[^>]*>", "", html, flags=re.S)


@pytest.fixture(scope="module")
def browser(report: tuple[Path, Any, Any]) -> Iterator[webdriver.Chrome]:
    """Headless Chromium that shows the page."""
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        outcome = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        outcome("needs chromium and chromedriver on the PATH")
    # Otherwise Chromium leaves crash reports and caches in the user's folders.
    home = report[0].parent / "home"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={home}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    own = {name: str(home) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    with webdriver.Chrome(options, Service(driver, env={**os.environ, **own})) as opened:
        opened.get("about:blank")
        opened.get_log("performance")  # forget the requests of the browser's own first page
        opened.get(report[0].as_uri())
        yield opened


def test_browser_requests_nothing_else_and_reports_no_errors(browser: webdriver.Chrome) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        item["params"]["request"]["url"]
        for item in messages
        if item["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in urls if not url.startswith("data:")} == {browser.current_url}
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []


def screen(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_page_fits_the_screen(browser: webdriver.Chrome, width: int) -> None:
    screen(browser, width, "light")
    size = "i => i.checkVisibility() ? [i.naturalWidth, i.width, i.height] : [0]"
    sizes = browser.execute_script(f"return [...document.querySelectorAll('.plot')].map({size})")
    assert len(sizes) == 7
    assert min(map(min, sizes)) > 200
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    too_wide = "[...document.querySelectorAll('figure')].filter(i => i.scrollWidth > i.clientWidth)"
    assert browser.execute_script(f"return {too_wide}") == []


def test_page_is_dark_where_the_user_wants_it_dark(browser: webdriver.Chrome) -> None:
    colours = []
    for scheme in ("light", "dark"):
        screen(browser, 1280, scheme)
        style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        colours.append(
            [sum(map(int, re.findall(r"\d+", colour))) for colour in browser.execute_script(style)]
        )
    (light_ink, light_ground), (dark_ink, dark_ground) = colours
    assert max(light_ink, dark_ground) < 130 < 620 < min(light_ground, dark_ink)


def test_page_prints_on_a_few_sheets(browser: webdriver.Chrome) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"]))) <= 8


def study(folder: Path) -> Path:
    """Write a page with a large table, two figures, a gallery, and an empty section."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 5"><path d="M0 0h9v5z"/></svg>'
    rows = [
        [str(trial), "pruned" if trial % 2 else "98.25%", HOSTILE[:24], *["1024, 512"] * 5]
        for trial in range(50)
    ]
    images = (np.arange(12 * 784) % 256).astype(np.uint8).reshape(12, 28, 28)
    cards = [Card(image, str(place % 10), "predicted 4, 99%") for place, image in enumerate(images)]
    sections = {
        "Trials": [
            Table(["trial", "accuracy", "optimizer", *"abcde"], rows, "<b>best</b> first"),
            Table(["a"], []),
        ],
        "Nothing": [Gallery([])],
        "Figures": [
            Picture(svg, "A figure"),
            Picture(svg, "A wide figure", "It is wide", wide=True),
            Gallery(cards),
        ],
    }
    return write_page(
        folder / "new", "A study of <b>", HOSTILE, {"best <b>": "98.25%", "trials": "50"}, sections
    )


def test_study_page_shows_its_blocks_and_escapes_text(tmp_path: Path) -> None:
    html = study(tmp_path).read_text()
    assert not re.search(
        r"https?:|//|@import|url\(|<script|<b>(?!\d</b>)", re.sub(r"base64,[\w+/=]+", "", html)
    )
    assert re.findall(r'<h2 id="section(\d)">(.*?)</h2>', html) == [
        ("1", "Trials"),
        ("2", "Figures"),
    ]
    assert re.findall(r'href="#section(\d)">(.*?)</a>', html) == [("1", "Trials"), ("2", "Figures")]
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html) == [
        ("best &lt;b&gt;", "98.25%"),
        ("trials", "50"),
    ]
    assert re.findall(r'<th scope="col" class="(\w+)">', html) == [
        "number",
        "number",
        "text",
        *["number"] * 5,
    ]
    assert html.count("<tr>") == 51
    tiles = re.findall(
        r'png;base64,([^"]*)" alt="\d, predicted 4, 99%"><b>\d</b><small>predicted 4, 99%</small>',
        html,
    )
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(tile)))) for tile in tiles]
    np.testing.assert_array_equal(np.ravel(pixels), np.arange(12 * 784) % 256)


def test_study_page_fits_the_screen(browser: webdriver.Chrome, tmp_path: Path) -> None:
    uri = study(tmp_path).as_uri()
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        screen(browser, width, scheme)
        browser.get(uri)
        assert browser.get_log("browser") == []
        assert (
            browser.execute_script("return document.querySelector('h1').textContent")
            == "A study of <b>"
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        loaded = (
            "return [...document.images].map(image => image.complete && image.naturalWidth > 0)"
        )
        assert browser.execute_script(loaded) == [True] * 14
