"""Tokenization: known answers, and comparison with the Java tokenizer of the COCO evaluation."""

from __future__ import annotations

import shutil

import pytest

from model.text.tokenizer import words

PINNED = {
    # Lower-cased; punctuation dropped.
    "A dog , a cat and a bird .": "a dog a cat and a bird",
    "TWO dogs fight!": "two dogs fight",
    "A runner: number 5; second place...": "a runner number 5 second place",
    "Boy - in red -- jumps?": "boy in red jumps",
    'A toddler in a "Cat in the Hat" hat.': "a toddler in a cat in the hat hat",
    "A man says 'hello' to a woman": "a man says hello to a woman",
    "A   spaced    out caption  ": "a spaced out caption",
    "the man’s hat, the dog’s tail": "the man 's hat the dog 's tail",
    # Clitics are words of their own.
    "The dog's red ball rolls": "the dog 's red ball rolls",
    "The players' bench": "the players bench",
    "Two boys don't and can't": "two boys do n't and ca n't",
    "They're happy, I'm sure we've met": "they 're happy i 'm sure we 've met",
    "He'll jump if you'd let him": "he 'll jump if you 'd let him",
    "Look at 'em go": "look at 'em go",
    # Contractions written as one word.
    "A man cannot reach": "a man can not reach",
    "She's gonna, wanna and gotta": "she 's gon na wan na and got ta",
    "gimme five and lemme in": "gim me five and lem me in",
    "'Tis cold": "'t is cold",
    # Full stops that belong to a word.
    "A man in a U.S. Army uniform": "a man in a u.s. army uniform",
    "Mr. Smith holds a fish": "mr. smith holds a fish",
    "A player of the Miami U. team": "a player of the miami u. team",
    "A sign for www.example.com here": "a sign for www.example.com here",
    # Numbers, compounds, symbols.
    "A crowd of 1,000 people at 10:30": "a crowd of 1,000 people at 10:30",
    "Number 3.5 and 1/2 left": "number 3.5 and 1/2 left",
    "A black-and-white dog by a 3-foot-high fence": "a black-and-white dog by a 3-foot-high fence",
    "An R&B singer at five o'clock": "an r&b singer at five o'clock",
    "Kids on a slip 'n' slide in the yard": "kids on a slip 'n' slide in the yard",
    "A man in a #7 jersey, 50% off, $5": "a man in a # 7 jersey 50 % off $ 5",
    "Fish & chips": "fish & chips",
    # The COCO list of punctuation has only upper-case bracket tokens, so lower-case ones are kept.
    "A player (in blue) kicks": "a player -lrb- in blue -rrb- kicks",
    "A [bracketed] {curly} man": "a -lsb- bracketed -rsb- -lcb- curly -rcb- man",
    "": "",
    "...": "",
}

MORE = """A café with a naïve painting
A mother/daughter team
An 18-wheeler on I-95
A racer wearing number 42, leading
A woman in front of St. Paul's cathedral
A skateboarder does an ollie...
You shouldn't have done that
Someone is holding a t-shirt and well-worn jeans
A girl, 5, plays
people at the beach at 5 p.m. on a sunny day
people at the beach at 5 p.m.
Baseball player #12 vs. the catcher
a truck driver's and a skier's gear
That'll do, let's go
The couple's dog isn't looking
A boy in the 80s
A 1950's car
an 8" pipe
a * b
A girl says "hello" to her mother .
A three-wheeled , four-legged thing
A man with a woman\\man sign
Player @ bat
A man named J. Smith""".splitlines()


@pytest.mark.parametrize("caption", PINNED)
def test_words_known_answers(caption: str) -> None:
    assert " ".join(words(caption)) == PINNED[caption]


@pytest.mark.skipif(shutil.which("java") is None, reason="the official tokenizer needs java")
def test_words_equal_those_of_the_ptb_tokenizer() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = [caption for caption in PINNED if caption.strip(". ")] + MORE
    official = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    ours = {c: " ".join(words(c)) for c in captions}
    assert ours == {c: official[i][0] for i, c in enumerate(captions)}
