"""The knobs: typed schema, YAML loading, shipped YAML files, and the exceptions every room shares."""
