"""The HTTP application of the service: routes, limits on requests, and errors as `application/problem+json`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from conf.errors import ConfigError
from model.bundle import own_version
from model.image.decode import ImageError
from model.text.language import direction
from pages.rendering import render
from pages.serving.answers import (
    Prediction,
    Predictions,
    Problem,
    prediction,
    problem,
    problem_of,
    problem_response,
)
from pages.serving.counting import Counted
from pages.web.guard import Guarded
from pipeline.serving.answer import Options
from pipeline.serving.service import CaptionService
from pipeline.serving.uploads import RefusedError, Upload, receive

DESCRIPTION = """Captions for photos. Send an image file as a form, or as the whole body:

    curl -F file=@photo.jpg http://HOST:PORT/predict
    curl --data-binary @photo.jpg http://HOST:PORT/predict

JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000, PNM and, if its reader is installed, JPEG XL are recognized
by their content. Errors are `application/problem+json`."""
OWN = "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
OWN += "frame-ancestors 'none'; "
# blob: shows the photos that the page itself was given.
STRICT = OWN + "style-src 'self'; img-src 'self' blob:"
# Swagger UI sets styles from its script, and has small images inside its style sheet.
FOR_DOCS = OWN + "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
# The groups of the API's description.
IMAGES: list[str | Enum] = ["Images"]
OPERATIONS: list[str | Enum] = ["Operations"]
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": {"type": "array", "items": _FILE}}, "required": ["file"]}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": _FORM}, "image/*": {"schema": _FILE}},
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "Malformed form, or no file in it",
        403: "A page of another site sent the request",
        408: "The request did not arrive in time",
        413: "Too many bytes, files or pixels",
        415: "Not an image, or a format that is not read",
        421: "The Host header names another machine, and the service listens on this machine only",
        422: "A damaged image, or a wrong parameter",
        503: "Busy or starting; Retry-After says when to try again",
    }.items()
}


def make_app(service: CaptionService, *, local: bool) -> Counted:
    """The ASGI application of a service, which it closes at shutdown. `service.start` is the caller's.

    With `local`, it answers only requests that are addressed to this machine.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Nightcap",
        version=own_version(),
        description=DESCRIPTION,
        # Relative, so that it also holds behind a proxy that adds a prefix.
        servers=[{"url": ".", "description": "this service"}],
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect states an address, which a proxy may not know
    )
    # The parser of forms logs every malformed one, in its own words. The sender gets the reason.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    _add_api(app, service)
    _add_operations(app, service)
    _add_pages(app, service)
    _add_errors(app)
    return Counted(Guarded(app, _policy, _refuse, local=local), service.metrics)


def _policy(path: str) -> str:
    return FOR_DOCS if path.endswith("/docs") else STRICT


def _refuse(status: int, detail: str) -> Response:
    return problem_response(problem(status, detail))


def _add_api(app: FastAPI, service: CaptionService) -> None:
    settings = service.serve
    count = Query(
        default=None,
        ge=0,
        le=settings.max_alternatives,
        description="Maximum number of alternatives; those that the beam lacks are sampled. Default: the beam's.",
    )
    width = Query(
        default=None,
        ge=1,
        le=settings.max_beam_width,
        description="Width of the beam, 1 = greedy. The confidence is calibrated for the bundle's own only.",
    )

    @app.post(
        "/predict",
        openapi_extra=BODY,
        responses=PROBLEMS,
        summary="Caption one or several images",
        tags=IMAGES,
    )
    async def predict(
        request: Request, n: int | None = count, beam_width: int | None = width
    ) -> Prediction | Predictions:
        """An answer to one image is its caption, or the status says why there is none.

        An answer to several images has status 200 and one entry for each, a caption or a problem.
        """
        options = service.options(beam_width, n)
        async with _received(request, service) as uploads:
            if len(uploads) == 1:
                return await _predict(service, uploads[0], options)
            return Predictions(images=await asyncio.gather(*(_attempt(service, u, options) for u in uploads)))

    if not service.bundle.attends:
        return

    @app.post(
        "/attention",
        openapi_extra=BODY,
        responses={**PROBLEMS, 200: {"content": {"image/png": {}}}},
        response_class=Response,
        summary="A picture of where the model looked for each word",
        tags=IMAGES,
    )
    async def attention(request: Request) -> Response:
        """A PNG for one image: the image, then once per word, dark where the model did not look."""
        async with _received(request, service) as uploads:
            if len(uploads) > 1:
                raise RefusedError(413, f"one image at a time, got {len(uploads)}")
            _, answer = await service.caption(uploads[0].data, service.options(picture=True))
        return Response(answer.picture, media_type="image/png")


