"""Blocks as HTML: a self-contained page, and what a notebook shows."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from numpy.typing import NDArray
from PIL import Image

from mnist_lightning.files import write_atomic


def write_page(
    folder: Path,
    title: str,
    lead: str,
    headline: Mapping[str, str],
    sections: Mapping[str, Sequence[object]],
) -> Path:
    """Write a page and return its path, ``index.html`` in the folder.

    Args:
        folder: The folder to write to, made if there is none.
        title: The heading of the page.
        lead: A line below the heading.
        headline: The names and values of the cards at the top.
        sections: The blocks of each section, by its heading. The page leaves out blocks without
            content, and sections without blocks.

    Raises:
        OSError: If the folder cannot be written to.
    """
    shown = {}
    for heading, blocks in sections.items():
        if kept := [block for block in blocks if block]:
            shown[heading] = kept
    html = render("page.html", title=title, lead=lead, headline=headline, sections=shown)
    folder.mkdir(parents=True, exist_ok=True)
    # A file name or a record may hold characters that UTF-8 cannot encode.
    write_atomic(folder / "index.html", html.encode(errors="replace"))
    return folder / "index.html"


def notebook(blocks: Sequence[object], title: str = "", page: Path | None = None) -> str:
    """Return blocks as HTML that suits the light and the dark theme of a notebook.

    Args:
        blocks: What to show; those without content are left out.
        title: A heading.
        page: A page to link to.
    """
    return render("notebook.html", blocks=filter(None, blocks), title=title, page=page)


def png_base64(image: NDArray[np.uint8]) -> str:
    """Return an image as PNG in base64."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    return _base64(png.getvalue())


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


def render(template: str, **values: object) -> str:
    """Return what a template of this folder makes of values; in HTML all text is escaped."""
    environment = Environment(
        loader=PackageLoader("mnist_lightning.report", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["base64"] = _base64
    environment.filters["png_base64"] = png_base64
    return environment.get_template(template).render(values)
