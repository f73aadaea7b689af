"""Properties of every decoder in the registry, and those specific to one architecture."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional

from conf.captioner import DecoderSettings, Decoding
from model.network.attention import OneLayerAttention, SoftAttention, TwoLayerAttention, _exp_of_double
from model.network.decoder import Decoder, Memory
from model.network.decoders import make_decoder
from model.network.pooled import InjectDecoder, MergeDecoder
from model.search.beam import beam_search, greedy_search
from model.text.vocabulary import START
from tests import tiny

TOKENS = torch.tensor([[START, 5, 6, 7, 8], [START, 9, 9, 4, 5], [START, 6, 5, 4, 7], [START, 8, 8, 8, 8]])
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "one-layer attention": ("attention", {"attention_size": 16, "layers": 1}),
    "two-layer attention": ("attention", {"attention_size": 16, "layers": 2}),
    "inject": ("inject", {}),
    "two-layer inject": ("inject", {"layers": 2}),
    "inject, batch-norm": ("inject", {"batch_norm": True}),
    "merge": ("merge", {}),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def settings(name: str, **sizes: Any) -> DecoderSettings:
    decoder: DecoderSettings = TypeAdapter(DecoderSettings).validate_python({"name": name, **sizes})
    return decoder


def decoder(kind: str, words: int = 10, channels: int = 12, dropout: float = 0.5) -> Decoder:
    """A decoder in evaluation mode. Word probabilities differ clearly between words and between images."""
    torch.manual_seed(0)
    name, sizes = KINDS[kind]
    sizes = {"embed_size": 32, "hidden_size": 48, "dropout": dropout, **sizes}
    model = make_decoder(settings(name, **sizes), words, channels)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        if isinstance(model, InjectDecoder | MergeDecoder):
            model.output.weight.mul_(30)
    return model.eval()


def logits_of(model: Decoder, features: Tensor, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        memory = model.encode_image(features)
        logits: Tensor = model(memory, model.init_state(memory, len(tokens) // len(features)), tokens)[0]
    return logits


@pytest.mark.parametrize("size", [100, 3000])
def test_a_new_decoder_starts_with_a_uniform_distribution(kind: str, size: int) -> None:
    torch.manual_seed(0)
    name, sizes = KINDS[kind]
    model = make_decoder(
        settings(name, **{**sizes, "embed_size": 256, "hidden_size": 512}), size, 1280
    ).eval()
    tokens = torch.randint(4, size, (20, 10))
    logits = logits_of(model, torch.randn(4, 9, 1280), tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1), torch.randint(4, size, (200,)))
    assert float(loss) == pytest.approx(math.log(size), rel=0.03)


@pytest.mark.parametrize("packed", [False, True])
def test_stepwise_decoding_equals_teacher_forcing(kind: str, packed: bool) -> None:
    model, features = decoder(kind), tiny.random_features(2, 0)
    at_once = logits_of(model, features, TOKENS)
    if packed:
        model.requires_grad_(False).pack()
        torch.testing.assert_close(logits_of(model, features, TOKENS), at_once)
    with torch.inference_mode():
        memory = model.encode_image(features)
        state, steps = model.init_state(memory, 2), []
        for t in range(TOKENS.shape[1]):
            out, state = model(memory, state, TOKENS[:, t : t + 1])
            steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), at_once)


def test_packed_attention_is_exact_where_large_queries_and_keys_cancel() -> None:
    model, other = decoder("two-layer attention"), decoder("two-layer attention")
    assert isinstance(model, SoftAttention) and isinstance(other, SoftAttention)
    hidden, values = torch.randn(2, 1, 48), torch.randn(2, 9, 48)
    with torch.inference_mode():
        scale = 30 / model.query(hidden).abs().max()
        for each in (model, other):
            each.query.weight.mul_(scale)
        keys = torch.randn(2, 9, 16) - model.query(hidden)
        expected = model.attend(Memory((values, keys)), hidden)
        other.requires_grad_(False).pack()
        actual = other.attend(Memory((values, _exp_of_double(keys))), hidden)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_packed_decoders_in_bf16_are_close_to_fp32(kind: str) -> None:
    model, features = decoder(kind), tiny.random_features(2, 0)
    before = logits_of(model, features, TOKENS).softmax(-1)
    model.requires_grad_(False).to(torch.bfloat16).pack()
    after = logits_of(model, features.bfloat16(), TOKENS).float().softmax(-1)
    assert (after - before).abs().max() < 0.1
    assert (after - before).abs().mean() < 0.01


def test_decoders_are_causal(kind: str) -> None:
    model, features = decoder(kind), tiny.random_features(4, 0)
    before = logits_of(model, features, TOKENS)
    for t in range(TOKENS.shape[1]):
        changed = TOKENS.clone()
        changed[:, t] = 4 + (changed[:, t] + 1) % 6
        after = logits_of(model, features, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t:], before[:, t:]).all(-1).any()


def test_images_of_a_batch_do_not_influence_each_other(kind: str) -> None:
    model, features = decoder(kind), tiny.random_features(2, 0)  # two captions each: rows 0, 1 and 2, 3
    other = torch.stack([features[0], tiny.random_features(1, 9)[0]])
    before, after = logits_of(model, features, TOKENS), logits_of(model, other, TOKENS)
    torch.testing.assert_close(before[:2], after[:2])
    assert not torch.isclose(before[2:], after[2:]).all(-1).any()


def test_captions_of_an_image_do_not_influence_each_other(kind: str) -> None:
    model, features = decoder(kind), tiny.random_features(2, 0)
    changed = TOKENS.clone()
    changed[1, 1:] = 4
    before, after = logits_of(model, features, TOKENS), logits_of(model, features, changed)
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.allclose(after[1], before[1])


def test_the_order_of_the_annotation_vectors_does_not_matter(kind: str) -> None:
    model, features = decoder(kind), tiny.random_features(4, 0)
    turned = features[:, torch.tensor([3, 0, 4, 2, 1])]
    torch.testing.assert_close(logits_of(model, turned, TOKENS), logits_of(model, features, TOKENS))


def test_dropout_is_applied_in_training_only(kind: str) -> None:
    model, features = decoder(kind), tiny.random_features(4, 0)
    assert torch.equal(logits_of(model, features, TOKENS), logits_of(model, features, TOKENS))
    model.train()
    assert not torch.allclose(logits_of(model, features, TOKENS), logits_of(model, features, TOKENS))


def test_gradients_reach_every_parameter(kind: str) -> None:
    model, features = decoder(kind, dropout=0.0).train(), tiny.random_features(4, 0)
    memory = model.encode_image(features)
    logits, _ = model(memory, model.init_state(memory, 1), TOKENS)
    functional.cross_entropy(logits.flatten(0, 1), TOKENS.roll(-1, 1).flatten()).backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Batch-norm subtracts a preceding bias with the mean, so it gets no gradient.
    assert untouched <= ({"image.bias"} if kind == "inject, batch-norm" else set())


def test_searches_do_not_depend_on_the_batch(kind: str) -> None:
    model = decoder(kind, words=30)
    with torch.inference_mode():
        memory = model.encode_image(tiny.random_features(6, 1))
        for options in (Decoding(beam_width=1, max_length=8), Decoding(beam_width=3, max_length=8)):
            search = greedy_search if options.beam_width == 1 else beam_search
            together = search(model, memory, options)
            alone = [search(model, memory.select(torch.tensor([i])), options) for i in range(6)]
            assert torch.equal(together.tokens, torch.cat([one.tokens for one in alone]))
            torch.testing.assert_close(together.logprobs, torch.cat([one.logprobs for one in alone]))
            assert len({tuple(row) for row in together.tokens[:, 0].tolist()}) > 1  # captions differ


# Properties of single architectures


@pytest.mark.parametrize("attention", [OneLayerAttention, TwoLayerAttention])
def test_attention_weights_sum_to_one_over_the_grid(attention: type[SoftAttention]) -> None:
    attending = attention(10, 12, hidden_size=48, embed_size=32, attention_size=16).eval()
    with torch.inference_mode():
        memory = attending.encode_image(tiny.random_features(2, 0))
        _, _, weights = attending.forward_with_attention(memory, attending.init_state(memory, 2), TOKENS)
    assert weights.shape == (4, 5, 5)
    assert weights.ge(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 5))


@pytest.mark.parametrize("attention", [OneLayerAttention, TwoLayerAttention])
def test_attention_gradients_equal_finite_differences(attention: type[SoftAttention]) -> None:
    torch.manual_seed(0)
    attending = attention(8, 3, hidden_size=6, embed_size=4, attention_size=5, dropout=0.0).double()
    features = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    tokens = torch.tensor([[START, 5, 6], [START, 7, 4]])

    def logits(vectors: Tensor) -> Tensor:
        memory = attending.encode_image(vectors)
        out: Tensor = attending(memory, attending.init_state(memory, 1), tokens)[0]
        return out

    assert torch.autograd.gradcheck(logits, (features,))


def test_merge_lstm_states_do_not_depend_on_the_image() -> None:
    model = decoder("merge")
    with torch.inference_mode():
        states = []
        for seed in (0, 1):
            memory = model.encode_image(tiny.random_features(4, seed))
            states.append(model(memory, model.init_state(memory, 1), TOKENS)[1])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_inject_initial_states_depend_on_the_image() -> None:
    model = decoder("inject")
    with torch.inference_mode():
        first, second = (
            model.init_state(model.encode_image(tiny.random_features(1, seed)), 1) for seed in (0, 1)
        )
    assert not torch.allclose(first[0], second[0])
