"""Daft: its own download and image expressions, and a batch UDF."""

from __future__ import annotations

from typing import Any

from bench.peers.common import BATCH, BUNDLE, FOLDER, OUTPUT, load, side

if __name__ == "__main__":
    import daft
    import numpy as np
    from daft import DataType, col

    result = DataType.struct({"caption": DataType.string(), "confidence": DataType.float64()})

    @daft.cls(max_concurrency=1)
    class Captions:
        def __init__(self, bundle: str) -> None:
            self.captioner = load(bundle=bundle)

        @daft.method.batch(return_dtype=result, batch_size=BATCH)  # type: ignore[untyped-decorator]
        def caption(self, images: Any) -> list[dict[str, Any]]:
            pixels = np.stack([np.asarray(image) for image in images.to_pylist()])
            captions = self.captioner.caption(pixels)
            return [{"caption": each.text, "confidence": each.confidence} for each in captions]

    size = side()
    pixels = col("path").download().decode_image().convert_image(mode="RGB").resize(size, size)
    frame = daft.from_glob_path(f"{FOLDER}/*").with_column("pixels", pixels)
    frame = frame.with_column("result", Captions(BUNDLE).caption(col("pixels")))
    frame = frame.select(
        "path",
        col("result").get("caption").alias("caption"),
        col("result").get("confidence").alias("confidence"),
    )
    frame.write_parquet(OUTPUT)
