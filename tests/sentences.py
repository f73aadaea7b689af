"""Captions of twelve images and their references, for tests of metrics, results and pages."""

from __future__ import annotations

REFERENCES = [
    [
        "A brown dog runs through tall grass with a ball in its mouth.",
        "A dog is running through a field carrying a red ball.",
        "The brown dog runs across the field.",
        "Dog with a ball in high grass",
    ],
    ["Two children are playing in a fountain.", "A boy and a girl splash water at each other in a fountain ."],
    [
        "A man in a yellow jacket skis down a steep, snowy mountain.",
        "A skier in yellow goes downhill.",
        "A person skiing down a mountain covered in snow.",
        "A man skis fast.",
        "The skier's jacket is yellow.",
    ],
    ["A woman rides her bike past a red-brick wall.", "A cyclist passes a wall.", "A woman on a bicycle"],
    ["A crowd watches a soccer player kick the ball.", "A football player (number 7) kicks the ball."],
    ["Three people sit on a bench by the lake.", "People sitting on a bench near water", "A bench with people"],
    ["A surfer rides a big wave.", "A man on a surfboard rides a wave in the ocean.", "The surfer doesn't fall"],
    ["A black dog and a white dog fight in the snow.", "Two dogs play in the snow."],
    ["A little girl in a pink dress climbs the stairs.", "A girl going into a wooden playhouse."],
    ["A climber hangs from a cliff by a rope.", "A man climbs a rock face.", "Someone is rock climbing outside."],
    ["A group of friends eats dinner at a long table.", "People eat at a restaurant."],
    ["A boy jumps into a swimming pool.", "A boy in blue trunks is jumping into the pool.", "Kid over a pool"],
]  # fmt: skip

CAPTIONS = [
    "A dog is running through a field carrying a red ball.",  # equal to a reference
    "two children play in a fountain",
    "a man skis down a mountain covered in snow",
    "a woman is riding a bike past a wall and past a wall and past a wall and past a wall again and again",
    "",  # empty
    "people sitting on a bench near the lake",
    "surfer",  # one word
    "two dogs in the snow",
    "the the the the the the",
    "a man is climbing a rock face .",
    "a submarine orbits jupiter",  # no matching word
    "a boy is jumping into a swimming pool",
]
