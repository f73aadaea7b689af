"""Ray Data's template for batch inference: `read_images`, and a pool of actors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.peers.common import BATCH, BUNDLE, CORES, FOLDER, OUTPUT, load, side


class Captions:
    def __init__(self, bundle: str) -> None:
        self.captioner = load(1, bundle)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        captions = self.captioner.caption(batch["image"])
        return {
            "path": batch["path"],
            "caption": [caption.text for caption in captions],
            "confidence": [caption.confidence for caption in captions],
        }


if __name__ == "__main__":
    import ray
    from ray.data import ActorPoolStrategy

    size = side()
    environment = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    ray.init(
        address="local",
        num_cpus=CORES,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    images = ray.data.read_images(FOLDER, size=(size, size), mode="RGB", include_paths=True)
    captions = images.map_batches(
        Captions,
        fn_constructor_args=(BUNDLE,),
        batch_size=BATCH,
        compute=ActorPoolStrategy(size=max(1, CORES // 2)),
        num_cpus=1,
    )
    captions.write_parquet(OUTPUT)
