"""The model card of a bundle: data, recipe, scores, limits, confidence and licence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from conf.captioner import EnsembleArchitecture
from model.bundle import FORMAT, Bundle
from model.bundle_schema import BundleConfig
from model.text.language import tokenization

NAMES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "ja": "Japanese",
    "zh": "Chinese",
}


def model_card(bundle: Bundle) -> str:
    """The README.md of a bundle, made from its configuration only. Missing facts read "not recorded"."""
    config = bundle.config
    training, decoding = config.training, config.decoding
    card = training.get("config", {}).get("card", {})
    architecture = config.architecture
    parts = architecture.members if isinstance(architecture, EnsembleArchitecture) else (architecture,)
    encoder = ", ".join(dict.fromkeys(part.encoder.name for part in parts))
    decoder = ", ".join(dict.fromkeys(part.decoder.name for part in parts))
    bits = "fp16" if config.format == FORMAT else "8 and 16 bits"
    consensus = "consensus, " if decoding.consensus else ""
    return f"""# {bundle.name}

Captions photographs in {_language(config.language)}. CNN encoder `{encoder}`, decoder `{decoder}`,
{len(bundle.vocabulary)} tokens, {len(bundle.weights) / 1e6:.1f} MB in {bits}. Made by `nightcap train`;
model id `{bundle.model_id}`.

## Data and recipe

{_recipe(training)}

## Scores

{_scores_note(config)}

- protocol: {tokenization(config.language).protocol}{_mean_note(config.scores.dev)}
- decoding: beam width {decoding.beam_width}, {consensus}at most {decoding.max_length} words, length penalty \
{decoding.length_penalty}

{_table("metric", config.scores.dev)}

{_precision(config.scores.precision)}## Limits

The captioner knows only what its training data show and only the words in `vocabulary.json`. It describes every
image in those terms, also a product photo, a scan or a drawing. It guesses colours, counts, genders and ages, and
repeats the habits and prejudices of the people who wrote its training captions. Do not use it for decisions about
people.

## Confidence

{_confidence(config)}

## Licence

{card.get("licence", "not recorded")}
"""


def _scores_note(config: BundleConfig) -> str:
    """What the scores were measured on."""
    # Bundles that don't say `dev_by`: ensembles and averages get their scores from `calibrate` only.
    if config.scores.dev_by == "calibrate" or config.training.keys() & {"members", "averaged"}:
        return (
            "The scores are measured by `nightcap calibrate`, on the data given to it. They are slightly optimistic\n"
            "if best epochs were chosen on the same data."
        )
    return (
        "The scores are measured on the dev data that the best epoch was chosen on, so they are slightly "
        "optimistic."
    )


def _mean_note(scores: dict[str, float]) -> str:
    """What CIDEr is where there are several dev sets."""
    if not any(name.endswith(" CIDEr") for name in scores):
        return ""
    return "; `CIDEr` is the geometric mean of that of the data sets"


def _language(tag: str) -> str:
    """The name of a language in English and its tag; for a rare one the tag alone."""
    name = NAMES.get(tag.partition("-")[0])
    return f"{name} (`{tag}`)" if name else f"the language `{tag}`"


def _confidence(config: BundleConfig) -> str:
    fitted, scores = config.calibration, config.scores.confidence
    if fitted is None:
        return (
            "The confidence is the geometric mean of the token probabilities. It ranks captions of this bundle,\n"
            "but is not the probability that a caption is right."
        )
    elsewhere = (
        "On other kinds of pictures it is\na ranking at best."
        if fitted.familiar is None
        else "It is lowered, down to 0,\nfor images that the encoder finds unlike the training images. On other "
        "kinds of pictures it is a ranking at best."
    )
    return f"""The confidence is the probability that a caption reaches CIDEr-D {fitted.threshold} against what people
wrote. It was fitted on {fitted.images} dev images for the decoding settings above. {elsewhere}
By cross-validation on the same images{_figures_note(scores)}:

{_table("figure", scores)}"""


def _figures_note(scores: dict[str, float]) -> str:
    """What the figures are of where there are several data sets, and what people's agreement is."""
    notes = []
    if any(name.endswith(" ECE") for name in scores):
        notes.append("of all data sets, then of each")
    if "people_agreeing" in scores:
        notes.append(
            "`people_agreeing` is the share of the captions of the data that reach it against the others of their "
            "image"
        )
    return "".join(f";\n{note}" for note in notes)


