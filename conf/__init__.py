"""Settings: typed sections, YAML loading, the shipped YAML files, and the exceptions that every room shares."""
