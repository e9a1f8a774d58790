"""What the server takes and answers: ``/openapi.json`` and ``/docs`` show it."""

from typing import Annotated, Any, Literal, Self

from mnist_lightning.errors import needs
from mnist_lightning.pictures import recognize

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


class Answer(BaseModel):
    """What a network says of a digit."""

    digit: int = Field(description="the likeliest, by the network and a detector of digits")
    confidence: float = Field(description="the network's probability of that digit")
    certain: bool = Field(description="whether network and detector are sure of it")
    probabilities: list[float] = Field(description="the network's, of the digits 0 to 9")

    @classmethod
    def of(cls, digit: recognize.Digit) -> Self:
        """Return what a network says of a digit."""
        values = digit._asdict()
        values["probabilities"] = digit.probabilities.tolist()
        return cls(**values)


class Digit(Answer):
    """A digit that was found in a picture."""

    no_digit: float = Field(description="the detector's probability that it is no digit")
    box: list[int] = Field(description="left, top, right, bottom in the page's pixels")
    line: int = Field(description="of the page, from 1")
    number: int = Field(description="within the line, from 1: digits without a wide gap")
    page: int = Field(description="of the file, from 1")
    pixels: str | None = Field(
        default=None, description="with pixels=true: what the network saw, a 28x28 PNG in base64"
    )
    others: list[Answer] | None = Field(
        default=None, description="with networks=all: what each further network says"
    )

    @classmethod
    def of(cls, digit: recognize.Digit) -> Self:
        """Return what the server says of a digit."""
        values = digit._asdict()
        values["probabilities"] = digit.probabilities.tolist()
        del values["pixels"]
        return cls(**values)


class Mark(BaseModel):
    """A mark that was not read."""

    box: list[int] = Field(description="left, top, right, bottom in the page's pixels")
    reason: str = Field(description="why, in a few words")


class Picture(BaseModel):
    """The digits of a picture in reading order, page by page."""

    text: str = Field(
        description="its lines, with an empty one between two pages; "
        "a question mark follows a doubtful digit"
    )
    digits: list[Digit]
    ignored: list[Mark] | None = Field(
        default=None,
        description="with ignored=true: the first page's marks that are part of no digit",
    )


class Answers(BaseModel):
    """The answer to pictures, or to images as numbers."""

    pictures: list[Picture] | None = Field(default=None, description="to pictures: each of them")
    digits: list[int] | None = Field(
        default=None, description="to numbers: the digit of each image"
    )
    confidences: list[float] | None = Field(default=None, description="and its probability")
    probabilities: list[list[float]] | None = Field(default=None, description="and those of 0 to 9")


PIXELS = "a 28x28 PNG in base64, as /predict?pixels=true gives it"


class Drawing(BaseModel):
    """A drawing to keep."""

    label: Annotated[int, Field(ge=0, le=9)] | Literal["not"] | None = Field(
        description="the digit, 'not' if it is none, or null to remove the drawing"
    )
    pixels: str = Field(max_length=10_000, description=PIXELS)


class Kept(BaseModel):
    """The number of drawings that are kept, and where."""

    kept: int
    folder: str


class KeptDrawing(BaseModel):
    """A drawing that is kept."""

    label: int | str = Field(description="the digit that somebody said, or 'not'")
    digit: int = Field(description="what the first network says")
    pixels: str = Field(description="a 28x28 PNG in base64")


class Drawings(BaseModel):
    """The drawings that were kept last, the newest first."""

    right: int = Field(description="how many digits the first network reads as their label says")
    digits: int = Field(description="how many have a digit as label")
    drawings: list[KeptDrawing]


class Look(BaseModel):
    """What to look at."""

    pixels: str = Field(max_length=10_000, description=PIXELS)
    digit: int = Field(ge=0, le=9, description="the digit that the saliency is of")
    network: int = Field(0, ge=0, description="the number of the network, from 0")


class Layer(BaseModel):
    """What a layer gives."""

    name: str
    shape: list[int] = Field(description="channels, height and width, or units")
    picture: str = Field(description="a PNG in base64: bright is high")


class Seen(BaseModel):
    """What a network saw in an image."""

    saliency: str = Field(
        description="a PNG in base64: orange speaks for the digit, blue against it"
    )
    layers: list[Layer]
