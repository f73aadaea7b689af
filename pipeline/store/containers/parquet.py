"""Parquet files with a column of images: bytes, or the `{"bytes", "path"}` of Hugging Face's datasets.

The name of a member is the number of its row, from 0. A row group is a segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.store.base import Body, Store, check_size
from pipeline.store.containers.base import Container, Member
from pipeline.store.errors import StoreError

_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")  # of a column of plain bytes
_AT_ONCE = 32 << 20  # bytes of a row group that are read with one request
_BUFFER = 1 << 20  # bytes that are read at once of a larger one
_MAX_GROUP = 1 << 27  # unpacked bytes of the column in a row group, if they are far more than the packed ones
_MAX_RATIO = 100
_MIN_ROWS = 1 << 20  # that any file may have; a larger one may have as many as it has bytes


class Parquet(Container):
    """A Parquet file. Its footer lists it."""

    only_images: ClassVar[bool] = True
    expected: ClassVar[tuple[type[BaseException], ...]] = (pa.ArrowException, ValueError, IndexError)

    def __init__(self, store: Store, uri: str) -> None:
        super().__init__(store, uri)
        self._read_footer: tuple[str | None, pq.FileMetaData] | None = None

    def is_container(self) -> bool:
        return bool(_image_columns(self._footer()[1].schema.to_arrow_schema()))

    def members(self) -> Iterator[Member]:
        _, footer = self._footer()
        _column(footer)
        row, limit = 0, max(_MIN_ROWS, self.store.stat(self.uri).size or 0)
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            if row + rows > limit:
                raise StoreError(
                    "corrupt", f"a row group of {rows} rows, which is more than the file can have"
                )
            for position in range(rows):
                yield Member(str(row), f"{group}/{position}")
                row += 1

    def contents(self, parts: Iterable[str], max_bytes: int) -> Iterator[Body | StoreError]:
        tag, footer = self._footer()
        column = _column(footer)
        current, position = -1, 0
        values: Iterator[pa.Scalar] = iter(())
        for part in parts:
            group, row = map(int, part.split("/"))
            if group != current or row < position:
                current, position, values = group, 0, self._values(footer, group, column)
            value = next(islice(values, row - position, None), None)
            if value is None:
                raise StoreError("corrupt", f"row group {group} has no row {row}")
            position = row + 1
            yield _content(value.as_py(), max_bytes, tag)

    def _values(self, footer: pq.FileMetaData, group: int, column: str) -> Iterator[pa.Scalar]:
        at_once = _packed_size(footer.row_group(group), column) <= _AT_ONCE
        with (
            self.store.open(self.uri) as stream,
            pq.ParquetFile(stream, metadata=footer, buffer_size=_BUFFER, pre_buffer=at_once) as file,
        ):
            # Row by row, since a dictionary of one large value may stand for all rows.
            for batch in file.iter_batches(1, row_groups=[group], columns=[column]):
                values = batch.column(0)
                yield from pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values

    def _footer(self) -> tuple[str | None, pq.FileMetaData]:
        """The content tag of the file and its metadata, which are read again if the tag has changed."""
        tag, known = self.store.stat(self.uri).content_tag, self._read_footer
        if known is None or tag is None or known[0] != tag:
            with self.store.open(self.uri) as stream:
                self._read_footer = known = (tag, pq.read_metadata(stream))
        return known


def _content(data: bytes | None, max_bytes: int, tag: str | None) -> Body | StoreError:
    try:
        if data is None:
            raise StoreError("empty", "the row has no bytes")
        check_size(len(data), max_bytes)
    except StoreError as error:
        return error
    return Body(data, tag)


def _image_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold images."""
    return [field.name for field in schema if _is_image(field)]


def _is_image(field: pa.Field) -> bool:
    if pa.types.is_struct(field.type):
        index = field.type.get_field_index("bytes")
        return index >= 0 and _is_bytes(field.type.field(index).type)
    return field.name.lower() in _NAMES and _is_bytes(field.type)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column(footer: pq.FileMetaData) -> str:
    """The column of images. Raises StoreError if there is none, or more than one and none is named `image`."""
    columns = _image_columns(footer.schema.to_arrow_schema())
    if len(columns) == 1 or "image" in columns:
        return "image" if "image" in columns else columns[0]
    found = f"several columns of images ({', '.join(columns)})" if columns else "no column of images"
    raise StoreError("unsupported", f"it has {found}; name the one to caption `image`")


def _packed_size(group: pq.RowGroupMetaData, column: str) -> int:
    """The bytes of a column in the file. Raises StoreError if they unpack to far more than images do."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] == column]
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    packed = sum(chunk.total_compressed_size for chunk in chunks)
    if unpacked > _MAX_GROUP and unpacked > _MAX_RATIO * packed:
        raise StoreError("corrupt", f"a row group unpacks to more than {_MAX_RATIO} times its size")
    return int(packed)
