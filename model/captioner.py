"""The captioner: encoder and decoder in one module, from pixels to captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.image.transforms import normalise
from model.network.decoder import Decoder, Memory
from model.network.decoders import make_decoder
from model.network.encoder import Encoder
from model.network.ensemble import EnsembleDecoder, EnsembleEncoder
from model.options import DecodingOptions, Preprocessing
from model.search.beam import Decoded, beam_search, greedy_search, sample
from model.search.confidence import Calibrator, evidence
from model.search.consensus import by_consensus
from model.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Caption:
    """A caption. `confidence` in 0…1 is the probability that it agrees with people's when `calibrated`.

    Else it is the geometric mean of the token probabilities, whose logarithm `avg_logprob` always is.
    """

    text: str
    confidence: float
    avg_logprob: float
    calibrated: bool


class Captioner(nn.Module):
    """CNN encoder + LSTM decoder with everything needed to go from uint8 pixels to text.

    `architecture` is what `config.json` of a bundle holds: `{"encoder": {"name": …, "pooled": …},
    "decoder": {"name": …, **sizes}}`, or `{"members": [several of these]}`. A `calibrator` speaks only for the
    decoding it was fitted for. Raises ConfigError for unknown names and sizes.
    """

    def __init__(
        self,
        architecture: dict[str, Any],
        vocabulary: Vocabulary,
        preprocessing: Preprocessing,
        decoding: DecodingOptions,
        calibrator: Calibrator | None = None,
    ) -> None:
        super().__init__()
        self.calibrator = calibrator
        self.architecture, self.vocabulary = architecture, vocabulary
        self.preprocessing, self.decoding = preprocessing, decoding
        self.encoder, self.decoder = _parts(architecture, len(vocabulary))

    def prepare(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Captioner:
        """Make ready for inference on `device`: batch-norm folded, channels-last, no gradients. In place."""
        self.eval().requires_grad_(False)
        self.encoder.fold()
        self.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
        return self

    @torch.inference_mode()
    def decode(self, features: Tensor) -> Decoded:
        """(B, L, D) annotation vectors -> the best captions of each, by the decoding options of this captioner."""
        memory: Memory = self.decoder.remember(features)
        if self.decoding.beam_width == 1:
            return greedy_search(self.decoder, memory, self.decoding)
        decoded = beam_search(self.decoder, memory, self.decoding)
        return by_consensus(decoded) if self.decoding.consensus else decoded

    def search(self, features: Tensor) -> list[Caption]:
        """(B, L, D) annotation vectors -> B captions."""
        decoded = self.decode(features)
        mean, calibrated = decoded.avg_logprob(), False
        confidence = mean.exp()
        if self.calibrator is not None and self.calibrator.fits(self.decoding):
            confidence, calibrated = self.calibrator.probability(evidence(decoded)), True
        texts = [self.vocabulary.decode(ids) for ids in decoded.tokens[:, 0].tolist()]
        rows = zip(texts, confidence.tolist(), mean.tolist(), strict=True)
        return [Caption(text, round(c, 6), round(m, 6), calibrated) for text, c, m in rows]

    @torch.inference_mode()
    def several(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        captions: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[str]]:
        """Different captions of each of B images, drawn at random: at most so many, the likelier ones first."""
        memory = self.decoder.remember(self.encoder(self._images(pixels)))
        generator = torch.Generator(memory.device).manual_seed(seed)
        drawn = sample(self.decoder, memory, self.decoding, captions, temperature, top_p, generator)
        return [list(dict.fromkeys(map(self.vocabulary.decode, one))) for one in drawn.tokens.tolist()]

    @torch.inference_mode()
    def caption(self, pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> list[Caption]:
        """(B, height, width, 3) uint8 RGB images of the bundle's size -> B captions, in order."""
        return self.search(self.encoder(self._images(pixels)))

    def _images(self, pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> Tensor:
        weight = next(self.decoder.parameters())
        batch = torch.from_numpy(np.ascontiguousarray(np.stack(list(pixels))))
        return normalise(batch, self.preprocessing, weight.device, weight.dtype)


def _parts(architecture: dict[str, Any], words: int) -> tuple[Encoder | EnsembleEncoder, Decoder]:
    """Encoder and decoder for a vocabulary of so many words."""
    if "members" in architecture:
        members = [_parts(member, words) for member in architecture["members"]]
        encoders = EnsembleEncoder([encoder for encoder, _ in members if isinstance(encoder, Encoder)])
        return encoders, EnsembleDecoder([decoder for _, decoder in members], encoders.channels)
    encoder, sizes = Encoder(**architecture["encoder"]), dict(architecture["decoder"])
    return encoder, make_decoder(sizes.pop("name"), words, encoder.channels, sizes)