def _precision(figures: dict[str, dict[str, float]]) -> str:
    """A section with the figures of each precision; nothing if they were not measured."""
    if not figures:
        return ""
    rows = (
        f"| {name} | {each['BLEU-4']:.4f} | {each['CIDEr']:.4f} | {each['images/s']:.0f} |"
        for name, each in figures.items()
    )
    return "\n".join(
        [
            "## Precision",
            "",
            "On the same data, and on one core of the machine that quantized it. `model.precision=auto` takes int8",
            "on x86 CPUs: the encoder in 8 bits, and the decoder in bf16 where the CPU computes in it.",
            "",
            "| precision | BLEU-4 | CIDEr | images/s of the model |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            "",
        ]
    )


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
    """Data, origin of the weights and stages; for an ensemble, those of each member."""
    if "members" in training:
        return "\n".join(
            f"### Member `{member['start']}`\n\n{_recipe(member['start_training'])}\n"
            for member in training["members"]
        )
    recipe: dict[str, Any] = training.get("config", {})
    card = recipe.get("card", {})
    weights = recipe.get("encoder", {}).get("weights")
    origin = f"the weights `{weights}`" if weights else "random weights"
    if "start" in training:
        origin = f"the weights of `{training['start']}`"
    return f"""- data: {card.get("data", "not recorded")}
- encoder: {card.get("encoder", "not recorded")}
{_data_sets(training)}
- the encoder was initialized with {origin}
{_average_note(training)}{_start_note(training)}
```json
{json.dumps(recipe.get("stages", []), indent=1)}
```"""


def _data_sets(training: dict[str, Any]) -> str:
    """What was trained on, and the dev data: one line, or a table of several data sets with a line about each."""
    data = training.get("config", {}).get("data", {})
    stated = {part["name"]: part for part in data.get("sets", ())}
    if not stated:
        return f"- trained on `{data.get('train')}`; the best epoch was chosen on `{data.get('dev')}`"
    rows, texts = [], []
    for counts in training["sets"]:
        part = stated[counts["name"]]
        numbers = " | ".join(f"{counts[key]:,}" for key in ("images", "captions", "dev_images"))
        files = f"`{part['train']}` | `{part['dev']}`"
        rows.append(f"  | {part['name']} | {counts['share']:.0%} | {numbers} | {files} |\n")
        texts.append(f"- captions of {part['name']}: {part['card']}\n")
    return f"""- trained on the following data sets together; the best epoch was chosen by their mean CIDEr:

  | data set | share of a batch | images | captions | dev images | training data | dev data |
  |---|---:|---:|---:|---:|---|---|
{"".join(rows)}
{"".join(texts)}""".rstrip()


def _average_note(training: dict[str, Any]) -> str:
    """Lines that say of which bundles the weights are the mean, if they are."""
    if "averaged" not in training:
        return ""
    return (
        f"- the weights are a mean: {_shares(training)}; the rest of this section is about the last of them\n"
        f"{''.join(_means_within(training))}"
    )


def _means_within(training: dict[str, Any]) -> Iterator[str]:
    """One line for each part of a mean that is a mean itself."""
    for part in training["averaged"]:
        before = part.get("start_training", {})
        if "averaged" in before:
            yield f"- `{part['start']}` is a mean too: {_shares(before)}\n"
            yield from _means_within(before)


def _shares(training: dict[str, Any]) -> str:
    return ", ".join(f"{part['share']:.0%} of `{part['start']}`" for part in training["averaged"])


def _start_note(training: dict[str, Any]) -> str:
    """One line for each earlier training that this one continued from, the latest first."""
    lines = []
    while "start" in training:
        name, training = training["start"], training.get("start_training", {})
        earlier = training.get("config", {})
        weights = earlier.get("encoder", {}).get("weights")
        origin = (
            f"; its encoder was initialized with `{weights}`" if weights and "start" not in training else ""
        )
        stages = json.dumps(earlier.get("stages", []))
        lines.append(
            f"- training continued from `{name}`, trained by `{stages}`{origin}\n{_average_note(training)}"
        )
    return "".join(lines)
