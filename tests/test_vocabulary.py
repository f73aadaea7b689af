"""The vocabulary: words to ids and back."""

from __future__ import annotations

import pytest

from model.text.vocabulary import END, PAD, SPECIALS, START, UNK, Vocabulary

CAPTIONS = ["A dog runs.", "A dog sits", "a cat sits (here)", "The dog's ball isn't here"]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.build(CAPTIONS, min_freq=1)


def test_tokens_are_sorted_by_frequency_and_spelling(vocabulary: Vocabulary) -> None:
    words = ("a", "dog", "here", "sits", "'s", "ball", "cat", "is", "n't", "runs", "the")
    assert vocabulary.tokens == SPECIALS + words


def test_a_vocabulary_has_no_punctuation_of_any_script() -> None:
    captions = ["¿qué? hola!!!", "河边 的 人 。", "حزام، وتتسلق", "a ★ (star)", "fish & chips #5"]
    words = "# & 5 a chips fish hola qué star وتتسلق حزام 人 河边 的"
    assert Vocabulary.build(captions, 1).tokens == (*SPECIALS, *sorted(words.split()))


def test_the_order_of_the_captions_does_not_matter(vocabulary: Vocabulary) -> None:
    assert Vocabulary.build(reversed(CAPTIONS), min_freq=1) == vocabulary


def test_rare_words_are_encoded_as_unknown() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_freq=2)
    assert vocabulary.tokens == (*SPECIALS, "a", "dog", "here", "sits")
    assert vocabulary.encode("A purple dog", 9) == [START, 4, UNK, 5, END]


@pytest.mark.parametrize(
    ("caption", "back"),
    [
        ("A dog runs.", "a dog runs"),
        ("The dog's ball", "the dog's ball"),
        ("The dog isn't here", "the dog isn't here"),
        ("a cat (here)", "a cat here"),
        ("", ""),
    ],
)
def test_captions_round_trip_as_their_words(vocabulary: Vocabulary, caption: str, back: str) -> None:
    assert vocabulary.decode(vocabulary.encode(caption, 20)) == back


@pytest.mark.parametrize(
    "caption", ["slip 'n' slide", "look at 'em go", "they 're u.s. 's", "'t is", "rock 'n' roll"]
)
def test_only_clitics_are_joined_to_the_previous_word(caption: str) -> None:
    vocabulary = Vocabulary.build([caption], 1)
    joined = {"they 're u.s. 's": "they're u.s.'s"}
    ids = [vocabulary.ids[word] for word in caption.split()]
    assert vocabulary.decode(ids) == joined.get(caption, caption)


def test_a_truncated_caption_has_no_end_token(vocabulary: Vocabulary) -> None:
    exact, cut = vocabulary.encode("a dog runs", 3), vocabulary.encode("a dog runs here", 3)
    assert exact == [*cut, END]
    assert cut == [START, *(vocabulary.ids[w] for w in ("a", "dog", "runs"))]


def test_decoding_stops_at_the_first_end_token_and_skips_special_tokens(vocabulary: Vocabulary) -> None:
    dog, runs = vocabulary.ids["dog"], vocabulary.ids["runs"]
    assert vocabulary.decode([START, dog, UNK, runs, END, dog, PAD]) == "dog runs"


@pytest.mark.parametrize(
    "tokens",
    [
        (),
        ("a", "dog"),
        SPECIALS[:3],
        (SPECIALS[1], SPECIALS[0], *SPECIALS[2:]),
        (*SPECIALS, "a", "dog", "a"),
        (*SPECIALS, "<end>"),
        (*SPECIALS, 7),
        (*SPECIALS, ["a"]),
        (*SPECIALS, None),
        (*SPECIALS, ""),
        (*SPECIALS, " "),
        (*SPECIALS, "two\nlines"),
        (*SPECIALS, "\x1b[31m"),
        (*SPECIALS, "\ud800"),
    ],
)
def test_malformed_token_lists_are_refused(tokens: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|tokens"):
        Vocabulary(tokens)
