"""What can go wrong between us and a store, translated once: for one image, and for a whole source or output.

s3fs turns the answers of S3 into `OSError` with the `ClientError` as the cause, but passes on unchanged
`NoCredentialsError`, `EndpointConnectionError`, `ConnectTimeoutError` and aiohttp's errors in a body.
fsspec's http raises `FileNotFoundError` for every failure, with the true one as the cause.
"""

from __future__ import annotations

import asyncio
import errno

import aiohttp
from botocore import exceptions as boto

from conf.errors import StoreDownError, UsageError
from model.image.decode import ImageError
from pipeline.store.uri import one_line, protocol, redact, split_s3

# asyncio.TimeoutError is not the built-in one on Python 3.10, and fsspec's FSTimeoutError derives from it.
# ValueError is what names end in that can't be: `https://[`, a port of 99999, a lone surrogate.
EXPECTED = (
    OSError,
    ValueError,
    asyncio.TimeoutError,
    boto.BotoCoreError,
    boto.ClientError,
    aiohttp.ClientError,
)
"""Every exception a store may raise in normal operation. Anything else is a bug and stops the job."""

_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.SSOError,
    boto.TokenRetrievalError,
)
_UNREACHABLE = (
    boto.ConnectionError,
    boto.HTTPClientError,
    aiohttp.ClientConnectionError,
    asyncio.TimeoutError,
    TimeoutError,
    ConnectionError,
)
_REFUSED_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_REFUSED_KEYS |= {"RequestTimeTooSkewed", "TokenRefreshRequired"}
_NO_SUCH_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def _cause(exc: BaseException) -> BaseException:
    """The exception that says most: the server's answer, or what fsspec's http hid in FileNotFoundError."""
    cause = exc.__cause__
    return cause if isinstance(cause, (boto.ClientError, aiohttp.ClientError, asyncio.TimeoutError)) else exc


def status_of(exc: BaseException) -> int | None:
    """The HTTP status behind an exception, if a server answered at all."""
    cause = _cause(exc)
    if isinstance(cause, boto.ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return int(status) if status else None
    return cause.status if isinstance(cause, aiohttp.ClientResponseError) else None


def code_of(exc: BaseException) -> str:
    """The store's own word for the failure (`NoSuchBucket`, `404`), or the name of the exception."""
    cause = _cause(exc)
    if isinstance(cause, boto.ClientError):
        return str(cause.response.get("Error", {}).get("Code") or status_of(cause))
    if isinstance(cause, aiohttp.ClientResponseError):
        return str(cause.status)
    return type(cause).__name__


def explain(exc: BaseException) -> str:
    """One redacted line, for `detail` columns and messages."""
    cause = _cause(exc)
    if isinstance(cause, boto.ClientError):
        return one_line(f"{code_of(cause)}: {cause.response.get('Error', {}).get('Message', '')}")
    if isinstance(cause, aiohttp.ClientResponseError):
        return one_line(f"HTTP {cause.status} {cause.message}")
    if isinstance(cause, (asyncio.TimeoutError, TimeoutError)) and not str(cause):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, aiohttp.ClientError):
        return one_line(cause.strerror)
    return one_line(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)


def is_missing(exc: BaseException) -> bool:
    """True when the store says, without doubt, that there is no such thing, or can't be."""
    status = status_of(exc)
    if status is not None:
        return status in (404, 410)
    cause = _cause(exc)
    if isinstance(cause, (FileNotFoundError, boto.ParamValidationError, ValueError)):
        return True
    return isinstance(cause, OSError) and cause.errno in _NO_SUCH_PLACE


def is_forbidden(exc: BaseException) -> bool:
    """True when the store answered that we may not, or when we have nothing to show it."""
    return status_of(exc) in (401, 403) or isinstance(exc, (PermissionError, *_NO_CREDENTIALS))


def is_down(exc: BaseException | None) -> bool:
    """True when no store answered, or one that can't serve now: waiting helps, changing the command doesn't."""
    if exc is None:
        return False
    return (status_of(exc) or 0) in (429, *range(500, 600)) or isinstance(_cause(exc), _UNREACHABLE)


def image_error(exc: BaseException) -> ImageError:
    """A failed read or look-up -> the class of reject it becomes: missing, forbidden or unavailable."""
    if isinstance(exc, ImageError):
        return exc
    error = "missing" if is_missing(exc) else "forbidden" if is_forbidden(exc) else "unavailable"
    return ImageError(error, explain(exc))


def setup_error(
    kind: type[UsageError], doing: str, uri: str, exc: BaseException, endpoint: str | None
) -> UsageError | StoreDownError:
    """A failure on a whole source or output -> one line that names the URI and the cure.

    A `kind`; StoreDownError when the store answered that it can't serve now, which nobody asked for wrongly.

    `doing` is one of "list", "read", "write". `endpoint` is the S3 endpoint in use, None for AWS itself.
    """
    shown, s3 = redact(uri), protocol(uri) == "s3"
    at = f" at {redact(endpoint)}" if s3 and endpoint else ""
    if isinstance(exc, _NO_CREDENTIALS):
        return kind(
            f"no credentials for '{shown}': {explain(exc)}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE or a role, or s3.anonymous=true for a public bucket"
        )
    if code_of(exc) in _REFUSED_KEYS:
        return kind(f"the credentials for '{shown}'{at} were refused ({explain(exc)}); check or renew them")
    if s3 and code_of(exc) == "NoSuchBucket":
        return kind(
            f"no such bucket '{split_s3(uri)[0]}'{at} (for '{shown}'); check its name and s3.endpoint_url"
        )
    if is_forbidden(exc):
        rights = {"list": "s3:ListBucket", "read": "s3:GetObject", "write": "s3:PutObject"}[doing]
        cure = f"grant {rights}, or check the credentials and s3.anonymous" if s3 else "check the permissions"
        return kind(f"not allowed to {doing} '{shown}'{at} ({explain(exc)}); {cure}")
    if isinstance(_cause(exc), _UNREACHABLE):
        cure = (
            "check s3.endpoint_url, s3.region and the network" if s3 else "check the address and the network"
        )
        return kind(f"can't reach '{shown}'{at} ({explain(exc)}); {cure}")
    if status_of(exc) is not None and is_down(exc):
        return StoreDownError(
            f"can't {doing} '{shown}'{at} now ({explain(exc)}); run again when the store is well"
        )
    return kind(f"can't {doing} '{shown}'{at} ({explain(exc)}); check its name" + (" and s3.*" if s3 else ""))