async def _predict(service: CaptionService, upload: Upload, options: Options) -> Prediction:
    image, answer = await service.caption(upload.data, options)
    return prediction(upload.name, image, answer, service.bundle)


async def _attempt(service: CaptionService, upload: Upload, options: Options) -> Prediction | Problem:
    try:
        return await _predict(service, upload, options)
    except (ImageError, RefusedError) as error:
        return problem_of(error, upload.name)


@asynccontextmanager
async def _received(request: Request, service: CaptionService) -> AsyncIterator[list[Upload]]:
    """The files of a request, which are held in memory inside the block. Raises RefusedError."""
    service.check_room()
    length = request.headers.get("content-length")
    body = receive(
        request.headers.get("content-type", ""),
        int(length) if length is not None and length.isdigit() else None,
        request.stream(),
        service.serve,
        service.held,
    )
    try:
        uploads, held = await asyncio.wait_for(body, service.serve.upload_seconds)
    except asyncio.TimeoutError:
        limit = f"{service.serve.upload_seconds:g} s (serve.upload_seconds)"
        raise RefusedError(408, f"the request did not arrive within {limit}") from None
    try:
        yield uploads
    finally:
        service.held.give_back(held)


def _add_operations(app: FastAPI, service: CaptionService) -> None:
    @app.get("/health", summary="Whether the process answers", tags=OPERATIONS)
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/ready",
        responses={503: PROBLEMS[503]},
        summary="Whether images can be captioned",
        tags=OPERATIONS,
    )
    async def ready() -> dict[str, str]:
        reason = await service.problem()
        if reason:
            raise RefusedError(503, reason)
        return {"status": "ready", "model_id": service.bundle.model_id}

    @app.get("/metrics", response_class=Response, summary="Metrics for Prometheus", tags=OPERATIONS)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI, service: CaptionService) -> None:
    bundle = service.bundle
    upload = render(
        "upload.html",
        model_id=bundle.model_id,
        attends=bundle.attends,
        language=bundle.language,
        direction=direction(bundle.language),
    )
    docs = render("docs.html")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return upload

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def describe() -> str:
        return docs

    # Swagger UI from a package, since many machines can't reach the servers it is usually loaded from.
    swagger = Path(str(files("fastapi_offline"))) / "static"
    app.mount("/static/swagger", StaticFiles(directory=swagger))
    app.mount("/static", StaticFiles(packages=[("pages", "static")]))


def _add_errors(app: FastAPI) -> None:
    """No answer holds a traceback, a path of this machine, or a value from the request that is not JSON."""

    @app.exception_handler(ImageError)
    @app.exception_handler(RefusedError)
    async def reject(_: Request, error: ImageError | RefusedError) -> Response:
        return problem_response(problem_of(error))

    @app.exception_handler(ConfigError)
    async def misconfigured(_: Request, error: ConfigError) -> Response:
        return problem_response(problem(422, str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        reasons = [f"{e['loc'][-1]}: {e['msg']}, got {str(e['input'])[:40]!r}" for e in error.errors()]
        return problem_response(problem(422, "; ".join(reasons)))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        hints = {
            404: "nothing here; the API is described at /docs",
            405: "another method is needed; see Allow",
        }
        detail = hints.get(error.status_code, error.detail)
        return problem_response(problem(error.status_code, detail), dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:
        return problem_response(problem(500, "an error in the service; its log has the details"))
