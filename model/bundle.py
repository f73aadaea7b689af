"""Bundles: a trained captioner as a folder of files. Loading one executes no code from it.

weights.safetensors   the weights in fp16, or some of them in 8 bits
config.json           `BundleConfig`: architecture, preprocessing, decoding, scores, provenance, hashes
vocabulary.json       the tokens in order
README.md             the model card
novelty.safetensors   optional: centres of the training images, for the confidence; in fp16
encoder-int8.xml      optional: the encoder in int8, in OpenVINO's format; with encoder-int8.bin
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from conf.base import ContradictionError
from conf.captioner import Decoding, EnsembleArchitecture, Preprocessing, check_decoding
from conf.errors import BundleError, ConfigError, JobError
from model.atomic import training_file
from model.bundle_schema import NAME, BundleConfig, NoveltyConfig, Scores
from model.image.decode import POLICY_VERSION
from model.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

    from model.captioner import Captioner

FORMAT = 1
COMPACT_FORMAT = 2  # LSTM weights in 8 bits, see `model.compact`
CONFIG, WEIGHTS, VOCABULARY, CARD = "config.json", "weights.safetensors", "vocabulary.json", "README.md"
NOVELTY = "novelty.safetensors"
INT8_NETWORK, INT8_WEIGHTS = "encoder-int8.xml", "encoder-int8.bin"
LIMITS = {
    CONFIG: 1 << 20,
    WEIGHTS: 2 << 30,
    VOCABULARY: 16 << 20,
    NOVELTY: 16 << 20,
    INT8_NETWORK: 16 << 20,
    INT8_WEIGHTS: 1 << 30,
}
"""Size limits in bytes of the files that are read, since a bundle may come from an untrusted place."""
OPTIONAL = frozenset((NOVELTY, INT8_NETWORK, INT8_WEIGHTS))


@dataclass(frozen=True)
class Bundle:
    """A validated bundle: its configuration and the bytes of its weights. Small enough to send to every actor."""

    config: BundleConfig
    weights: bytes
    vocabulary: Vocabulary
    int8: Mapping[str, bytes] = field(default_factory=dict)  # the files of the int8 encoder, if there is one
    novelty: bytes = b""  # the centres of the training images, if there are any

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def language(self) -> str:
        """The language of the captions by BCP 47, see `model.text.language`."""
        return self.config.language

    @property
    def preprocessing(self) -> Preprocessing:
        return self.config.preprocessing

    @property
    def decoding(self) -> Decoding:
        return self.config.decoding

    @property
    def attends(self) -> bool:
        """Whether the captioner attends to a grid for each word, so that its attention can be shown."""
        return self.config.architecture.attends

    @property
    def model_id(self) -> str:
        """`name@hash`, where the hash covers everything that affects captions and confidence, and nothing else.

        Only keys that the configuration states are hashed, so that a key added by a later version changes no id.
        """
        stated = self.config.model_dump(mode="json", exclude_unset=True)
        keys = ("language", "architecture", "preprocessing", "decoding", "sha256", "calibration", "novelty")
        identity = {key: stated[key] for key in keys if key in stated}
        identity["image_policy"] = POLICY_VERSION
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"

    def as_start(self) -> dict[str, str]:
        """What a training records of the bundle that it starts from: its model id, and the hash of its weights.

        The id changes when the bundle is calibrated or gets other decoding settings, the hash does not.
        """
        return {"start": self.model_id, "start_weights": self.config.sha256[WEIGHTS]}

    def with_decoding(self, **changes: Any) -> Bundle:
        """The same bundle with other decoding settings; None leaves a setting as it is.

        Raises ConfigError for settings that are out of range or contradict each other.
        """
        changed = {k: v for k, v in changes.items() if v is not None and v != getattr(self.decoding, k, None)}
        stated = self.decoding.model_dump(exclude_unset=True)
        try:
            decoding = Decoding.model_validate(stated | changed)
            if changed:
                check_decoding(decoding)
        except ContradictionError as error:
            key = error.keys[0]
            raise ConfigError(f"decoding {key} = {error.value} {error}, for bundle {self.name!r}") from error
        except ValidationError as error:
            raise ConfigError(
                "; ".join(f"decoding {e['loc'][0]}: {e['msg']}" for e in error.errors())
            ) from error
        return replace(self, config=self.config.model_copy(update={"decoding": decoding}))

    def with_scores(self, **scores: Any) -> Bundle:
        """The same bundle with some values of its `Scores` replaced."""
        return replace(
            self,
            config=self.config.model_copy(update={"scores": self.config.scores.model_copy(update=scores)}),
        )

    def confidence_note(self) -> str:
        """Why `confidence` is not calibrated, or an empty string when it is."""
        calibration = self.config.calibration
        if calibration is not None and calibration.decoding == self.decoding:
            return ""
        raw = "confidence is the raw geometric mean of the token probabilities: "
        if calibration is None:
            return f"{raw}{self.name} has no calibration (`nightcap calibrate`)"
        fitted, current = calibration.decoding.model_dump(), self.decoding.model_dump()
        changed = ", ".join(f"{key}={value}" for key, value in fitted.items() if current[key] != value)
        return f"{raw}{self.name} is calibrated for {changed}"

    def files(self, card: str) -> dict[str, bytes]:
        """The files of this bundle by name. `config.json` comes last: without it there is no bundle."""
        return {
            WEIGHTS: self.weights,
            VOCABULARY: _json(list(self.vocabulary.tokens)),
            **self.int8,
            **({NOVELTY: self.novelty} if self.novelty else {}),
            CARD: card.encode(),
            CONFIG: _json(self.config.model_dump(mode="json", exclude_unset=True)),
        }

    def encoder_weights(self) -> bytes:
        """The weights of the encoder alone in fp32, as a safetensors file with the key names of torchvision.

        Raises ConfigError for an ensemble, which has several encoders.
        """
        from safetensors.torch import load, save

        prefix = "encoder.trunk."
        if isinstance(self.config.architecture, EnsembleArchitecture):
            raise ConfigError(f"{self.name} is an ensemble; take the encoder of one of its members")
        return save(
            {
                key.removeprefix(prefix): value.float() if value.is_floating_point() else value
                for key, value in load(self.weights).items()
                if key.startswith(prefix)
            }
        )

    def captioner(self) -> Captioner:
        """A new captioner in fp32 with these weights. Raises BundleError when they don't fit the architecture."""
        # PyTorch is slow to import, and not needed to validate a bundle.
        from safetensors import SafetensorError
        from safetensors.torch import load

        from model.captioner import Captioner
        from model.compact import unpacked
        from model.device import skip_initialization

        config = self.config
        try:
            # Memory without initial values is not used before the weights are known to fit.
            with skip_initialization():
                model = Captioner(
                    config.architecture,
                    self.vocabulary,
                    config.preprocessing,
                    config.decoding,
                    config.calibration,
                    self._centres(),
                )
        except ConfigError as error:
            raise BundleError(f"architecture of bundle {self.name!r} can't be built: {error}") from error
        try:
            state = unpacked(load(self.weights))
        except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"{WEIGHTS} of bundle {self.name!r} can't be loaded: {reason}") from error
        problem = _misfit(state, model.state_dict())
        if problem:
            raise BundleError(f"bundle {self.name!r} does not fit its own architecture: {problem}")
        model.load_state_dict(state)
        channels = model.encoder.channels
        channels = channels if isinstance(channels, int) else sum(channels)
        if model.centres is not None and model.centres.shape[1] != channels:
            raise BundleError(
                f"{NOVELTY} of bundle {self.name!r} has centres of {model.centres.shape[1]} numbers, and the "
                f"encoder gives {channels}"
            )
        return model.eval()

    def compact(self) -> Bundle:
        """The bundle with LSTM weights in 8 bits, see `model.compact`; a compact bundle itself.

        Scores and calibration stay as they are: `nightcap evaluate` and `calibrate` measure what it costs.
        """
        from safetensors.torch import load, save

        from model.compact import packed

        if self.config.format == COMPACT_FORMAT:
            return self
        weights = save(packed(load(self.weights)))
        digests = {**self.config.sha256, WEIGHTS: hashlib.sha256(weights).hexdigest()}
        config = self.config.model_copy(update={"format": COMPACT_FORMAT, "sha256": digests})
        return replace(self, config=config, weights=weights)

    def with_centres(self, centres: Tensor, images: int) -> Bundle:
        """The same bundle with centres (K, D) of its `images` training images."""
        from model.search.novelty import save_centres

        content = save_centres(centres)
        found = NoveltyConfig(images=images, sha256=hashlib.sha256(content).hexdigest())
        return replace(self, config=self.config.model_copy(update={"novelty": found}), novelty=content)

    def _centres(self) -> Tensor | None:
        """The centres of the training images (K, D), if any. Raises BundleError if their file holds other things."""
        from safetensors import SafetensorError

        from model.search.novelty import load_centres

        if not self.novelty:
            return None
        try:
            return load_centres(self.novelty)
        except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise BundleError(f"{NOVELTY} of bundle {self.name!r} can't be loaded: {reason}") from error


