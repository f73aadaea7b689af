"""Tokenization: known answers, and comparison with the Java tokenizer of the COCO evaluation."""

from __future__ import annotations

import shutil
import unicodedata

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
    "An AT&T headphone, an at&t headphone": "an at&t headphone an at & t headphone",
    "M&Ms and Johnson&Johnson": "m&m s and johnson & johnson",
    "A wanna-be rapper and a cannot-do girl": "a wanna-be rapper and a cannot-do girl",
    "Dale Earnhardt , Jr. , display": "dale earnhardt jr. display",
    "A sign at Morgan Rd.": "a sign at morgan rd.",
    "In Seattle, Wash. at the car wash.": "in seattle wash. at the car wash",
    "A stop.sign ready to bat.,": "a stop.sign ready to bat.",
    # Combining marks belong to their letter, in every script.
    "طفلة ترتدي ثوبًا ورديًا": "طفلة ترتدي ثوبًا ورديًا",
    "एक काला कुत्ता दौड़ रहा है": "एक काला कुत्ता दौड़ रहा है",
    "สุนัข วิ่ง": "สุนัข วิ่ง",
    "José's dog at the café": "josé 's dog at the café",
    # The COCO list of punctuation has only ASCII characters.
    "فتاة ترتدي حزام، وتتسلق": "فتاة ترتدي حزام ، وتتسلق",
    "河边的人。": "河边的人 。",
    "¿Qué? ¡Hola!": "¿ qué ¡ hola",
    "What?! Stop!!!": "what ?! stop !!!",
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
A man named J. Smith
H&M store with Q&A and b&w photo
Dale Earnhardt Jr. waves to Mrs. Smith, etc. and so on
On 5th Ave. near Main St. today
Gov. Smith and Sen. Jones in Ft. Worth
On Jan. 5 at Mt. Everest
The answer is no. Really, no. 5 is right
A Ph.D. student with e.g. a dog
see www.example.io or http://example.com/x?y=1
me@example.com and @twitter #hash
rock'n'roll and rock 'n roll
The '90s show till noon, 'til late, 'cause he can
'Twas cold, y'all come
A temperature of 70° by -3 degrees or .5
a ** b << c __ d
c++ and c# code
a girl ,5 , plays
« bonjour » “hello” — dog – cat…
10:30am and 3-4 dogs
сobaka бежит, и кошка спит.
안녕하세요 개가 달린다.
كلبٌ أسودُ يركضُ، سريعًا؟
என் நாய்
naïve‑looking dog
☃ snow ★ star ™
a 🐕 runs 👍🏽""".splitlines()

NOT_AS_OFFICIAL = {
    "cafe\u0301 A\u030angstro\u0308m": "café ångström",  # normal form C
    "l’homme": "l'homme",  # one apostrophe
    "10 € and 5 £": "10 € and 5 £",  # the official one has $ and #
    "half ½ cup, x² Ⅳ": "half ½ cup x² ⅳ",
    "سگ می\u200cدود": "سگ می\u200cدود",  # a zero-width non-joiner stands inside words
    "र्\u200dय": "र्\u200dय",
}


@pytest.mark.parametrize("caption", PINNED)
def test_words_known_answers(caption: str) -> None:
    assert " ".join(words(caption)) == PINNED[caption]


@pytest.mark.parametrize("caption", NOT_AS_OFFICIAL)
def test_words_that_are_not_as_the_official_ones_on_purpose(caption: str) -> None:
    assert " ".join(words(caption)) == NOT_AS_OFFICIAL[caption]


def test_words_do_not_depend_on_how_accents_are_encoded() -> None:
    for caption in [*PINNED, *MORE]:
        forms = {tuple(words(unicodedata.normalize(form, caption))) for form in ("NFC", "NFD")}
        assert len(forms) == 1, caption


@pytest.mark.skipif(shutil.which("java") is None, reason="the official tokenizer needs java")
def test_words_equal_those_of_the_ptb_tokenizer() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = [caption for caption in PINNED if caption.strip(". ")] + MORE
    captions = [unicodedata.normalize("NFC", caption) for caption in captions]
    official = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    ours = {c: " ".join(words(c)) for c in captions}
    assert ours == {c: official[i][0] for i, c in enumerate(captions)}
