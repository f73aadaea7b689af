"""Settings, shipped YAML files and their loading, logging, and the exceptions that all packages share."""
