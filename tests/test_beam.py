"""Greedy search, beam search and sampling: known answers, batching, and the limits of `Decoding`."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from conf.captioner import Decoding
from model.network.decoder import Decoder, Memory
from model.search.beam import Hypotheses, beam_search, greedy_search, sample, step_logprobs
from model.text.vocabulary import END, PAD, START, UNK
from tests.tiny import random_decoder, random_memory

SEEDS = range(5)


class Best(NamedTuple):
    """The best caption of each of B images: tokens (B, T), Σ log p (B,), lengths (B,), confidence (B,)."""

    tokens: Tensor
    logprobs: Tensor
    lengths: Tensor
    confidence: Tensor


def options(
    width: int, max_length: int = 8, alpha: float = 0.7, min_length: int = 0, block_ngram: int = 0
) -> Decoding:
    return Decoding(
        beam_width=width,
        max_length=max_length,
        length_penalty=alpha,
        min_length=min_length,
        block_ngram=block_ngram,
    )


def best(hypotheses: Hypotheses) -> Best:
    return Best(
        hypotheses.tokens[:, 0],
        hypotheses.logprobs[:, 0].sum(-1),
        hypotheses.lengths[:, 0],
        hypotheses.avg_logprob().exp(),
    )


@torch.inference_mode()
def greedily(model: Decoder, memory: Memory, decoding: Decoding) -> Best:
    return best(greedy_search(model, memory, decoding))


@torch.inference_mode()
def beam(model: Decoder, memory: Memory, decoding: Decoding) -> Best:
    return best(beam_search(model, memory, decoding))


def of_one(batch: Memory, image: int) -> Memory:
    """The memory of one image of the batch."""
    return batch.select(torch.tensor([image]))


@torch.inference_mode()
def teacher_forced(model: Decoder, memory: Memory, tokens: list[int]) -> float:
    """Σ log p of these tokens for one image, computed in one call."""
    logits, _ = model(memory, model.init_state(memory, 1), torch.tensor([[START, *tokens[:-1]]]))
    return float(step_logprobs(logits[0]).gather(1, torch.tensor(tokens).unsqueeze(1)).sum())


def without_padding(row: Tensor) -> list[int]:
    return [i for i in row.tolist() if i != PAD]


def greedy_and_beams(model: Decoder, memory: Memory, max_length: int = 8) -> list[Best]:
    return [
        greedily(model, memory, options(1, max_length)),
        *(beam(model, memory, options(width, max_length)) for width in (1, 3, 5)),
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
def test_beam_width_1_equals_greedy_search(seed: int, alpha: float) -> None:
    model = random_decoder(40, seed)
    memory = random_memory(model, 6, seed)
    greedy, narrow = greedily(model, memory, options(1)), beam(model, memory, options(1, alpha=alpha))
    assert torch.equal(narrow.tokens, greedy.tokens)
    assert torch.equal(narrow.lengths, greedy.lengths)
    torch.testing.assert_close(narrow.logprobs, greedy.logprobs)


@pytest.mark.parametrize("seed", SEEDS)
def test_captions_do_not_depend_on_the_other_images_of_the_batch(seed: int) -> None:
    model = random_decoder(40, seed)
    memory = random_memory(model, 7, seed)
    for together, *alone in zip(
        greedy_and_beams(model, memory),
        *(greedy_and_beams(model, of_one(memory, i)) for i in range(7)),
        strict=True,
    ):
        assert torch.equal(together.tokens, torch.cat([one.tokens for one in alone]))
        torch.testing.assert_close(together.logprobs, torch.cat([one.logprobs for one in alone]))


def test_finished_captions_are_padded() -> None:
    model = random_decoder(7, 1)
    memory = random_memory(model, 8, 1)
    for together in greedy_and_beams(model, memory, max_length=12):
        assert len(set(together.lengths.tolist())) > 1  # some captions end much earlier
        for row, length in zip(together.tokens, together.lengths, strict=True):
            assert row[length:].eq(PAD).all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.5])
def test_a_wide_beam_finds_the_best_caption_of_an_exhaustive_search(seed: int, alpha: float) -> None:
    words, longest = (4, 5, 6), 3
    model = random_decoder(7, seed)
    everything = [
        [*caption, *([END] if len(caption) < longest else [])]
        for length in range(longest + 1)
        for caption in product(words, repeat=length)
    ]
    assert len(everything) == 40
    memory = random_memory(model, 3, seed)
    hypotheses = beam(model, memory, options(50, longest, alpha))
    for image in range(3):
        sums = [teacher_forced(model, of_one(memory, image), caption) for caption in everything]
        scores = [total / len(caption) ** alpha for total, caption in zip(sums, everything, strict=True)]
        best = max(range(len(everything)), key=scores.__getitem__)
        assert without_padding(hypotheses.tokens[image]) == everything[best]
        assert float(hypotheses.logprobs[image]) == pytest.approx(sums[best], abs=1e-4)
        assert int(hypotheses.lengths[image]) == len(everything[best])


def test_a_higher_length_penalty_gives_longer_captions() -> None:
    mean = []
    for alpha in (0.0, 1.0, 3.0):
        lengths = []
        for seed in range(6):
            model = random_decoder(7, seed)
            lengths.append(beam(model, random_memory(model, 4, seed), options(50, 3, alpha)).lengths.float())
        mean.append(float(torch.cat(lengths).mean()))
    assert mean[0] < mean[1] < mean[2]


@pytest.mark.parametrize("forbidden", [PAD, START, UNK])
def test_special_tokens_are_never_generated(forbidden: int) -> None:
    model = random_decoder(12, 0)
    with torch.no_grad():
        model.bias[forbidden] = 50.0  # the most probable token by far
    memory = random_memory(model, 5, 0)
    with torch.inference_mode():
        logits, _ = model(memory, model.init_state(memory, 1), torch.full((5, 1), START))
    assert logits.argmax(-1).eq(forbidden).all()
    for decoded in greedy_and_beams(model, memory):
        for row, length in zip(decoded.tokens, decoded.lengths, strict=True):
            assert not torch.isin(row[:length], torch.tensor([PAD, START, UNK])).any()


@pytest.mark.parametrize("longest", [1, 2, 5])
def test_no_caption_is_longer_than_max_length(longest: int) -> None:
    model = random_decoder(12, 0)
    with torch.no_grad():
        model.bias[END] = -50.0  # no caption ends by itself
    for decoded in greedy_and_beams(model, random_memory(model, 4, 0), longest):
        assert decoded.tokens.shape == (4, longest)
        assert decoded.lengths.tolist() == [longest] * 4
        assert decoded.tokens.ge(len((PAD, START, END, UNK))).all()


def test_an_end_token_in_the_first_step_gives_an_empty_caption() -> None:
    model = random_decoder(12, 0)
    with torch.no_grad():
        model.bias[END] = 100.0
    for decoded in greedy_and_beams(model, random_memory(model, 3, 0)):
        assert decoded.tokens[:, 0].eq(END).all()
        assert decoded.tokens[:, 1:].eq(PAD).all()
        assert decoded.confidence.tolist() == pytest.approx([1.0] * 3)


def test_a_vocabulary_smaller_than_the_beam_works() -> None:
    for size in (4, 5, 6):
        model = random_decoder(size, 0)
        decoded = beam(model, random_memory(model, 2, 0), options(20, 4))
        assert decoded.lengths.ge(1).all()
        assert decoded.logprobs.gt(-100).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_confidence_is_the_geometric_mean_of_the_token_probabilities(seed: int) -> None:
    model = random_decoder(30, seed)
    memory = random_memory(model, 5, seed)
    for decoded in greedy_and_beams(model, memory):
        for image, confidence in enumerate(decoded.confidence.tolist()):
            tokens = without_padding(decoded.tokens[image])
            mean = teacher_forced(model, of_one(memory, image), tokens) / len(tokens)
            assert confidence == pytest.approx(float(torch.tensor(mean).exp()), rel=1e-4)
            assert 0 < confidence <= 1


def test_step_probabilities_sum_to_one_over_words_and_end() -> None:
    logprobs = step_logprobs(torch.randn(3, 2, 9, dtype=torch.bfloat16))
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(3, 2))
    assert logprobs[..., [PAD, START, UNK]].exp().eq(0).all()


# N-best lists, constraints and sampling


@pytest.mark.parametrize("seed", SEEDS)
def test_hypotheses_are_distinct_and_sorted_by_score(seed: int) -> None:
    model = random_decoder(30, seed)
    memory = random_memory(model, 4, seed)
    with torch.inference_mode():
        hypotheses = beam_search(model, memory, options(4))
    assert hypotheses.scores.diff(dim=1).le(0).all()
    for image in range(4):
        captions = [without_padding(row) for row in hypotheses.tokens[image]]
        assert len({tuple(tokens) for tokens in captions}) == 4
        for tokens, logprobs, length, score in zip(
            captions,
            hypotheses.logprobs[image],
            hypotheses.lengths[image],
            hypotheses.scores[image],
            strict=True,
        ):
            assert len(tokens) == length
            assert logprobs[length:].eq(0).all()
            total = teacher_forced(model, of_one(memory, image), tokens)
            assert float(logprobs.sum()) == pytest.approx(total, abs=1e-3)
            assert float(score) == pytest.approx(total / len(tokens) ** 0.7, abs=1e-3)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("least", [1, 4, 8])
def test_no_caption_is_shorter_than_min_length(width: int, least: int) -> None:
    model = random_decoder(12, 0)
    with torch.no_grad():
        model.bias[END] = 5.0  # most captions would end at once
    memory = random_memory(model, 5, 0)
    free, held = (beam(model, memory, options(width, min_length=n)) for n in (0, least))
    assert free.lengths.lt(least + 1).any()
    for row in held.tokens:
        assert len([i for i in without_padding(row) if i != END]) >= least


@pytest.mark.parametrize("n", [1, 2, 3])
def test_blocked_ngrams_do_not_repeat(n: int) -> None:
    model = random_decoder(14, 3)
    with torch.no_grad():
        model.bias[END] = -50.0
    memory = random_memory(model, 6, 3)

    def repeats(row: Tensor) -> bool:
        runs = [tuple(run) for run in row.unfold(0, n, 1).tolist()]
        return len(set(runs)) < len(runs)

    for search in (greedily, beam):
        width = 1 if search is greedily else 3
        assert any(repeats(row) for row in search(model, memory, options(width, 9)).tokens)
        assert not any(repeats(row) for row in search(model, memory, options(width, 9, block_ngram=n)).tokens)


def draw_samples(model: Decoder, memory: Memory, captions: int, **how: float) -> Hypotheses:
    with torch.inference_mode():
        return sample(model, memory, options(1), captions, generator=torch.Generator().manual_seed(0), **how)


@torch.no_grad()
def test_entropy_is_summed_over_the_steps_of_the_best_caption() -> None:
    model = random_decoder(20, 5)
    memory = random_memory(model, 4, 7)
    for search in (beam_search, greedy_search):
        hypotheses = search(model, memory, options(3 if search is beam_search else 1, 7))
        for image in range(4):
            words = hypotheses.tokens[image, 0, : int(hypotheses.lengths[image, 0])]
            one = memory.select(torch.tensor([image]))
            read = torch.cat([torch.tensor([START]), words[:-1]])[None]
            logits, _ = model(one, model.init_state(one, 1), read)
            p = torch.distributions.Categorical(logits=step_logprobs(logits[0]))
            assert float(hypotheses.entropy[image, 0]) == pytest.approx(
                float(-(p.probs * p.logits).sum()), rel=1e-4
            )


def test_samples_follow_the_model_distribution() -> None:
    model = random_decoder(9, 0)
    memory = random_memory(model, 2, 0)
    hypotheses = draw_samples(model, memory, 4000)
    with torch.inference_mode():
        logits, _ = model(memory, model.init_state(memory, 1), torch.full((2, 1), START))
    expected = step_logprobs(logits[:, -1]).exp()
    for image in range(2):
        share = torch.bincount(hypotheses.tokens[image, :, 0], minlength=9) / 4000
        torch.testing.assert_close(share, expected[image], atol=0.03, rtol=0)
    assert hypotheses.scores.diff(dim=1).le(0).all()


def test_low_temperature_or_top_p_equals_greedy_search() -> None:
    model = random_decoder(30, 1)
    memory = random_memory(model, 5, 1)
    greedy = greedily(model, memory, options(1)).tokens
    for how in ({"temperature": 1e-3}, {"top_p": 1e-6}):
        hypotheses = draw_samples(model, memory, 3, **how)
        assert all(torch.equal(hypotheses.tokens[:, i], greedy) for i in range(3))
    assert len({tuple(row) for row in draw_samples(model, memory, 10).tokens[0].tolist()}) > 5


def test_nucleus_sampling_excludes_words_outside_the_nucleus() -> None:
    model = random_decoder(30, 1)
    memory = random_memory(model, 1, 1)
    with torch.inference_mode():
        logits, _ = model(memory, model.init_state(memory, 1), torch.full((1, 1), START))
    p, word = step_logprobs(logits[0, -1]).exp().sort(descending=True)
    size = int((p.cumsum(0) < 0.5).sum()) + 1
    hypotheses = draw_samples(model, memory, 2000, top_p=0.5)
    assert set(hypotheses.tokens[0, :, 0].tolist()) == set(word[:size].tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_finished_images_may_stay_in_the_batch_for_some_steps(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """As on a GPU, which is not asked at every step."""
    decoder = random_decoder(40, seed)
    memory = random_memory(decoder, 8, seed)
    expected = beam(decoder, memory, options(3))
    monkeypatch.setattr("model.search.beam._steps_between_questions", lambda device: 4)
    actual = beam(decoder, memory, options(3))
    assert torch.equal(actual.tokens, expected.tokens)
    assert torch.allclose(actual.logprobs, expected.logprobs)
