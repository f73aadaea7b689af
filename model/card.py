"""The model card that goes into every bundle."""

from __future__ import annotations

from model.bundle import Bundle


def model_card(bundle: Bundle) -> str:
    """README.md of a bundle."""
    return f"# {bundle.name}\n"
