"""The JSON that the service sends: captions, and problems as RFC 9457 describes them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from model.bundle import Bundle
from model.image.decode import DecodedImage, ImageError
from pipeline.serving.answer import Answer
from pipeline.serving.uploads import RefusedError

RETRY_AFTER_S = 2  # of status 503: about what a full queue takes on two cores
STATUS = {
    "too_large": 413,
    "too_many_pixels": 413,
    "unsupported": 415,
    "empty": 422,
    "truncated": 422,
    "corrupt": 422,
    "poison": 422,
    "out_of_memory": 503,
}
"""The HTTP status of each error class that an upload can have."""


class Alternative(BaseModel):
    """Another caption of the image."""

    caption: str
    source: Literal["beam", "sample"] = Field(
        description="beam = found by the search, sample = drawn at random"
    )


class Prediction(BaseModel):
    """The caption of an image."""

    file: str = Field(description="The sender's name of the file, or an empty string.")
    caption: str
    language: str = Field(description="Language of the caption by BCP 47, such as en or zh.")
    confidence: float = Field(
        description="0…1. If `calibrated`, the probability that the caption agrees with what people write."
    )
    calibrated: bool = Field(
        description="False = `confidence` is the geometric mean of the token probabilities."
    )
    confidence_in_words: str
    avg_logprob: float = Field(description="Mean log-probability of the tokens.")
    alternatives: list[Alternative]
    width: int = Field(description="Pixels of the full image, after EXIF orientation.")
    height: int
    model_id: str


class Problem(BaseModel):
    """Why a request or an image failed (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(description="The phrase of the status.")
    status: int
    detail: str
    error_class: str | None = Field(
        default=None, description=f"Of an image: {', '.join(STATUS)}; as in the table `rejects` of a run."
    )
    file: str | None = Field(
        default=None, description="In an answer to several images: the name of the file."
    )


class Predictions(BaseModel):
    """The captions of several images, in the order in which they were sent."""

    images: list[Prediction | Problem]


def prediction(name: str, image: DecodedImage, answer: Answer, bundle: Bundle) -> Prediction:
    """The prediction for a file, captioned by `bundle`."""
    caption = answer.caption
    people = bundle.config.scores.confidence.get("people_agreeing")
    return Prediction(
        file=name,
        caption=caption.text,
        language=bundle.language,
        confidence=caption.confidence,
        calibrated=caption.calibrated,
        confidence_in_words=confidence_in_words(caption.confidence, people, calibrated=caption.calibrated),
        avg_logprob=caption.avg_logprob,
        alternatives=[Alternative(caption=text, source=source) for text, source in answer.alternatives],
        width=image.width,
        height=image.height,
        model_id=bundle.model_id,
    )


def confidence_in_words(confidence: float, people: float | None, *, calibrated: bool) -> str:
    """A confidence, 0…1, as a sentence for people who don't know the term.

    `people` is the share of people's own captions that agree with those of others, on the data of the calibration:
    what is high or low is measured by it. None: it is not known, and nothing is said about it.
    """
    if not calibrated:
        return (
            f"Not calibrated: {confidence:.2f} is the mean probability of a word. "
            "Compare it with that of other images only."
        )
    share = f"{_share(confidence)} captions like this agree with what people write."
    if not people:
        return share[0].upper() + share[1:]
    level = "High" if confidence >= people else "Medium" if confidence >= people / 2 else "Low, check it"
    return f"{level}: {share} Of captions written by people, {_share(people)} do."


def _share(share: float) -> str:
    tenths = round(10 * share)
    return f"about {tenths} in 10" if tenths else "fewer than 1 in 20"


def problem(status: int, detail: str, error_class: str | None = None, file: str | None = None) -> Problem:
    return Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, error_class=error_class, file=file
    )


def problem_of(error: ImageError | RefusedError, file: str | None = None) -> Problem:
    """The problem of an image, or of a request that is not served."""
    if isinstance(error, RefusedError):
        return problem(error.status, error.detail, file=file)
    return problem(STATUS[error.error_class], error.detail, error.error_class, file)


def problem_response(of: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response for a problem; 503 states when to try again."""
    headers = dict(headers or {})
    if of.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    content = of.model_dump(exclude_none=True)
    return JSONResponse(content, of.status, headers, media_type="application/problem+json")