def read_bundle(files: Mapping[str, bytes], origin: str) -> Bundle:
    """Validate and parse the files of a bundle; `origin` names it in errors.

    Raises BundleError when a file is missing, too large or malformed, or its hash is not the one in `config.json`.
    """
    for name in LIMITS.keys() - OPTIONAL - files.keys():
        raise BundleError(
            f"no {name} in bundle {origin!r}; a bundle has {CONFIG}, {WEIGHTS} and {VOCABULARY}"
        )
    for name, limit in LIMITS.items():
        if len(files.get(name, b"")) > limit:
            raise BundleError(f"{name} of bundle {origin!r} is {len(files[name])} bytes, limit {limit}")
    try:
        stored = json.loads(files[CONFIG])
        writer = f"written by Nightcap {stored.get('nightcap', '0.1')}"
        if stored["format"] not in (FORMAT, COMPACT_FORMAT):
            raise BundleError(
                f"bundle {origin!r} has format {stored['format']!r}, {writer}; this Nightcap reads {FORMAT} and "
                f"{COMPACT_FORMAT}"
            )
        config = BundleConfig.model_validate(stored)
        _check_digests({name: files[name] for name in (WEIGHTS, VOCABULARY)}, config.sha256, origin)
        int8, novelty = {}, b""
        if config.novelty is not None:
            novelty = files.get(NOVELTY, b"")
            _check_digests({NOVELTY: novelty}, {NOVELTY: config.novelty.sha256}, origin)
        if config.int8 is not None:
            int8 = {name: files.get(name, b"") for name in (INT8_NETWORK, INT8_WEIGHTS)}
            _check_digests(int8, config.int8.sha256, origin)
        vocabulary = Vocabulary(tuple(json.loads(files[VOCABULARY])), config.language)
        return Bundle(config, files[WEIGHTS], vocabulary, int8, novelty)
    except ValidationError as error:
        problems = [(".".join(map(str, e["loc"])), e["msg"], str(e["input"])[:60]) for e in error.errors()]
        reasons = [f"{key}: {message}, got {value!r}" for key, message, value in problems]
        raise BundleError(
            f"bundle {origin!r} is malformed ({CONFIG}, {writer}): {'; '.join(reasons[:5])}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}"[:300]
        raise BundleError(f"bundle {origin!r} is malformed: {reason}") from error


def read_folder(folder: Path) -> Bundle:
    """The bundle in a local folder. Raises BundleError."""
    if not (folder / CONFIG).is_file():
        raise BundleError(f"no bundle at {str(folder)!r}: there is no {CONFIG} in it")
    paths = [folder / name for name in LIMITS if (folder / name).is_file()]
    for path in paths:
        if path.stat().st_size > LIMITS[path.name]:
            limit = f"limit {LIMITS[path.name]}"
            raise BundleError(f"{str(path)!r} is {path.stat().st_size} bytes, {limit}; it is not a bundle's")
    try:
        files = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise BundleError(f"bundle {str(folder)!r} can't be read: {error}") from error
    return read_bundle(files, str(folder))


def check_name(name: str) -> None:
    """Raises ConfigError for a text that can't be the name of a bundle."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"{name[:120]!r} can't be the name of a bundle; give 1 to 100 letters of a to z, digits and . _ - "
            "that begin with a letter or a digit"
        )


def make_bundle(
    model: Captioner, name: str, training: dict[str, Any], scores: Scores | None = None
) -> Bundle:
    """The bundle of a trained captioner; weights are stored in fp16. Raises JobError if fp16 can't hold them."""
    from safetensors.torch import save

    state = {
        key: (tensor.detach().half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for key, tensor in model.state_dict().items()
    }
    bad = next((key for key, tensor in state.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise JobError(
            f"no bundle {name!r}: {bad} holds values that are not finite in fp16 (±65,504); "
            "train with lower learning rates"
        )
    weights, vocabulary = save(state), _json(list(model.vocabulary.tokens))
    config = {
        "format": FORMAT,
        "nightcap": own_version(),
        "name": name,
        "language": model.vocabulary.language,
        "architecture": model.architecture.model_dump(mode="json"),
        "preprocessing": model.preprocessing.model_dump(mode="json"),
        "decoding": model.decoding.model_dump(mode="json"),
        "scores": (scores or Scores()).model_dump(mode="json"),
        "training": training,
        "sha256": {
            WEIGHTS: hashlib.sha256(weights).hexdigest(),
            VOCABULARY: hashlib.sha256(vocabulary).hexdigest(),
        },
    }
    # Convert through JSON, so that a new bundle equals the one that is read back later.
    return Bundle(BundleConfig.model_validate(json.loads(_json(config))), weights, model.vocabulary)


def write_folder(bundle: Bundle, folder: Path, card: str) -> None:
    """Write the files to a local folder, each atomically and `config.json` last.

    A folder without `config.json` is no bundle, so an interrupted write leaves none. Raises JobError.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    for name, content in bundle.files(card).items():
        with training_file(folder / name) as temporary:
            temporary.write_bytes(content)


def own_version() -> str:
    """The version of Nightcap that runs."""
    try:
        return version("nightcap")
    except PackageNotFoundError:  # run from a working directory, not installed
        return "not installed"


def _check_digests(files: Mapping[str, bytes], stated: Mapping[str, str], origin: str) -> None:
    """Raises BundleError for a file whose SHA-256 is not the stated one."""
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        if digest != stated.get(name):
            raise BundleError(
                f"{name} of bundle {origin!r} is {'corrupted or was replaced' if content else 'missing'}: "
                f"sha256 {digest[:12]}…, {CONFIG} says {str(stated.get(name))[:12]}…; copy the bundle again"
            )


def _misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first reason why the tensors `state` can't be loaded into a model with tensors like `expected`."""
    for kind, keys in (
        ("lacks", expected.keys() - state.keys()),
        ("also has", state.keys() - expected.keys()),
    ):
        if keys:
            return f"the file {kind} {len(keys)} tensors, the first is {min(keys)[:100]!r}"
    for key, tensor in state.items():
        shape = tuple(expected[key].shape)
        if tensor.shape != shape:
            return f"{key} is {tuple(tensor.shape)} in the file, {shape} by configuration and vocabulary"
        if tensor.is_floating_point() != expected[key].is_floating_point() or tensor.is_complex():
            return f"{key} is {tensor.dtype}"
        if not tensor.isfinite().all():
            return f"{key} holds values that are not finite"
    return None


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
