"""What botocore, s3fs and aiohttp raise, in Nightcap's terms.

s3fs turns the answers of S3 into `OSError` with the `ClientError` as the cause, but passes on unchanged
`NoCredentialsError`, `EndpointConnectionError`, `ConnectTimeoutError` and aiohttp's errors in a body.
"""

from __future__ import annotations

import asyncio

import aiohttp
from botocore import exceptions as boto

from pipeline.store.errors import Doing, StoreError
from pipeline.store.uri import one_line, redact, split_s3

# asyncio.TimeoutError is not the built-in one on Python 3.10; fsspec's FSTimeoutError derives from it.
EXPECTED = (OSError, asyncio.TimeoutError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError)
"""Everything that S3 may raise in normal operation."""

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


def translate(error: BaseException, doing: Doing, uri: str, endpoint: str | None) -> StoreError:
    """One of `EXPECTED` in Nightcap's terms; `endpoint` is None for AWS itself."""
    status, reason = status_of(error), reason_of(error)
    shown, at = redact(uri), f" at {redact(endpoint)}" if endpoint else ""
    if isinstance(error, _NO_CREDENTIALS):
        sentence = (
            f"no credentials for '{shown}': {reason}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE or a role, or s3.anonymous=true for a public bucket"
        )
        return StoreError("forbidden", reason, sentence)
    if code_of(error) in _REFUSED_KEYS:
        sentence = f"the credentials for '{shown}'{at} were refused ({reason}); check or renew them"
        return StoreError("forbidden", reason, sentence)
    if code_of(error) == "NoSuchBucket":
        sentence = (
            f"no such bucket '{split_s3(uri)[0]}'{at} (for '{shown}'); check its name and s3.endpoint_url"
        )
        return StoreError("missing", reason, sentence)
    if status in (401, 403) or isinstance(error, PermissionError):
        right = {"list": "s3:ListBucket", "read": "s3:GetObject", "write": "s3:PutObject"}[doing]
        sentence = (
            f"not allowed to {doing} '{shown}'{at} ({reason}); grant {right}, or check the credentials and "
            "s3.anonymous"
        )
        return StoreError("forbidden", reason, sentence)
    if isinstance(_cause(error), _UNREACHABLE):
        sentence = f"can't reach '{shown}'{at} ({reason}); check s3.endpoint_url, s3.region and the network"
        return StoreError("unavailable", reason, sentence, unreachable=True)
    if status is not None and (status == 429 or status >= 500):
        sentence = f"can't {doing} '{shown}'{at} now ({reason}); run again when the store is well"
        return StoreError("unavailable", reason, sentence, busy=True)
    missing = status in (404, 410) or isinstance(
        _cause(error), (FileNotFoundError, boto.ParamValidationError)
    )
    sentence = f"can't {doing} '{shown}'{at} ({reason}); check its name and s3.*"
    return StoreError("missing" if missing else "unavailable", reason, sentence)


def lacks_credentials(error: BaseException | None) -> bool:
    """True when there was nothing to sign the request with."""
    return isinstance(error, _NO_CREDENTIALS)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an exception, if a server answered at all."""
    cause = _cause(error) if error is not None else None
    if isinstance(cause, boto.ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return int(status) if status else None
    return cause.status if isinstance(cause, aiohttp.ClientResponseError) else None


def code_of(error: BaseException) -> str:
    """S3's own word for a failure, such as NoSuchBucket; empty if it has none."""
    cause = _cause(error)
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, boto.ClientError) else ""


def _cause(error: BaseException) -> BaseException:
    """The answer of the server, where s3fs made an OSError of it."""
    cause = error.__cause__
    return (
        cause if isinstance(cause, (boto.ClientError, aiohttp.ClientError, asyncio.TimeoutError)) else error
    )


def reason_of(error: BaseException) -> str:
    """One line without secrets."""
    cause = _cause(error)
    if isinstance(cause, boto.ClientError):
        code = code_of(cause) or str(status_of(cause))
        return one_line(f"{code}: {cause.response.get('Error', {}).get('Message', '')}")
    if isinstance(cause, (asyncio.TimeoutError, TimeoutError)) and not str(cause):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, aiohttp.ClientError):
        return one_line(cause.strerror)
    return one_line(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)
