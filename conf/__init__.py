"""Settings, shipped YAML files and their loading, logging, signals, and the exceptions that all packages share."""
