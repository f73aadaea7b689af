"""The model card that goes into every bundle: data, recipe, scores, limits, licence."""

from __future__ import annotations

import json
from typing import Any

from conf.captioner import EnsembleArchitecture
from model.bundle import Bundle
from model.bundle_schema import BundleConfig
from model.metrics.coco import PROTOCOL


def model_card(bundle: Bundle) -> str:
    """README.md of a bundle, from its own config.

    Says only what the config says; what nobody recorded is called so.
    """
    config = bundle.config
    training, decoding = config.training, config.decoding
    card = training.get("config", {}).get("card", {})
    architecture = config.architecture
    parts = architecture.members if isinstance(architecture, EnsembleArchitecture) else (architecture,)
    encoder = ", ".join(dict.fromkeys(part.encoder.name for part in parts))
    decoder = ", ".join(dict.fromkeys(part.decoder.name for part in parts))
    return f"""# {bundle.name}

Captions photographs in English. CNN encoder `{encoder}`, LSTM decoder `{decoder}`, {len(bundle.vocabulary)} tokens,
{len(bundle.weights) / 1e6:.1f} MB in fp16. Made by `nightcap train`; model id `{bundle.model_id}`.

## Data and recipe

{_recipe(training)}

## Scores

On the dev data that also chose the epoch, so slightly optimistic. {PROTOCOL}. Beam {decoding.beam_width},
{"consensus, " if decoding.consensus else ""}at most {decoding.max_length} words,
length penalty {decoding.length_penalty}.

{_table("metric", config.scores.dev)}

## Limits

It has seen what its training data shows and knows only the words in `vocabulary.json`. It describes anything
in those terms: a product photo, a scan, a drawing. It guesses colours, counts, genders and ages, and repeats the
habits and the prejudices of the people who wrote its captions. Not for decisions on people.

## Confidence

{_confidence(config)}

## Licence

{card.get("licence", "not recorded")}
"""


def _confidence(config: BundleConfig) -> str:
    fitted, scores = config.calibration, config.scores.confidence
    if fitted is None:
        return (
            "The geometric mean of the token probabilities: it ranks captions of this bundle; it is not the\n"
            "probability of being right."
        )
    return f"""The probability that a caption reaches CIDEr-D {fitted.threshold} against what people wrote,
fitted on {fitted.images} dev images for the decoding settings above. On pictures of another kind
it is a ranking at best. By cross-validation on the same images:

{_table("figure", scores)}"""


def _table(what: str, scores: dict[str, float]) -> str:
    if not scores:
        return "Not scored yet: `nightcap calibrate`."
    return "\n".join(
        [
            f"| {what} | value |",
            "|---|---:|",
            *(f"| {name} | {value:.4f} |" for name, value in scores.items()),
        ]
    )


def _recipe(training: dict[str, Any]) -> str:
    """Data, origin and stages; of an ensemble those of each member."""
    if "members" in training:
        return "\n".join(
            f"### Member `{member['start']}`\n\n{_recipe(member['start_training'])}\n"
            for member in training["members"]
        )
    recipe: dict[str, Any] = training.get("config", {})
    card, data = recipe.get("card", {}), recipe.get("data", {})
    weights = recipe.get("encoder", {}).get("weights")
    origin = f"the weights `{weights}`" if weights else "random weights"
    if "start" in training:
        origin = f"that of `{training['start']}`"
    return f"""- data: {card.get("data", "not recorded")}
- encoder: {card.get("encoder", "not recorded")}
- trained on `{data.get("train")}`, the best epoch chosen on `{data.get("dev")}`; the encoder began with {origin}
{_start_note(training)}
```json
{json.dumps(recipe.get("stages", []), indent=1)}
```"""


def _start_note(training: dict[str, Any]) -> str:
    """What was trained before, the latest first."""
    lines = []
    while "start" in training:
        name, training = training["start"], training.get("start_training", {})
        earlier = training.get("config", {})
        weights = earlier.get("encoder", {}).get("weights")
        began = f"; its encoder began with `{weights}`" if weights and "start" not in training else ""
        lines.append(
            f"- it went on from `{name}`, trained by `{json.dumps(earlier.get('stages', []))}`{began}\n"
        )
    return "".join(lines)
