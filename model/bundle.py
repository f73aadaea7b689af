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
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from conf.errors import BundleError, ConfigError
from model.bundle_schema import check_config, check_decoding, misfit
from model.options import IMAGE_POLICY, DecodingOptions, Preprocessing
from model.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from model.captioner import Captioner

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
        return Preprocessing.from_json(self.config["preprocessing"])

    @property
    def decoding(self) -> DecodingOptions:
        return DecodingOptions(**self.config["decoding"])

    @property
    def model_id(self) -> str:
        """`name@hash`: changes with what has a say in captions and confidence, nothing else."""
        identity = {k: self.config[k] for k in ("architecture", "preprocessing", "decoding", "sha256")}
        identity["image_policy"] = IMAGE_POLICY
        if "calibration" in self.config:
            identity["calibration"] = self.config["calibration"]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"

    def with_decoding(self, **changes: int | float | None) -> Bundle:
        """The same bundle with other decoding options; None leaves one as it is. Raises ConfigError."""
        decoding = replace(self.decoding, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
        try:
            check_decoding(asdict(decoding))
        except ValidationError as error:
            raise ConfigError(
                "; ".join(f"decoding {e['loc'][0]}: {e['msg']}" for e in error.errors())
            ) from error
        return replace(self, config={**self.config, "decoding": asdict(decoding)})

    def confidence_note(self) -> str:
        """Why `confidence` is the raw value: empty when it is calibrated."""
        fitted = self.config.get("calibration", {}).get("decoding")
        if fitted == self.config["decoding"]:
            return ""
        raw = "confidence is the raw geometric mean of the token probabilities: "
        if fitted is None:
            return f"{raw}{self.name} has no calibration (`nightcap calibrate`)"
        changed = (f"{k}={fitted.get(k)}" for k, v in self.config["decoding"].items() if fitted.get(k) != v)
        return f"{raw}{self.name} is calibrated for {', '.join(changed)}"

    def through_json(self) -> Bundle:
        """The same as it will be read back, so that what is made equals what is stored."""
        return replace(self, config=json.loads(_json(self.config)))

    def captioner(self) -> Captioner:
        """A new captioner in fp32 with these weights. Raises BundleError when they don't fit the architecture."""
        import torch  # slow to import, and checking a bundle does without
        from safetensors import SafetensorError
        from safetensors.torch import load

        from model.captioner import Captioner
        from model.search.confidence import Calibrator

        config = self.config
        try:
            # Shapes only: nothing is allocated before the weights are known to fit.
            with torch.device("meta"):
                model = Captioner(
                    config["architecture"],
                    self.vocabulary,
                    self.preprocessing,
                    self.decoding,
                    Calibrator.from_json(config["calibration"]) if "calibration" in config else None,
                )
        except ConfigError as error:
            raise BundleError(f"architecture of bundle {self.name!r} can't be built: {error}") from error
        try:
            state = load(self.weights)
        except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"{WEIGHTS} of bundle {self.name!r} can't be loaded: {reason}") from error
        problem = misfit(state, model.state_dict())
        if problem:
            raise BundleError(f"bundle {self.name!r} does not fit its own architecture: {problem}")
        model.to_empty(device="cpu").load_state_dict(state)
        return model.eval()


def read_bundle(files: Mapping[str, bytes], origin: str) -> Bundle:
    """Check and parse the files of a bundle; `origin` names it in errors.

    Raises BundleError: a file is missing, not what it should be, or not the one `config.json` was written for.
    """
    for name in (CONFIG, WEIGHTS, VOCABULARY):
        if name not in files:
            raise BundleError(
                f"no {name} in bundle {origin!r}; a bundle has {CONFIG}, {WEIGHTS} and {VOCABULARY}"
            )
        if len(files[name]) > LIMITS[name]:
            raise BundleError(
                f"{name} of bundle {origin!r} is {len(files[name])} bytes, limit {LIMITS[name]}"
            )
    try:
        config = json.loads(files[CONFIG])
        if config["format"] != FORMAT:
            raise BundleError(
                f"bundle {origin!r} has format {config['format']!r}, this Nightcap reads {FORMAT}"
            )
        check_config(config)
        for name in (WEIGHTS, VOCABULARY):
            found = hashlib.sha256(files[name]).hexdigest()
            if found != config["sha256"].get(name):
                raise BundleError(
                    f"{name} of bundle {origin!r} is corrupted or was exchanged: sha256 {found[:12]}…, "
                    f"{CONFIG} says {str(config['sha256'].get(name))[:12]}…; copy the bundle again"
                )
        return Bundle(config, files[WEIGHTS], Vocabulary(tuple(json.loads(files[VOCABULARY]))))
    except ValidationError as error:
        told = [(".".join(map(str, e["loc"])), e["msg"], str(e["input"])[:60]) for e in error.errors()]
        reasons = [f"{key}: {message}, got {value!r}" for key, message, value in told]
        raise BundleError(f"{CONFIG} of bundle {origin!r} is malformed: {'; '.join(reasons[:5])}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"[:300]
        raise BundleError(f"bundle {origin!r} is malformed: {reason}") from error


def read_folder(folder: Path) -> Bundle:
    """The bundle in a local folder. Raises BundleError."""
    if not (folder / CONFIG).is_file():
        raise BundleError(f"no bundle at {str(folder)!r}: there is no {CONFIG} in it")
    found = [folder / name for name in (CONFIG, WEIGHTS, VOCABULARY) if (folder / name).is_file()]
    for path in found:
        if path.stat().st_size > LIMITS[path.name]:
            limit = f"limit {LIMITS[path.name]}"
            raise BundleError(f"{str(path)!r} is {path.stat().st_size} bytes, {limit}; it is no bundle's")
    try:
        files = {path.name: path.read_bytes() for path in found}
    except OSError as error:
        raise BundleError(f"bundle {str(folder)!r} can't be read: {error}") from error
    return read_bundle(files, str(folder))


def make_bundle(model: Captioner, name: str, training: dict[str, Any], scores: dict[str, Any]) -> Bundle:
    """The bundle of a trained captioner; weights are stored in fp16."""
    from safetensors.torch import save

    state = {
        k: v.detach().half().cpu().contiguous()
        for k, v in model.state_dict().items()
        if v.is_floating_point()
    }
    state |= {k: v.cpu().contiguous() for k, v in model.state_dict().items() if not v.is_floating_point()}
    weights = save(state)
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
    return Bundle(config, weights, model.vocabulary).through_json()


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
