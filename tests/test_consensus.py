"""Consensus decoding: batched pairwise CIDEr-D of hypotheses, and the selection by it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from conf.captioner import Decoding
from model.search.beam import NEVER, Hypotheses, beam_search
from model.search.consensus import TEMPERATURE, by_consensus, pairwise_cider_d
from model.text.vocabulary import END, PAD
from tests import tiny


def cider_d(candidate: list[int], reference: list[int]) -> float:
    """CIDEr-D of one pair by its definition, n-gram by n-gram."""

    def vector(words: list[int], n: int) -> dict[tuple[int, ...], float]:
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        return {gram: count * sum(math.log(word + 1) for word in gram) for gram, count in grams.items()}

    total = 0.0
    for n in range(1, 5):
        a, b = vector(candidate, n), vector(reference, n)
        norms = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
        if norms:
            total += sum(min(value, b.get(gram, 0.0)) * b.get(gram, 0.0) for gram, value in a.items()) / norms
    return 10 * total / 4 * math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * 6.0**2))


def decoded(captions: list[list[int]], sums: list[float]) -> Hypotheses:
    """The hypotheses of one image, with their Σ log p."""
    longest = max(map(len, captions)) + 1
    tokens = torch.tensor([[*words, END, *[PAD] * (longest - len(words) - 1)] for words in captions])
    lengths = torch.tensor([len(words) + 1 for words in captions])
    logprobs = torch.zeros(len(captions), longest)
    logprobs[:, 0] = torch.tensor(sums)
    return Hypotheses(
        tokens[None], logprobs[None], lengths[None], torch.tensor(sums)[None], torch.zeros(1, len(sums))
    )


def test_pairwise_cider_d_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    captions = [
        torch.randint(4, 9, (length,), generator=generator).tolist() for length in (1, 2, 3, 6, 6, 9, 12)
    ]
    captions.append([5, 5, 5, 5, 6, 6])  # repeats are clipped
    captions.append(captions[3])
    hypotheses = decoded(captions, [0.0] * len(captions))
    gain = pairwise_cider_d(hypotheses.tokens, hypotheses.lengths)[0]
    reference = [[cider_d([*a, END], [*b, END]) for b in captions] for a in captions]
    assert gain == pytest.approx(torch.tensor(reference), abs=1e-4)
    assert gain[3, 8] == pytest.approx(10.0, abs=1e-4)  # equal captions of six words match in all four orders


def test_a_hypothesis_similar_to_the_others_wins_over_a_likelier_one() -> None:
    odd, alike, also = [9, 8, 7, 6], [4, 5, 6, 7], [4, 5, 6, 8]
    hypotheses = by_consensus(decoded([odd, alike, also], [-1.0, -1.1, -1.2]))
    assert hypotheses.tokens[0, 0].tolist()[:4] == alike
    assert hypotheses.tokens[0, -1].tolist()[:4] == odd
    assert hypotheses.scores[0].tolist() == sorted(hypotheses.scores[0].tolist(), reverse=True)
    assert hypotheses.logprobs[0, :, 0].tolist() == pytest.approx([-1.1, -1.2, -1.0])  # in the new order


def test_a_nearly_certain_hypothesis_wins_without_agreement() -> None:
    """The temperature determines how certain a hypothesis must be."""
    odd, alike, also = [9, 8, 7, 6], [4, 5, 6, 7], [4, 5, 6, 8]
    sure = 10 * TEMPERATURE
    assert by_consensus(decoded([odd, alike, also], [0.0, -sure, -sure])).tokens[0, 0].tolist()[:4] == odd


def test_empty_hypotheses_do_not_vote() -> None:
    hypotheses = decoded([[4, 5, 6, 7], [4, 5, 6, 8], [9, 9, 9, 9]], [-1.0, -1.5, 0.0])
    hypotheses.scores[0, 2] = NEVER
    result = by_consensus(hypotheses)
    assert result.tokens[0, 0].tolist()[:4] == [4, 5, 6, 7]
    assert result.scores[0, 2] == NEVER


def test_consensus_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.captioner()
    memory = model.decoder.encode_image(torch.randn(6, 4, 1280))
    beams = beam_search(model.decoder, memory, Decoding(beam_width=5, max_length=7))
    together = by_consensus(beams)
    for i in range(6):
        alone = by_consensus(Hypotheses(*(part[i : i + 1] for part in vars(beams).values())))
        assert torch.equal(alone.tokens[0], together.tokens[i])
    monkeypatch.setattr("model.search.consensus._CHUNK", 1)  # one image at a time
    assert torch.equal(by_consensus(beams).tokens, together.tokens)


def test_the_consensus_option_selects_by_consensus() -> None:
    model = tiny.captioner()
    features = torch.randn(8, 4, 1280)
    model.decoding = Decoding(beam_width=6, max_length=7)
    plain = model.search(features)
    model.decoding = Decoding(beam_width=6, max_length=7, consensus=True)
    assert torch.equal(model.search(features).tokens, by_consensus(plain).tokens)
    assert not torch.equal(model.search(features).tokens[:, 0], plain.tokens[:, 0])
