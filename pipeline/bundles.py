"""`--model` to a bundle: a shipped name, a folder, or a URI."""

from __future__ import annotations

from pathlib import Path

from conf.base import overrides
from conf.captioner import Decoding
from conf.errors import BundleError
from conf.job import ModelSettings
from model.bundle import CONFIG, LIMITS, Bundle, read_bundle, read_folder
from model.image.decode import ImageError
from pipeline.store.store import Store
from pipeline.store.uri import expand_home, is_local, join, local_path, redact

SHIPPED = Path(__file__).resolve().parent.parent / "model" / "bundles"


def find_bundle(name: str, store: Store) -> Bundle:
    """The bundle meant by `name`, checked. Raises BundleError."""
    if is_local(name):
        folder = Path(local_path(expand_home(name)))
        if not (folder / CONFIG).is_file() and (SHIPPED / name / CONFIG).is_file():
            folder = SHIPPED / name
        if not folder.is_dir():
            shipped = ", ".join(sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}")))
            raise BundleError(
                f"no bundle {name!r}: not a folder, and not one of those shipped: {shipped or 'none'}"
            )
        return read_folder(folder)
    files = {}
    for file, limit in LIMITS.items():
        try:
            files[file] = store.read(join(name, file), limit)
        except ImageError as error:  # the store's reasons are the same for every kind of object
            raise BundleError(f"can't read {file} of bundle '{redact(name)}': {error}") from error
    return read_bundle(files, redact(name))


def configured_bundle(model: ModelSettings, store: Store) -> Bundle:
    """The bundle a job asks for, with the decoding options it sets. Raises BundleError, ConfigError."""
    return find_bundle(model.bundle, store).with_decoding(**overrides(model, Decoding))
