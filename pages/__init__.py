"""HTML pages, rendered from templates. May import `conf`, `model` and `pipeline`."""
