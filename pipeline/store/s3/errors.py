"""Translate exceptions of botocore, s3fs and aiohttp into StoreError.

s3fs turns error responses of S3 into `OSError` with the `ClientError` as the cause. It does not change
`NoCredentialsError`, `EndpointConnectionError`, `ConnectTimeoutError`, and aiohttp's errors while a body is read.
"""

from __future__ import annotations

import asyncio

import aiohttp
from botocore import exceptions as boto

from pipeline.store.errors import FREE_SPACE, Operation, StoreError
from pipeline.store.uri import one_line, redact, split_s3

# asyncio.TimeoutError is not the built-in one on Python 3.10; fsspec's FSTimeoutError derives from it.
EXPECTED = (OSError, asyncio.TimeoutError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError)
"""All exceptions that S3 raises in normal operation."""

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
_REFUSED_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
_EXPIRED_KEYS = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_PASSING = {"RequestTimeout", "KMS.InternalException", "KMS.ThrottlingException"}
# Of MinIO, Ceph and others; AWS has no quota.
_FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientCapacity"}
_FULL |= {"InsufficientStorage", "StorageFull", "StorageQuotaExceeded"}


def translate(error: BaseException, operation: Operation, uri: str, endpoint: str | None) -> StoreError:
    """The StoreError for one of the `EXPECTED` exceptions. `endpoint` is None for AWS."""
    status, reason = status_of(error), reason_of(error)
    shown, at = redact(uri), f" at {redact(endpoint)}" if endpoint else ""
    if isinstance(error, _NO_CREDENTIALS):
        message = (
            f"no credentials for '{shown}': {reason}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE or a role, or s3.anonymous=true for a public bucket"
        )
        return StoreError("forbidden", reason, message)
    if code_of(error) in _REFUSED_KEYS | _EXPIRED_KEYS:
        message = f"the credentials for '{shown}'{at} were refused ({reason}); check or renew them"
        # Credentials that expire during a run affect all images that follow, so these count towards
        # input.max_unavailable.
        return StoreError("unavailable" if code_of(error) in _EXPIRED_KEYS else "forbidden", reason, message)
    if code_of(error) == "NoSuchBucket":
        message = (
            f"no such bucket '{split_s3(uri)[0]}'{at} (for '{shown}'); check its name and s3.endpoint_url"
        )
        return StoreError("missing", reason, message)
    if status == 507 or code_of(error) in _FULL:
        message = f"can't {operation} '{shown}'{at} ({reason}); {FREE_SPACE}"
        return StoreError("unavailable", reason, message)
    if status in (401, 403) or isinstance(error, PermissionError):
        permission = {"list": "s3:ListBucket", "read": "s3:GetObject", "write": "s3:PutObject"}[operation]
        message = (
            f"not allowed to {operation} '{shown}'{at} ({reason}); grant {permission}, or check the credentials and "
            "s3.anonymous"
        )
        return StoreError("forbidden", reason, message)
    if isinstance(_cause(error), _UNREACHABLE):
        message = f"can't reach '{shown}'{at} ({reason}); check s3.endpoint_url, s3.region and the network"
        return StoreError("unavailable", reason, message, unreachable=True)
    if status is not None and (status in (408, 409, 425, 429) or status >= 500 or code_of(error) in _PASSING):
        message = f"can't {operation} '{shown}'{at} now ({reason}); run it again when the store is back"
        return StoreError("unavailable", reason, message, busy=True)
    message = f"can't {operation} '{shown}'{at} ({reason}); check its name and s3.*"
    if status == 404 or isinstance(_cause(error), FileNotFoundError):
        return StoreError("missing", reason, message)
    if status == 410 or isinstance(_cause(error), boto.ParamValidationError):  # no bucket can have this name
        return StoreError("unsupported", reason, message)
    # Any other refusal, such as a wrong region or a missing decryption key: waiting does not help, but new settings
    # may, so that the image must be tried again.
    refused = status is not None and 400 <= status < 500
    return StoreError("forbidden" if refused else "unavailable", reason, message)


def lacks_credentials(error: BaseException | None) -> bool:
    """True if there were no credentials to sign the request with."""
    return isinstance(error, _NO_CREDENTIALS)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of the response; None if there was none."""
    cause = _cause(error) if error is not None else None
    if isinstance(cause, boto.ClientError):
        status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return int(status) if status else None
    return cause.status if isinstance(cause, aiohttp.ClientResponseError) else None


def code_of(error: BaseException) -> str:
    """The error code of S3, such as NoSuchBucket; empty if there is none."""
    cause = _cause(error)
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, boto.ClientError) else ""


def _cause(error: BaseException) -> BaseException:
    """The original exception, if s3fs turned it into an OSError."""
    cause = error.__cause__
    return (
        cause if isinstance(cause, (boto.ClientError, aiohttp.ClientError, asyncio.TimeoutError)) else error
    )


def reason_of(error: BaseException) -> str:
    """The reason in one line, without secrets."""
    cause = _cause(error)
    if isinstance(cause, boto.ClientError):
        code = code_of(cause) or str(status_of(cause))
        return one_line(f"{code}: {cause.response.get('Error', {}).get('Message', '')}")
    if isinstance(cause, (asyncio.TimeoutError, TimeoutError)) and not str(cause):
        return "no answer in time"
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, aiohttp.ClientError):
        return one_line(cause.strerror)
    return one_line(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)
