"""Greedy and beam search find what they promise, image by image, and confidence is what it says."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from model.decoder import AttentionDecoder, Memory
from model.decoding import Decoded, beam_search, greedy_search, step_logprobs
from model.options import DecodingOptions
from model.vocabulary import END, PAD, START, UNK
from tests.tiny import decoder, memory

SEEDS = range(5)


def options(width: int, max_length: int = 8, alpha: float = 0.7) -> DecodingOptions:
    return DecodingOptions(width, max_length, alpha)


def of_one(made: Memory, image: int) -> Memory:
    return Memory(made.values[image : image + 1], made.keys[image : image + 1])


@torch.inference_mode()
def teacher_forced(made: AttentionDecoder, seen: Memory, tokens: list[int]) -> float:
    """Σ log p of these tokens for one image, all read at once."""
    logits, _ = made(seen, made.begin(seen, 1), torch.tensor([[START, *tokens[:-1]]]))
    return float(step_logprobs(logits[0]).gather(1, torch.tensor(tokens).unsqueeze(1)).sum())


def said(row: Tensor) -> list[int]:
    return [i for i in row.tolist() if i != PAD]


def both(made: AttentionDecoder, seen: Memory, max_length: int = 8) -> list[Decoded]:
    with torch.inference_mode():
        return [
            greedy_search(made, seen, max_length),
            *(beam_search(made, seen, options(width, max_length)) for width in (1, 3, 5)),
        ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
def test_a_beam_of_one_is_greedy(seed: int, alpha: float) -> None:
    made = decoder(40, seed)
    seen = memory(made, 6, seed)
    with torch.inference_mode():
        greedy, beam = greedy_search(made, seen, 8), beam_search(made, seen, options(1, alpha=alpha))
    assert torch.equal(beam.tokens, greedy.tokens)
    assert torch.equal(beam.lengths, greedy.lengths)
    torch.testing.assert_close(beam.logprobs, greedy.logprobs)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_batch_gets_what_each_image_gets_alone(seed: int) -> None:
    made = decoder(40, seed)
    seen = memory(made, 7, seed)
    for together, *alone in zip(
        both(made, seen), *(both(made, of_one(seen, i)) for i in range(7)), strict=True
    ):
        assert torch.equal(together.tokens, torch.cat([one.tokens for one in alone]))
        torch.testing.assert_close(together.logprobs, torch.cat([one.logprobs for one in alone]))


def test_captions_that_are_done_wait_unchanged_for_the_others() -> None:
    made = decoder(7, 1)
    seen = memory(made, 8, 1)
    for together in both(made, seen, max_length=12):
        assert len(set(together.lengths.tolist())) > 1  # some end long before others
        for row, length in zip(together.tokens, together.lengths, strict=True):
            assert row[length:].eq(PAD).all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.5])
def test_a_wide_beam_finds_the_best_of_all_captions(seed: int, alpha: float) -> None:
    words, longest = (4, 5, 6), 3
    made = decoder(7, seed)
    everything = [
        [*caption, *([END] if len(caption) < longest else [])]
        for length in range(longest + 1)
        for caption in product(words, repeat=length)
    ]
    assert len(everything) == 40
    seen = memory(made, 3, seed)
    with torch.inference_mode():
        found = beam_search(made, seen, options(50, longest, alpha))
    for image in range(3):
        sums = [teacher_forced(made, of_one(seen, image), caption) for caption in everything]
        scores = [total / len(caption) ** alpha for total, caption in zip(sums, everything, strict=True)]
        best = max(range(len(everything)), key=scores.__getitem__)
        assert said(found.tokens[image]) == everything[best]
        assert float(found.logprobs[image]) == pytest.approx(sums[best], abs=1e-4)
        assert int(found.lengths[image]) == len(everything[best])


def test_the_length_penalty_decides_between_short_and_long() -> None:
    mean = []
    for alpha in (0.0, 1.0, 3.0):
        lengths = []
        for seed in range(6):
            made = decoder(7, seed)
            with torch.inference_mode():
                lengths.append(
                    beam_search(made, memory(made, 4, seed), options(50, 3, alpha)).lengths.float()
                )
        mean.append(float(torch.cat(lengths).mean()))
    assert mean[0] < mean[1] < mean[2]


@pytest.mark.parametrize("forbidden", [PAD, START, UNK])
def test_special_tokens_are_never_said(forbidden: int) -> None:
    made = decoder(12, 0)
    with torch.no_grad():
        made.bias[forbidden] = 50.0  # the decoder itself would say nothing else
    seen = memory(made, 5, 0)
    with torch.inference_mode():
        logits, _ = made(seen, made.begin(seen, 1), torch.full((5, 1), START))
    assert logits.argmax(-1).eq(forbidden).all()
    for decoded in both(made, seen):
        for row, length in zip(decoded.tokens, decoded.lengths, strict=True):
            assert not torch.isin(row[:length], torch.tensor([PAD, START, UNK])).any()


@pytest.mark.parametrize("longest", [1, 2, 5])
def test_no_caption_is_longer_than_allowed(longest: int) -> None:
    made = decoder(12, 0)
    with torch.no_grad():
        made.bias[END] = -50.0  # no caption ends by itself
    for decoded in both(made, memory(made, 4, 0), longest):
        assert decoded.tokens.shape == (4, longest)
        assert decoded.lengths.tolist() == [longest] * 4
        assert decoded.tokens.ge(len((PAD, START, END, UNK))).all()


def test_a_decoder_that_only_ends_says_nothing() -> None:
    made = decoder(12, 0)
    with torch.no_grad():
        made.bias[END] = 100.0
    for decoded in both(made, memory(made, 3, 0)):
        assert decoded.tokens[:, 0].eq(END).all()
        assert decoded.tokens[:, 1:].eq(PAD).all()
        assert decoded.confidence().tolist() == pytest.approx([1.0] * 3)


def test_a_vocabulary_smaller_than_the_beam_is_no_problem() -> None:
    for size in (4, 5, 6):
        made = decoder(size, 0)
        with torch.inference_mode():
            decoded = beam_search(made, memory(made, 2, 0), options(20, 4))
        assert decoded.lengths.ge(1).all()
        assert decoded.logprobs.gt(-100).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_confidence_is_the_geometric_mean_of_the_token_probabilities(seed: int) -> None:
    made = decoder(30, seed)
    seen = memory(made, 5, seed)
    for decoded in both(made, seen):
        for image, confidence in enumerate(decoded.confidence().tolist()):
            tokens = said(decoded.tokens[image])
            mean = teacher_forced(made, of_one(seen, image), tokens) / len(tokens)
            assert confidence == pytest.approx(float(torch.tensor(mean).exp()), rel=1e-4)
            assert 0 < confidence <= 1


def test_probabilities_are_shared_among_words_and_end_alone() -> None:
    logprobs = step_logprobs(torch.randn(3, 2, 9, dtype=torch.bfloat16))
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(3, 2))
    assert logprobs[..., [PAD, START, UNK]].exp().eq(0).all()
