"""Pages for people, rendered from templates. Knows `model` and `pipeline`."""
