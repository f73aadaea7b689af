"""How a file system is opened: S3 options, timeouts, retries, no caches of listings."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from conf.errors import ConfigError
from pipeline.store.uri import is_http, one_line, protocol, redact

CONNECT_S, READ_S, ATTEMPTS = 3, 20, 3  # a wrong endpoint: 3 × 3 s and two pauses, so about 12 s
SETUP_S = 15  # for the whole of a question asked before any work starts
WHOLE_READ_S = 300  # one object, however slowly it drips
CONNECTIONS = 64


@dataclass(frozen=True)
class S3Options:
    """Where S3 is. Holds no secret: credentials come from the standard AWS chain on each machine."""

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False


def resolve_s3_options(options: S3Options, env: Mapping[str, str] | None = None) -> S3Options:
    """Fill in from the environment what is not set. The driver does it once and ships the answer to workers.

    Order: the option, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL; for the region AWS_REGION, AWS_DEFAULT_REGION.
    botocore reads the endpoint variables by itself, but on each worker anew, and does not know AWS_REGION. An
    `endpoint_url` in a profile of ~/.aws/config is left to botocore, and switching all of them off with
    AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true is honoured.
    """
    env = os.environ if env is None else env
    endpoint = options.endpoint_url
    if not endpoint and env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None
    if endpoint and not is_http(endpoint):
        raise ConfigError(f"s3.endpoint_url '{redact(endpoint)}' is no http(s) URL; write http://host:port")
    region = options.region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or None
    return replace(options, endpoint_url=endpoint or None, region=region)


def open_filesystem(uri: str, options: S3Options) -> Any:
    """The fsspec file system behind `uri`: a new one, not from fsspec's cache, and without cached listings.

    `options` must be resolved. OSError for a protocol that fsspec doesn't know or whose package is missing.
    """
    import fsspec

    kwargs: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol(uri) == "s3":
        return _open_s3(options, kwargs)
    if is_http(uri):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=WHOLE_READ_S, sock_connect=CONNECT_S, sock_read=READ_S)
        kwargs["client_kwargs"] = {"timeout": timeout}
    try:
        kind = fsspec.get_filesystem_class(protocol(uri))
        return kind(**kind._get_kwargs_from_urls(uri), **kwargs)
    except (
        ValueError,
        ImportError,
        TypeError,
        AttributeError,
    ) as error:  # unknown, not installed, or needs options
        raise OSError(errno.EPROTONOSUPPORT, one_line(str(error))) from error


def _open_s3(options: S3Options, kwargs: dict[str, Any]) -> Any:
    import s3fs

    config: dict[str, Any] = {
        "connect_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        "max_pool_connections": CONNECTIONS,
    }
    if options.endpoint_url:  # many stores that speak S3 don't know AWS's newer default checksums
        config |= {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    fs = s3fs.S3FileSystem(
        anon=options.anonymous,
        endpoint_url=options.endpoint_url,
        client_kwargs={"region_name": options.region} if options.region else {},
        config_kwargs=config,
        **kwargs,
    )
    fs.retries = 1  # botocore retries already; s3fs would do it 5 times over
    return fs
