"""Receives the body of a request into memory, within limits. Nothing is written to disk, and no address is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from conf.serve import ServeSettings

MAX_NAME = 255  # characters of a file name that are kept
MAX_FIELDS, MAX_FIELD_BYTES = 64, 64 * 1024  # form fields that are not files, which are ignored


class RefusedError(Exception):
    """A request that is not served, with the HTTP `status` that says why, and `detail` in one line."""

    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail
        super().__init__(status, detail)


@dataclass
class Upload:
    """One image file as it was sent. `name` is the sender's, "" if there is none: text to show, never a path."""

    name: str = ""
    data: bytearray = field(default_factory=bytearray)


class HeldBytes:
    """The bytes of all requests in memory, at most `limit`. For use in one thread."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def take(self, count: int) -> None:
        """Raises RefusedError, 503, if there is no room."""
        if self.held + count > self.limit:
            raise RefusedError(503, "the service holds as many bytes as it may (serve.max_held_bytes)")
        self.held += count

    def give_back(self, count: int) -> None:
        self.held -= count


async def receive(
    content_type: str,
    length: int | None,
    chunks: AsyncIterator[bytes],
    limits: ServeSettings,
    held: HeldBytes,
) -> tuple[list[Upload], int]:
    """The files of a multipart form, or a raw body as one file; and the bytes taken from `held`.

    `length` is the stated length of the body in bytes, if there is one. Any content type but multipart is a raw
    body, since a file is recognized by its content. Raises RefusedError; nothing is held then.
    """
    if length is not None and length > limits.max_request_bytes:
        raise _too_large(limits)
    sink = _Form(content_type, limits) if _is_multipart(content_type) else _Raw()
    taken = 0
    try:
        async for chunk in chunks:
            held.take(len(chunk))
            taken += len(chunk)
            if taken > limits.max_request_bytes:
                raise _too_large(limits)
            sink.write(chunk)
        return sink.finish(), taken
    except BaseException:
        held.give_back(taken)
        raise


def _is_multipart(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def _too_large(limits: ServeSettings) -> RefusedError:
    return RefusedError(
        413, f"the limit of a request is {limits.max_request_bytes:,} bytes (serve.max_request_bytes)"
    )


class _Raw:
    def __init__(self) -> None:
        self.upload = Upload()

    def write(self, chunk: bytes) -> None:
        self.upload.data += chunk

    def finish(self) -> list[Upload]:
        return [self.upload]


class _Form:
    """Collects the files of a multipart form. Other fields are ignored."""

    def __init__(self, content_type: str, limits: ServeSettings) -> None:
        self.limits, self.uploads = limits, list[Upload]()
        self.complete, self.fields, self.field_bytes = False, 0, 0
        self._header = self._value = self._disposition = b""
        self._upload: Upload | None = None
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise RefusedError(400, "the multipart content type states no boundary")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_header,
                    "on_header_value": self._on_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open,
                    "on_part_data": self._on_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise RefusedError(400, f"malformed multipart content type: {error}") from error

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise RefusedError(400, "malformed multipart body") from error

    def finish(self) -> list[Upload]:
        if not self.complete:
            raise RefusedError(400, "the multipart body ends before its last boundary")
        # A browser sends a file field without a file as one without name and content.
        uploads = [upload for upload in self.uploads if upload.name or upload.data]
        if not uploads:
            raise RefusedError(400, "no file in the form; send one as `curl -F file=@photo.jpg` does")
        return uploads

    def _begin(self) -> None:
        self._upload, self._disposition = None, b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            self.fields += 1
            self._limit_fields()
            return
        if len(self.uploads) == self.limits.max_files:
            raise RefusedError(
                413, f"more than {self.limits.max_files} files in one request (serve.max_files)"
            )
        self._upload = Upload(_printable(options[b"filename"]))
        self.uploads.append(self._upload)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._upload is not None:
            self._upload.data += data[start:end]
            return
        self.field_bytes += end - start
        self._limit_fields()

    def _limit_fields(self) -> None:
        if self.fields > MAX_FIELDS or self.field_bytes > MAX_FIELD_BYTES:
            allowed = f"{MAX_FIELDS} form fields of {MAX_FIELD_BYTES:,} bytes in all"
            raise RefusedError(413, f"more than {allowed} beside the files")

    def _end(self) -> None:
        self.complete = True


def _printable(name: bytes) -> str:
    """A file name as one printable line."""
    text = name.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:MAX_NAME]
