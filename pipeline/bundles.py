"""Find a bundle by shipped name, folder or URI, and write a bundle to a folder on any store."""

from __future__ import annotations

from pathlib import Path

from conf.base import overrides
from conf.captioner import Decoding
from conf.errors import BundleError
from conf.job import ModelSettings
from model.bundle import CONFIG, LIMITS, OPTIONAL, Bundle, read_bundle
from model.card import model_card
from pipeline.output.folder import OutputFolder
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import is_relative, join, redact

SHIPPED = Path(__file__).resolve().parent.parent / "model" / "bundles"


def find_bundle(name: str, stores: Stores) -> Bundle:
    """The checked bundle of a shipped name, folder or URI. Raises BundleError."""
    store, shown = stores.of(name), redact(name)
    try:
        folder = store.full_name(name)
        exists = store.kind(join(folder, CONFIG)) == "file"
    except StoreError as error:
        raise BundleError(f"can't read bundle '{shown}': {error}") from error
    if not exists and is_relative(name):
        if not (SHIPPED / name / CONFIG).is_file():
            known = ", ".join(shipped_bundles()) or "none"
            raise BundleError(
                f"no bundle '{shown}': neither a folder with a bundle nor one of the shipped: {known}"
            )
        store, folder = stores.of(str(SHIPPED)), str(SHIPPED / name)
    files = {}
    for file, limit in LIMITS.items():
        try:
            files[file] = store.read(join(folder, file), limit).data
        except StoreError as error:
            if error.error_class == "missing" and file in OPTIONAL:
                continue
            if error.error_class == "missing":
                raise BundleError(f"no bundle at '{shown}': there is no {file} in it") from error
            raise BundleError(f"can't read {file} of bundle '{shown}': {error}") from error
    return read_bundle(files, shown)


def is_bundle(name: str, stores: Stores) -> bool:
    """Whether `find_bundle` would find a bundle of this name. A store that can't be read has none."""
    try:
        store = stores.of(name)
        if store.kind(join(store.full_name(name), CONFIG)) == "file":
            return True
    except StoreError:
        return False
    return is_relative(name) and name in shipped_bundles()


def shipped_bundles() -> list[str]:
    """Names of the bundles that ship with Nightcap, sorted."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def configured_bundle(model: ModelSettings, stores: Stores) -> Bundle:
    """The bundle of a job, with the decoding settings that the job overrides. Raises BundleError, ConfigError."""
    return find_bundle(model.bundle, stores).with_decoding(**overrides(model, Decoding))


def write_bundle(bundle: Bundle, folder: OutputFolder) -> None:
    """Write a bundle to a folder, `config.json` last: a folder without it is not a bundle. Raises OutputError."""
    folder.delete(CONFIG)
    for name, content in bundle.files(model_card(bundle)).items():
        folder.write(name, content)
