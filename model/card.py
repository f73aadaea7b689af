"""The model card that goes into every bundle: data, recipe, scores, limits, licence."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

from model.bundle import Bundle
from model.metrics import PROTOCOL


def model_card(bundle: Bundle) -> str:
    """README.md of a bundle, from its own config.

    Says only what the config proves: paths are reduced to their last two parts, so that no home directory is
    published.
    """
    config = bundle.config
    training, decoding = config["training"], config["decoding"]
    recipe: dict[str, Any] = training.get("config", {})
    encoder, decoder = config["architecture"]["encoder"]["name"], config["architecture"]["decoder"]["name"]
    start = recipe.get("encoder", {}).get("weights")
    origin = f"`{_tail(start)}`" if start else "random weights"
    data = recipe.get("data", {})
    scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in config["scores"].get("dev", {}).items())
    return f"""# {bundle.name}

Captions photographs in English. CNN encoder `{encoder}`, LSTM decoder `{decoder}`, {len(bundle.vocabulary)} tokens,
{len(bundle.weights) / 1e6:.1f} MB in fp16. Made by `nightcap train`; model id `{bundle.model_id}`.

## Data and recipe

- training data `{_tail(data.get("train"))}`, the best epoch chosen on `{_tail(data.get("dev"))}`
- the encoder was initialised from {origin} and fine-tuned throughout unless every stage below has `encoder_lr` 0
- continued from: {training.get("start") or "nothing"}{_start_note(training)}

```json
{json.dumps(recipe.get("stages", []), indent=1)}
```

## Scores

On the dev data that also chose the epoch, so slightly optimistic. {PROTOCOL}. Beam {decoding["beam_width"]},
at most {decoding["max_length"]} words, length penalty {decoding["length_penalty"]}.

| metric | value |
|---|---:|
{scores}

## Limits

It has seen what its training data shows and knows only the words in `vocabulary.json`. It describes anything
in those terms: a product photo, a scan, a drawing. It guesses colours, counts, genders and ages, and repeats the
habits and the prejudices of the people who wrote its captions. `confidence` is the geometric mean of the token
probabilities: it ranks captions of this bundle; it is not the probability of being right. Not for decisions on
people.

## Licence

The weights are published under the licence of the Nightcap project. The training photographs belong to their
photographers and are not part of this bundle.
"""


def _tail(path: str | None) -> str:
    return "/".join(PurePath(path).parts[-2:]) if path else "not recorded"


def _start_note(training: dict[str, Any]) -> str:
    earlier = training.get("start_training")
    if not earlier:
        return ""
    stages = json.dumps(earlier.get("config", {}).get("stages", []))
    return f", which was trained from `{_tail(earlier['config']['encoder'].get('weights'))}` by the stages `{stages}`"
