"""BLEU, ROUGE-L and CIDEr equal those of pycocoevalcap, and known answers."""

from __future__ import annotations

import numpy as np
import pytest

from model.metrics.coco import (
    bleu,
    bleu_counts,
    bleu_of,
    cider_d,
    evaluate,
    figures,
    human_cider_d,
    image_scores,
    sentence_bleu,
)
from model.text.tokenizer import words
from tests.sentences import CAPTIONS, REFERENCES


def official(captions: list[str], references: list[list[str]]) -> dict[str, list[float]]:
    """Metrics by pycocoevalcap: the corpus score first, then, except for BLEU, the score of each caption."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates = {i: [" ".join(words(c))] for i, c in enumerate(captions)}
    targets = {i: [" ".join(words(r)) for r in group] for i, group in enumerate(references)}
    bleus, _ = Bleu(4).compute_score(targets, candidates, verbose=0)
    scores = {f"BLEU-{n}": [bleus[n - 1]] for n in (1, 2, 3, 4)}
    for name, metric in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        mean, each = metric.compute_score(targets, candidates)
        scores[name] = [float(mean), *map(float, each)]
    return scores


@pytest.mark.parametrize("first", range(0, 7, 2))
def test_scores_equal_those_of_pycocoevalcap(first: int) -> None:
    captions, references = CAPTIONS[first:], REFERENCES[first:]
    theirs, ours = official(captions, references), evaluate(captions, references)
    for name, (overall, *_) in theirs.items():
        assert ours[name] == pytest.approx(overall, abs=1e-6), name
        assert overall > 0.1
    each = image_scores(captions, references)
    assert each.cider == pytest.approx(theirs["CIDEr"][1:], abs=1e-6)
    assert each.rouge[:, 2] == pytest.approx(theirs["ROUGE-L"][1:], abs=1e-6)


def test_scores_of_long_and_short_captions_equal_those_of_pycocoevalcap() -> None:
    for captions in (
        [f"{group[0]} and then some more words follow here" for group in REFERENCES],
        [" ".join(group[0].split()[:5]) for group in REFERENCES],
    ):
        ours, theirs = evaluate(captions, REFERENCES), official(captions, REFERENCES)
        for name, (overall, *_) in theirs.items():
            assert ours[name] == pytest.approx(overall, abs=1e-6), name


def test_corpus_scores_follow_from_mean_statistics() -> None:
    statistics = image_scores(CAPTIONS, REFERENCES).statistics
    assert statistics.shape == (12, 14)
    some = [0, 3, 4, 4, 9]
    candidates, targets = (
        [words(CAPTIONS[i]) for i in some],
        [[words(r) for r in REFERENCES[i]] for i in some],
    )
    scores = figures(statistics[some].mean(axis=0))
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu(candidates, targets))
    many = figures(np.stack([statistics[some].mean(axis=0), statistics.mean(axis=0)]))
    assert many["BLEU-4"] == pytest.approx([scores["BLEU-4"], evaluate(CAPTIONS, REFERENCES)["BLEU-4"]])
    assert {values.shape for values in many.values()} == {(2,)}


def test_sentence_bleu_equals_that_of_sacrebleu() -> None:
    from sacrebleu.metrics.bleu import BLEU

    candidates, targets = [words(c) for c in CAPTIONS], [[words(r) for r in group] for group in REFERENCES]
    ours = sentence_bleu(bleu_counts(candidates, targets))
    scorer = BLEU(tokenize="none", smooth_method="add-k", smooth_value=1, effective_order=True)
    for mine, caption, group in zip(ours, candidates, targets, strict=True):
        if len(caption) >= 4:  # for shorter captions sacrebleu omits the n-gram orders that can't match
            theirs = scorer.sentence_score(" ".join(caption), [" ".join(r) for r in group]).score
            assert mine == pytest.approx(theirs / 100)
    # "a man is climbing a rock face" has no matching 4-gram.
    assert bleu_of(bleu_counts(candidates, targets))[9, 3] == 0.0
    assert ours[9] > 0.2
    assert ours[4] == 0.0  # an empty caption


def test_a_caption_equal_to_a_reference_has_a_perfect_score() -> None:
    captions = [group[-1] for group in REFERENCES]
    scores = evaluate(captions, REFERENCES)
    assert [scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1, 1, 1, 1])
    alone = evaluate(captions, [[caption] for caption in captions])
    assert alone["CIDEr"] == pytest.approx(10.0)


def test_bleu_known_answers() -> None:
    # Clipped counts: "the" occurs twice in the reference, so two of seven match (Papineni et al. 2002).
    candidates, targets = ["the"] * 7, [["the", "cat", "is", "on", "the", "mat"]]
    assert bleu([candidates], [targets])[0] == pytest.approx(2 / 7)
    # All words and n-grams match; brevity penalty e^(1 - 6/4).
    short = ["the", "cat", "is", "on"]
    assert bleu([short], [targets]) == pytest.approx([np.exp(1 - 6 / 4)] * 4)
    assert bleu([["nothing"], short], [targets, targets])[0] == pytest.approx(4 / 5 * np.exp(1 - 12 / 5))


def test_an_empty_caption_scores_zero_and_lowers_only_the_brevity_penalty() -> None:
    assert set(evaluate(["", ""], REFERENCES[:2]).values()) == {0.0}
    captions = [group[0] for group in REFERENCES]
    without = evaluate(["", *captions[1:]], REFERENCES)
    assert without["BLEU-1"] < 1
    assert evaluate(captions, REFERENCES)["BLEU-1"] == pytest.approx(1)
    assert cider_d([[], words(captions[1])], [[words(r) for r in g] for g in REFERENCES[:2]])[0] == 0.0


def test_scores_do_not_depend_on_case_punctuation_or_image_order() -> None:
    shouted = [caption.upper().rstrip(".") + " !" for caption in CAPTIONS]
    assert evaluate(shouted, REFERENCES) == evaluate(CAPTIONS, REFERENCES)
    turned = evaluate(CAPTIONS[::-1], [group[::-1] for group in REFERENCES[::-1]])
    assert turned == pytest.approx(evaluate(CAPTIONS, REFERENCES))


def test_references_without_words_are_accepted() -> None:
    scores = evaluate(["a dog", "a cat"], [["...", "a dog"], ["!"]])
    assert 0 <= scores["BLEU-1"] <= 1


@pytest.mark.parametrize(
    ("captions", "references"),
    [([], []), (["a"], []), (["a", "b"], [["a"]]), (["a"], [["a"], ["b"]]), (["a", "b"], [["a"], []])],
)
def test_captions_and_references_of_unequal_length_are_refused(
    captions: list[str], references: list[list[str]]
) -> None:
    with pytest.raises(ValueError, match="captions against"):
        evaluate(captions, references)


def test_captions_of_people_are_scored_against_the_others_of_their_image() -> None:
    groups = [
        ["a dog runs in the snow", "a dog runs in the snow", "two cats sit"],
        ["one only"],
        ["a b", "c d"],
    ]
    scores = human_cider_d(groups)
    assert scores.shape == (3, 2)
    alone = [[words(text) for text in group] for group in (groups[0][1:], groups[2][1:])]
    assert scores[0].tolist() == cider_d([words("a dog runs in the snow"), words("a b")], alone)
    assert scores[0, 0] == scores[1, 0] > 0
    assert scores[2, 0] == 0  # nobody else wrote so
    assert scores[2, 1] == scores[0, 1]  # its captions repeat
    assert human_cider_d([["one only"]]).size == 0
