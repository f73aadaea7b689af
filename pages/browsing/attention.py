"""Where the model looked for each word of a caption, computed when someone asks."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from conf.errors import NightcapError
from conf.job import InputSettings, ModelSettings
from pipeline.bundles import configured_bundle
from pipeline.stages.decode_process import DecodeProcess
from pipeline.store.stores import Stores

if TYPE_CHECKING:
    from model.bundle import Bundle
    from model.captioner import Captioner


class AttentionMaps:
    """Attention maps by the configured bundle. The model is loaded for the first one. One is made at a time."""

    def __init__(self, stores: Stores, model: ModelSettings, limits: InputSettings) -> None:
        self._stores, self._model, self._limits = stores, model, limits
        self._busy = threading.Lock()

    @cached_property
    def _bundle(self) -> Bundle | str:
        """The bundle, or why its model has no attention maps. Raises NightcapError if it can't be read now."""
        bundle = configured_bundle(self._model, self._stores)
        if not bundle.attends:
            return f"the model {bundle.model_id} does not attend to parts of the image"
        return bundle

    @cached_property
    def _captioner(self) -> Captioner:
        from model.inference import load_captioner

        assert not isinstance(self._bundle, str)  # noqa: S101 - checked by `png`
        return load_captioner(self._bundle, self._model.device, self._model.precision)

    def problem(self, model_id: str) -> str:
        """Why there is no attention map for captions of a model; empty if there is one."""
        try:
            with self._busy:
                bundle = self._bundle
        except NightcapError as error:  # it may be over at the next request
            return str(error)
        if isinstance(bundle, str):
            return bundle
        if bundle.model_id != model_id:
            return (
                f"this caption was made by {model_id}, not by {bundle.model_id}: to see where it looked, browse with "
                "its bundle (--model) and its settings (--set)"
            )
        return ""

    def png(self, path: str) -> bytes:
        """The picture of an image with the attention of each word. Raises StoreError, ImageError, ConfigError."""
        from model.evaluation.attention_map import TILE, caption_attention, draw_attention

        data = self._stores.of(path).read(path, self._limits.max_bytes).data
        with self._busy:
            size = self._captioner.preprocessing
            model_input = DecodeProcess(size.width, size.height, self._limits)
            tile = DecodeProcess(TILE, TILE, self._limits)
            try:
                words, weights = caption_attention(self._captioner, model_input.decode(data).pixels)
                return draw_attention(tile.decode(data).pixels, words, weights)
            finally:
                model_input.close()
                tile.close()
