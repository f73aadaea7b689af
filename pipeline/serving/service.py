"""The service: decode processes and captioners of one process, with a bounded number of images in them."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from PIL import Image

from conf.job import ImageLimits, ModelSettings, WorkerSettings
from conf.serve import ServeSettings
from model.bundle import Bundle
from model.captioner import Captioner
from model.device import usable_cpus, usable_gpus
from model.image.decode import DecodedImage, ImageError, Pixels
from pipeline.engines.layout import make_local_layout
from pipeline.serving.answer import Answer, Options, answer
from pipeline.serving.batcher import Batcher
from pipeline.serving.metrics import Metrics
from pipeline.serving.uploads import HeldBytes, RefusedError
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode_process import DecodeProcess

logger = logging.getLogger(f"nightcap.{__name__}")
UNLIMITED = 2**31  # images: the stages are laid out as for a long run
PROBE_AFTER_S = 10.0  # without an answer of a decode process, `problem` decodes an image of its own
PROBE_S = 10.0


class CaptionService:
    """Captions images for many requests at a time, with the layout and the stages of a run with the local engine.

    It computes with `cpus` CPUs, all that this process may use by default.
    `limits` apply to each image; decoding one may take `answer_seconds` of CPU time at most. Call `start`, then
    `caption` in one event loop, then `close`.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: ModelSettings,
        workers: WorkerSettings,
        limits: ImageLimits,
        serve: ServeSettings,
        cpus: int | None = None,
    ) -> None:
        self.bundle, self.model, self.serve = bundle, model, serve
        self.metrics, self.held, self.waiting = Metrics(), HeldBytes(serve.max_held_bytes), 0
        self.metrics.waiting.set_function(lambda: self.waiting)
        self.metrics.held.set_function(lambda: self.held.held)
        self._layout = make_local_layout(cpus or usable_cpus(), usable_gpus(), model, workers, UNLIMITED)
        seconds = min(limits.decode_timeout_seconds, math.ceil(serve.answer_seconds))
        limits = limits.model_copy(update={"decode_timeout_seconds": seconds})
        size, decoders = bundle.preprocessing, self._layout.decoders
        self._processes = [DecodeProcess(size.width, size.height, limits) for _ in range(decoders)]
        self._idle: SimpleQueue[DecodeProcess] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._batcher: Batcher[Options, Pixels, Answer] = Batcher(serve.batch_size)
        self._loaded: Future[None] = Future()
        self._answered_at = -math.inf  # when a decode process last answered, also that a file is no image

    def start(self) -> Future[None]:
        """Load the model in the background. Images may be sent before it is there.

        The result raises ConfigError or BundleError if it can't be loaded.
        """
        self._loaded = self._decoders.submit(self._load)
        for _ in self._processes:  # they start with their first image
            self._decoders.submit(self._decode_in_process, _pixel())
        return self._loaded

    def options(
        self, beam_width: int | None = None, alternatives: int | None = None, *, picture: bool = False
    ) -> Options:
        """Options for `caption`; None is the bundle's value. Raises ConfigError for a beam it can't search with."""
        decoding = self.bundle.with_decoding(beam_width=beam_width).decoding
        return Options(decoding, alternatives, picture)

    async def caption(self, data: bytes | bytearray, options: Options) -> tuple[DecodedImage, Answer]:
        """Decode and caption one image file.

        Raises ImageError for an image that can't be captioned, and RefusedError, 503, if the service is full or too
        slow.
        """
        with self._admitted():
            try:
                return await asyncio.wait_for(self._caption(data, options), self.serve.answer_seconds)
            except asyncio.TimeoutError:
                limit = f"{self.serve.answer_seconds:g} s (serve.answer_seconds)"
                raise RefusedError(503, f"no answer within {limit}; the service is busy") from None
            except ImageError as error:
                self.metrics.rejected.labels(error.error_class).inc()
                raise

    def check_room(self) -> None:
        """Raises RefusedError, 503, if the service takes no images now."""
        if self.waiting >= self.serve.max_waiting:
            raise RefusedError(503, f"{self.waiting} images are waiting, the limit (serve.max_waiting)")

    async def problem(self) -> str:
        """Why the service is not ready; empty if the model is loaded and decoding works.

        A service that is busy, or gets damaged images only, is ready.
        """
        if not self._loaded.done():
            return "the model is being loaded"
        if self._loaded.exception() is not None:
            return "the model could not be loaded"
        try:
            if not self._decoding_works():
                await asyncio.wait_for(self._decode(_pixel()), PROBE_S)
        except asyncio.TimeoutError:  # it may have waited behind large images
            works = self._decoding_works()
        except (ImageError, RuntimeError):
            works = False
        else:
            works = True
        return "" if works else "the decode process does not answer"

    def close(self) -> None:
        """Finish what is being computed, and end all threads and processes."""
        for process in self._processes:
            process.close()
        self._decoders.shutdown(cancel_futures=True)
        self._batcher.close()

    def _decoding_works(self) -> bool:
        """Whether it is known without a probe: one has answered lately, or all that did before are busy.

        A busy process ends by its limits on time.
        """
        busy = self._idle.empty() and self._answered_at > -math.inf
        return busy or time.monotonic() - self._answered_at <= PROBE_AFTER_S

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        self.check_room()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _caption(self, data: bytes | bytearray, options: Options) -> tuple[DecodedImage, Answer]:
        image = await self._decode(data)
        return image, await asyncio.wrap_future(self._batcher.submit(options, image.pixels))

    async def _decode(self, data: bytes | bytearray) -> DecodedImage:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, self._decode_in_process, data)

    def _decode_in_process(self, data: bytes | bytearray) -> DecodedImage:
        process = self._idle.get()
        try:
            image = process.decode(data)
        except ImageError:
            self._answered_at = time.monotonic()
            raise
        else:
            self._answered_at = time.monotonic()
            return image
        finally:
            self._idle.put(process)

    def _load(self) -> None:
        layout = self._layout
        for device in layout.devices:
            actor = CaptionActor(
                lambda: self.bundle, device, self.model.precision, layout.threads, layout.models_per_device
            )
            worker = partial(self._answer, actor.captioner)
            self._batcher.start([worker] * layout.models_per_device)

    def _answer(self, captioner: Captioner, options: Options, pixels: list[Pixels]) -> list[Answer]:
        answers = answer(captioner, pixels, options)
        self.metrics.batches.observe(len(pixels))
        self.metrics.captioned.inc(len(pixels))
        return answers


def _pixel() -> bytes:
    """A PNG file of one pixel."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "png")
    return buffer.getvalue()
