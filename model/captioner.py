"""The captioner: encoder and decoder in one module, from pixels to captions."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conf.captioner import Architecture, Decoding, EnsembleArchitecture, Preprocessing
from model.bundle_schema import Calibration
from model.image.transforms import normalize
from model.network.decoder import Decoder, Memory
from model.network.decoders import make_decoder
from model.network.encoder import Encoder
from model.network.ensemble import EnsembleDecoder, EnsembleEncoder
from model.network.int8 import Int8Encoder
from model.search.beam import NEVER, Hypotheses, beam_search, greedy_search, sample
from model.search.confidence import calibrated_confidence, evidence
from model.search.consensus import by_consensus
from model.search.novelty import novelty_of
from model.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Caption:
    """A caption and its confidence.

    `confidence`, 0…1, is the probability that the caption agrees with people's captions if `calibrated`, else the
    geometric mean of its token probabilities. `avg_logprob` is the mean log-probability of its tokens.
    """

    text: str
    confidence: float
    avg_logprob: float
    calibrated: bool


class Captioner(nn.Module):
    """CNN encoder and LSTM decoder, with the vocabulary and the settings that turn uint8 pixels into text.

    A `calibration` applies only with the decoding settings that it was fitted for. `centres` (K, D) are directions of
    training images, for calibrations that read the novelty of an image. Raises ConfigError for an encoder or decoder
    that can't be built.
    """

    def __init__(
        self,
        architecture: Architecture,
        vocabulary: Vocabulary,
        preprocessing: Preprocessing,
        decoding: Decoding,
        calibration: Calibration | None = None,
        centres: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.vocabulary = architecture, vocabulary
        self.preprocessing, self.decoding, self.calibration = preprocessing, decoding, calibration
        self.centres = centres
        self.encoder, self.decoder = _build(architecture, len(vocabulary))
        self.int8_encoder: Int8Encoder | None = None

    def prepare(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        int8_encoder: Int8Encoder | None = None,
    ) -> Captioner:
        """Prepare for inference on `device`, in place: fold batch-norm, use channels-last, switch gradients off.

        An `int8_encoder` replaces the encoder in `features`.
        """
        self.eval().requires_grad_(False)
        self.int8_encoder = int8_encoder
        self.encoder.fold()
        self.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
        self.centres = None if self.centres is None else self.centres.to(device)
        if device.type == "cpu":
            self.decoder.pack()
        return self

    @property
    def device(self) -> torch.device:
        """The device of the decoder."""
        return next(self.decoder.parameters()).device

    @torch.inference_mode()
    def caption(self, pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> list[Caption]:
        """The captions of B images, in order.

        `pixels` are uint8 RGB (B, height, width, 3), in the size of the preprocessing settings.
        """
        return self.caption_features(self.features(_batch(pixels)))

    def features(self, pixels: Tensor) -> Tensor:
        """Annotation vectors (B, L, D) of uint8 RGB pixels (B, height, width, 3), on the model's device."""
        weight = next(self.decoder.parameters())
        if weight.device.type == "cuda":
            pixels = pixels.pin_memory()  # so that `normalize` need not wait for the copy
        if self.int8_encoder is not None:
            return self.int8_encoder(pixels).to(weight.dtype)
        vectors: Tensor = self.encoder(normalize(pixels, self.preprocessing, weight.device, weight.dtype))
        return vectors

    def with_decoding(self, decoding: Decoding) -> Captioner:
        """The same captioner, sharing its weights, with other decoding settings."""
        other = copy(self)
        other.decoding = decoding
        return other

    def caption_features(self, features: Tensor) -> list[Caption]:
        """The captions of B images from their annotation vectors (B, L, D)."""
        return self.best(self.search(features), features)

    def best(self, hypotheses: Hypotheses, features: Tensor) -> list[Caption]:
        """The best caption of each of B images, with its confidence; `features` are their annotation vectors."""
        avg_logprob, calibrated = hypotheses.avg_logprob(), False
        confidence = avg_logprob.exp()
        if self.calibration is not None and self.calibration.decoding == self.decoding:
            novelty = self.novelty(features)
            confidence = calibrated_confidence(self.calibration, evidence(hypotheses), novelty)
            calibrated = True
        texts = [self.vocabulary.decode(ids) for ids in hypotheses.tokens[:, 0].tolist()]
        rows = zip(texts, confidence.tolist(), avg_logprob.tolist(), strict=True)
        return [Caption(text, round(c, 6), round(m, 6), calibrated) for text, c, m in rows]

    def novelty(self, features: Tensor) -> Tensor | None:
        """How unlike the training images each image is: (B,), or None without `centres`."""
        return None if self.centres is None else novelty_of(features, self.centres)

    @torch.inference_mode()
    def search(self, features: Tensor) -> Hypotheses:
        """The best captions of each image by the decoding settings, from annotation vectors (B, L, D)."""
        memory: Memory = self.decoder.encode_image(features)
        if self.decoding.beam_width == 1:
            return greedy_search(self.decoder, memory, self.decoding)
        hypotheses = beam_search(self.decoder, memory, self.decoding)
        return by_consensus(hypotheses) if self.decoding.consensus else hypotheses

    @torch.inference_mode()
    def sample(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        count: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[str]]:
        """At most `count` distinct captions of each of B images, drawn at random and sorted by score.

        `pixels` as in `caption`; `temperature` and `top_p` as in `model.search.beam.sample`.
        """
        return self.texts(
            self.sample_features(self.features(_batch(pixels)), count, temperature, top_p, seed)
        )

    @torch.inference_mode()
    def sample_features(
        self, features: Tensor, count: int, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0
    ) -> Hypotheses:
        """`count` captions of each image, drawn at random, from annotation vectors (B, L, D)."""
        memory = self.decoder.encode_image(features)
        generator = torch.Generator(memory.device).manual_seed(seed)
        return sample(self.decoder, memory, self.decoding, count, temperature, top_p, generator)

    def texts(self, hypotheses: Hypotheses) -> list[list[str]]:
        """The distinct captions of each of B images, in the order of the hypotheses."""
        found = (hypotheses.scores > NEVER / 2).tolist()
        lists = []
        for tokens, exists in zip(hypotheses.tokens.tolist(), found, strict=True):
            texts = [self.vocabulary.decode(ids) for ids, real in zip(tokens, exists, strict=True) if real]
            lists.append(list(dict.fromkeys(texts)))
        return lists


def _batch(pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.array(pixels))  # a copy: PyTorch takes no read-only arrays


def _build(architecture: Architecture, vocabulary_size: int) -> tuple[Encoder | EnsembleEncoder, Decoder]:
    """Encoder and decoder with random weights."""
    if isinstance(architecture, EnsembleArchitecture):
        members = [_build(member, vocabulary_size) for member in architecture.members]
        encoders = EnsembleEncoder([encoder for encoder, _ in members if isinstance(encoder, Encoder)])
        return encoders, EnsembleDecoder([decoder for _, decoder in members], encoders.channels)
    encoder = Encoder(architecture.encoder.name, architecture.encoder.pooled)
    return encoder, make_decoder(architecture.decoder, vocabulary_size, encoder.channels)
