"""Ensembles: several captioners as one bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conf.captioner import Decoding, EnsembleArchitecture, Preprocessing, SingleArchitecture
from conf.errors import ConfigError
from jobs.cli import main
from model.bundle import Bundle, make_bundle, read_folder, write_folder
from model.captioner import Captioner
from model.card import model_card
from model.search.beam import beam_search, step_logprobs
from model.text.vocabulary import SPECIALS, START, Vocabulary
from model.training.pack import make_ensemble
from tests import tiny

pytestmark = pytest.mark.slow


def member(
    seed: int,
    decoder: str = "attention",
    side: int = tiny.SIDE,
    words: tuple[str, ...] = tiny.WORDS,
    *,
    pooled: bool = False,
    language: str = "en",
) -> Bundle:
    torch.manual_seed(seed)
    sizes = {"embed_size": 16, "hidden_size": 16}
    model = Captioner(
        SingleArchitecture.model_validate(
            {"encoder": {"name": "mobilenet_v2", "pooled": pooled}, "decoder": {"name": decoder, **sizes}}
        ),
        Vocabulary(SPECIALS + words, language),
        Preprocessing(width=side, height=side),
        Decoding(max_length=6),
    )
    return make_bundle(model.eval(), f"member-{seed}", {})


@pytest.fixture(scope="module")
def members() -> list[Bundle]:
    return [member(0), member(1), member(2, "merge")]


def test_word_probabilities_are_the_mean_over_the_members(members: list[Bundle]) -> None:
    captioner = make_ensemble(members, "three").captioner()
    images = torch.rand(4, 3, tiny.SIDE, tiny.SIDE)
    words = torch.tensor([[START, 5, 7]]).repeat(8, 1)  # two captions per image
    parts = [bundle.captioner() for bundle in [*members, make_ensemble(members, "again")]]

    def probabilities(model: Captioner) -> torch.Tensor:
        memory = model.decoder.encode_image(model.encoder(images))
        logits, _ = model.decoder(memory, model.decoder.init_state(memory, 2), words)
        scores: torch.Tensor = logits.softmax(-1)
        return scores

    with torch.inference_mode():
        *each, again = map(probabilities, parts)
        mean = torch.stack(each).mean(0)
        assert torch.allclose(probabilities(captioner), mean, atol=1e-6)
        assert torch.equal(probabilities(captioner), again)
        assert not torch.allclose(each[0], mean, atol=1e-3)
        memory = captioner.decoder.encode_image(captioner.encoder(images))
        logits, _ = captioner.decoder(memory, captioner.decoder.init_state(memory, 1), words[:4, :1])
        assert torch.allclose(step_logprobs(logits[:, -1]).exp().sum(-1), torch.ones(4))


def test_an_ensemble_of_identical_members_equals_one_member(members: list[Bundle]) -> None:
    alone, twice = members[0].captioner().eval(), make_ensemble([members[0]] * 2, "twice").captioner()
    pixels = tiny.pixels(6, 3)
    for model in (alone, twice):
        model.prepare(torch.device("cpu"))
    assert [c.text for c in twice.caption(pixels)] == [c.text for c in alone.caption(pixels)]


def test_ensemble_beams_do_not_depend_on_the_batch(members: list[Bundle]) -> None:
    captioner = make_ensemble(members, "three").captioner()
    with torch.inference_mode():
        memory = captioner.decoder.encode_image(captioner.encoder(torch.rand(5, 3, tiny.SIDE, tiny.SIDE)))
        together = beam_search(captioner.decoder, memory, Decoding(beam_width=4, max_length=6))
        for i in range(5):
            alone = beam_search(
                captioner.decoder, memory.select(torch.tensor([i])), Decoding(beam_width=4, max_length=6)
            )
            assert torch.equal(alone.tokens[0], together.tokens[i])


def test_an_ensemble_is_stored_and_loaded_as_a_bundle(members: list[Bundle], tmp_path: Path) -> None:
    ensemble = make_ensemble(members, "three")
    write_folder(ensemble, tmp_path, model_card(ensemble))
    loaded = read_folder(tmp_path)
    assert loaded.model_id == ensemble.model_id
    assert len({bundle.model_id for bundle in (*members, ensemble)}) == 4
    pixels = tiny.pixels(3, 1)
    assert loaded.captioner().caption(pixels) == ensemble.captioner().caption(pixels)
    card = (tmp_path / "README.md").read_text()
    assert all(bundle.model_id in card for bundle in members)
    assert "mobilenet_v2" in card
    assert "attention, merge" in card
    assert "Captions photographs in English (`en`)." in card


def test_the_ensemble_command_writes_a_bundle(
    members: list[Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for bundle in members[:2]:
        folders.append(str(tmp_path / bundle.name))
        write_folder(bundle, Path(folders[-1]), model_card(bundle))
    assert main(["ensemble", *folders, "--name", "both", "--output", str(tmp_path / "out")]) == 0
    assert "both@" in capsys.readouterr().out
    architecture = read_folder(tmp_path / "out").config.architecture
    assert isinstance(architecture, EnsembleArchitecture)
    assert len(architecture.members) == 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: member(3, side=96), "another preprocessing"),
        (lambda: member(3, words=tiny.WORDS[:-1]), "another vocabulary"),
        (lambda: member(3, language="de"), "another language"),
        (lambda: member(3, pooled=True), r"one size, these have \[1, 4\] places"),
        (lambda: make_ensemble([member(3), member(4)], "inner"), "inner is an ensemble itself"),
    ],
)
def test_incompatible_members_are_refused(members: list[Bundle], other: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_ensemble([members[0], other()], "x")  # type: ignore[operator]


def test_a_single_member_is_refused(members: list[Bundle]) -> None:
    with pytest.raises(ConfigError, match="at least two bundles, got 1"):
        make_ensemble(members[:1], "x")
