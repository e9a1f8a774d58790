"""What the server takes and answers: ``/openapi.json`` and ``/docs`` show it."""

from typing import Any, Self

from mnist_lightning.errors import needs
from mnist_lightning.pictures import recognize
from mnist_lightning.report.pages import png_base64

with needs("serve"):
    from pydantic import BaseModel, Field

REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": 'The request cannot be used: {"error": "what is wrong"}'},
    503: {"description": "Too many requests are in progress: try again after Retry-After seconds"},
}
NUMBERS = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
}
PICTURES = {
    "type": "object",
    "properties": {"pictures": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}
CONTENT = {
    "image/*": {"type": "string", "format": "binary"},
    "multipart/form-data": PICTURES,
    "application/json": {"type": "object", "properties": {"images": NUMBERS}},
}
ABOUT = """A picture as it is, several pictures as multipart/form-data, or images as JSON, \
white on black: in an image
whose numbers are up to 1 they are shares of white, otherwise 0-255. For example:
curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict"""
BODY = {
    "required": True,
    "content": {kind: {"schema": schema} for kind, schema in CONTENT.items()},
    "description": ABOUT,
}


class Digit(BaseModel):
    """A digit that was found in a picture."""

    digit: int
    confidence: float
    certain: bool
    probabilities: list[float]
    box: list[int] = Field(description="left, top, right, bottom in the page's pixels")
    line: int
    number: int
    page: int
    pixels: str | None = Field(None, description="what the network saw, a 28x28 PNG in base64")

    @classmethod
    def of(cls, digit: recognize.Digit, with_pixels: bool) -> Self:
        """Return what the server says of a digit."""
        values = digit._asdict()
        values["probabilities"] = digit.probabilities.tolist()
        values["pixels"] = png_base64(digit.pixels) if with_pixels else None
        return cls(**values)


class Picture(BaseModel):
    """The digits of a picture in reading order, page by page."""

    text: str = Field(
        description="its lines, with an empty one between two pages; "
        "a question mark follows a doubtful digit"
    )
    digits: list[Digit]


class Answers(BaseModel):
    """The answer to pictures, or to images as numbers."""

    pictures: list[Picture] | None = None
    digits: list[int] | None = None
    confidences: list[float] | None = None
    probabilities: list[list[float]] | None = None


class Drawing(BaseModel):
    """A drawing to keep."""

    label: int = Field(ge=0, le=9)
    pixels: str = Field(
        max_length=10_000, description="a 28x28 PNG in base64, as /predict?pixels=true gives it"
    )
