"""A FastAPI handler as one writes it first: decode, caption, answer.

    python -m bench.peers.plain_handler BUNDLE PORT

It has the same captioner, precision and memory settings as `nightcap serve`, but neither batches nor limits. FastAPI
calls it in 40 threads.
"""

from __future__ import annotations

import sys

import torch
import uvicorn
from fastapi import FastAPI, UploadFile

from conf.job import ImageLimits
from model.device import keep_freed_memory, usable_cpus
from model.image.decode import decode_resized
from model.inference import load_captioner
from pipeline.bundles import find_bundle
from pipeline.store.stores import Stores


def main() -> None:
    bundle = find_bundle(sys.argv[1], Stores())
    keep_freed_memory()
    torch.set_num_threads(1)  # with requests in several threads, more per request are slower
    captioner, size = load_captioner(bundle, streams=usable_cpus()), bundle.preprocessing
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/predict")
    def predict(file: UploadFile) -> dict[str, object]:
        image = decode_resized(file.file.read(), ImageLimits(), size.width, size.height)
        (caption,) = captioner.caption([image.pixels])
        return {"caption": caption.text, "confidence": caption.confidence}

    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")


if __name__ == "__main__":
    main()
