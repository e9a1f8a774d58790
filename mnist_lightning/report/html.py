"""HTML pages from the templates in this folder."""

import io
from base64 import b64encode

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from mnist_lightning.report.text import number


def png_base64(image: NDArray[np.uint8]) -> str:
    """Return an image as PNG in base64."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    return b64encode(png.getvalue()).decode()


def render(template: str, **values: object) -> str:
    """Return an HTML page from a template, with all text escaped.

    Args:
        template: The name of the template's file.
        values: The values that the template shows.
    """
    loader = PackageLoader("mnist_lightning.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {"number": number, "formatted": _formatted, "png_base64": png_base64}
    environment.filters["base64"] = lambda content: b64encode(content).decode()
    return environment.get_template(template).render(values)


def _formatted(value: object, style: str) -> str:
    try:
        return style.format(value)[:300]
    except (ValueError, TypeError, OverflowError):  # somebody edited the record
        return str(value)[:300]
