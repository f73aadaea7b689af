"""Bundles: reading, writing, model ids and decoding overrides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from conf.errors import BundleError, ConfigError, JobError
from model.bundle import (
    CARD,
    CONFIG,
    VOCABULARY,
    WEIGHTS,
    Bundle,
    make_bundle,
    read_folder,
    write_folder,
)
from model.bundle_schema import Scores
from tests import tiny
from tests.bundles import Files


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(tiny.captioner(max_length=6), "tiny", {"epochs": 1}, Scores(dev={"CIDEr": 0.5}))


@pytest.fixture
def files(bundle: Bundle, tmp_path: Path) -> Files:
    write_folder(bundle, tmp_path / "made", "# tiny\n")
    return {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}


def test_a_stored_bundle_gives_the_captions_of_its_model(bundle: Bundle, tmp_path: Path) -> None:
    model = tiny.captioner(max_length=6)
    model.half().float()  # weights are stored in fp16
    write_folder(bundle, tmp_path, "# tiny\n")
    read = read_folder(tmp_path)
    assert read == bundle
    captions = model.caption(tiny.pixels(5))
    assert read.captioner().caption(tiny.pixels(5)) == captions
    assert len({caption.text for caption in captions}) > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD, CONFIG, VOCABULARY, WEIGHTS]
    assert (tmp_path / CARD).read_text() == "# tiny\n"


def test_a_loaded_captioner_is_in_eval_mode_and_trainable(bundle: Bundle) -> None:
    before = torch.get_rng_state()
    model = bundle.captioner()
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert all(
        p.dtype == torch.float32 and p.requires_grad and p.device.type == "cpu" for p in model.parameters()
    )
    assert all(b.device.type == "cpu" for b in model.buffers())
    assert (model.preprocessing.width, model.decoding.max_length) == (tiny.SIDE, 6)
    again = make_bundle(model, "tiny", {"epochs": 1}, Scores(dev={"CIDEr": 0.5}))
    assert again == bundle


def test_the_same_model_gives_the_same_bytes(bundle: Bundle, files: Files, tmp_path: Path) -> None:
    again = make_bundle(tiny.captioner(max_length=6), "tiny", {"epochs": 1}, Scores(dev={"CIDEr": 0.5}))
    write_folder(again, tmp_path / "again", "# tiny\n")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files
    assert all(t.dtype == torch.float16 for t in load(files[WEIGHTS]).values() if t.is_floating_point())


def test_the_model_id_depends_on_everything_that_changes_captions(bundle: Bundle) -> None:
    name, _, digest = bundle.model_id.partition("@")
    assert name == "tiny"
    assert len(digest) == 12
    model = tiny.captioner(max_length=6)
    same = [
        make_bundle(model, "tiny", {"epochs": 99}, Scores(dev={"CIDEr": 0.1})),
        bundle.with_decoding(),
        bundle.with_decoding(beam_width=None, max_length=6),
    ]
    assert {other.model_id for other in same} == {bundle.model_id}
    other_words = tiny.captioner(max_length=6)
    other_words.vocabulary = replace(model.vocabulary, tokens=(*model.vocabulary.tokens[:-1], "word"))
    smaller = tiny.captioner(max_length=6)
    smaller.preprocessing = model.preprocessing.model_copy(update={"width": 96})
    different = [
        bundle.with_decoding(beam_width=2),
        bundle.with_decoding(max_length=7),
        bundle.with_decoding(length_penalty=0.5),
        make_bundle(smaller, "tiny", {}),
        make_bundle(other_words, "tiny", {}),
        make_bundle(tiny.captioner(seed=1, max_length=6), "tiny", {}),
    ]
    assert len({other.model_id for other in [bundle, *different]}) == 7


def test_decoding_options_that_contradict_each_other_are_refused(bundle: Bundle) -> None:
    message = r"decoding min_length = 50 must be at most max_length, which is 6, for bundle 'tiny'"
    with pytest.raises(ConfigError, match=message):
        bundle.with_decoding(min_length=50)  # more than the bundle's max_length
    with pytest.raises(ConfigError, match=r"decoding min_length = 4 must be at most max_length, which is 3"):
        bundle.with_decoding(min_length=4, max_length=3)
    with pytest.raises(ConfigError, match=r"decoding consensus = True needs beam_width above 1"):
        bundle.with_decoding(consensus=True, beam_width=1)
    # A bundle that was written before this check stays readable as it is.
    old = make_bundle(tiny.captioner(min_length=5, max_length=3), "old", {})
    assert old.with_decoding().decoding.min_length == 5


def test_decoding_options_can_be_overridden(bundle: Bundle) -> None:
    changed = bundle.with_decoding(beam_width=1, max_length=2)
    assert changed.decoding == bundle.decoding.model_copy(update={"beam_width": 1, "max_length": 2})
    assert all(len(c.text.split()) <= 2 for c in changed.captioner().caption(tiny.pixels(4)))
    assert bundle.decoding.max_length == 6


def test_a_partly_written_folder_is_no_bundle(bundle: Bundle, tmp_path: Path) -> None:
    write_folder(bundle, tmp_path, "")
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / WEIGHTS).mkdir()  # the next write fails in the middle
    with pytest.raises(JobError, match="directory"):
        write_folder(bundle, tmp_path, "")
    with pytest.raises(BundleError, match="no bundle at"):
        read_folder(tmp_path)
