"""A bundle: one trained captioner as a folder that loads anywhere and executes nothing.

    weights.safetensors   fp16
    config.json           format, name, architecture, preprocessing, decoding, scores, training, sha256 of the others
    vocabulary.json       the tokens in order
    README.md             model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from conf.errors import BundleError, ConfigError
from model.captioner import Captioner
from model.decoding import DecodingOptions
from model.transforms import Preprocessing
from model.vocabulary import Vocabulary

FORMAT = 1
CONFIG, WEIGHTS, VOCABULARY, CARD = "config.json", "weights.safetensors", "vocabulary.json", "README.md"
# The most bytes each file may have; a bundle can come from anywhere.
LIMITS = {CONFIG: 1 << 20, WEIGHTS: 2 << 30, VOCABULARY: 16 << 20}


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its parsed config and the bytes of its files. Small enough to hand to every actor."""

    config: dict[str, Any]
    weights: bytes
    vocabulary: Vocabulary

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def preprocessing(self) -> Preprocessing:
        stored = self.config["preprocessing"]
        return Preprocessing(stored["width"], stored["height"], tuple(stored["mean"]), tuple(stored["std"]))

    @property
    def decoding(self) -> DecodingOptions:
        return DecodingOptions(**self.config["decoding"])

    @property
    def model_id(self) -> str:
        """`name@hash`: changes with the weights, the words, the preprocessing or the decoding, nothing else."""
        identity = {k: self.config[k] for k in ("architecture", "preprocessing", "decoding", "sha256")}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"

    def with_decoding(self, **changes: int | float | None) -> Bundle:
        """The same bundle with other decoding options; those given as None stay as they are."""
        decoding = replace(self.decoding, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
        return replace(self, config={**self.config, "decoding": asdict(decoding)})

    def captioner(self) -> Captioner:
        """A new captioner in fp32 with these weights. Raises BundleError when they don't fit the architecture."""
        config = self.config
        try:
            with torch.random.fork_rng(devices=[]):  # leaves the caller's random state alone
                model = Captioner(config["architecture"], self.vocabulary, self.preprocessing, self.decoding)
            state = load_safetensors(self.weights)
            model.load_state_dict({key: value.float() for key, value in state.items()})
        except (ConfigError, RuntimeError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"bundle {self.name!r} does not fit its own architecture: {reason}") from error
        return model.eval()


def read_bundle(files: Mapping[str, bytes], origin: str) -> Bundle:
    """Check and parse the files of a bundle; `origin` names it in errors.

    Raises BundleError: a file is missing, not what it should be, or not the one `config.json` was written for.
    """
    for name in (CONFIG, WEIGHTS, VOCABULARY):
        if name not in files:
            raise BundleError(f"no {name} in bundle {origin!r}; a bundle has {CONFIG}, {WEIGHTS} and {VOCABULARY}")
        if len(files[name]) > LIMITS[name]:
            raise BundleError(f"{name} of bundle {origin!r} is {len(files[name])} bytes, limit {LIMITS[name]}")
    try:
        config = json.loads(files[CONFIG])
        if config["format"] != FORMAT:
            raise BundleError(f"bundle {origin!r} has format {config['format']!r}, this Nightcap reads {FORMAT}")
        for name in (WEIGHTS, VOCABULARY):
            found = hashlib.sha256(files[name]).hexdigest()
            if found != config["sha256"][name]:
                raise BundleError(
                    f"{name} of bundle {origin!r} is corrupted or was exchanged: sha256 {found[:12]}…, "
                    f"{CONFIG} says {str(config['sha256'][name])[:12]}…; copy the bundle again"
                )
        bundle = Bundle(config, files[WEIGHTS], Vocabulary(tuple(json.loads(files[VOCABULARY]))))
        _ = bundle.model_id, bundle.preprocessing, bundle.decoding, config["architecture"]["encoder"]["name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"bundle {origin!r} is malformed: {type(error).__name__} {error}") from error
    return bundle


def read_folder(folder: Path) -> Bundle:
    """The bundle in a local folder. Raises BundleError."""
    if not (folder / CONFIG).is_file():
        raise BundleError(f"no bundle at {str(folder)!r}: there is no {CONFIG} in it")
    found = [folder / name for name in (CONFIG, WEIGHTS, VOCABULARY) if (folder / name).is_file()]
    too_big = [path for path in found if path.stat().st_size > LIMITS[path.name]]
    if too_big:
        raise BundleError(f"{too_big[0]} is larger than a bundle's {too_big[0].name} may be")
    return read_bundle({path.name: path.read_bytes() for path in found}, str(folder))


def make_bundle(model: Captioner, name: str, training: dict[str, Any], scores: dict[str, Any]) -> Bundle:
    """The bundle of a trained captioner; weights are stored in fp16."""
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    state |= {k: v.contiguous() for k, v in model.state_dict().items() if not v.is_floating_point()}
    weights = save_safetensors(state)
    vocabulary = _json(list(model.vocabulary.tokens))
    config = {
        "format": FORMAT,
        "name": name,
        "architecture": model.architecture,
        "preprocessing": asdict(model.preprocessing),
        "decoding": asdict(model.decoding),
        "scores": scores,
        "training": training,
        "sha256": {
            WEIGHTS: hashlib.sha256(weights).hexdigest(),
            VOCABULARY: hashlib.sha256(vocabulary).hexdigest(),
        },
    }
    # Through JSON and back, so that what was made equals what will be read.
    return Bundle(json.loads(_json(config)), weights, model.vocabulary)


def write_folder(bundle: Bundle, folder: Path, card: str) -> None:
    """Write the four files, `config.json` last: a folder without it is not a bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / WEIGHTS).write_bytes(bundle.weights)
    (folder / VOCABULARY).write_bytes(_json(list(bundle.vocabulary.tokens)))
    (folder / CARD).write_text(card, encoding="utf-8")
    partial = folder / f"{CONFIG}.partial"
    partial.write_bytes(_json(bundle.config))
    partial.replace(folder / CONFIG)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
