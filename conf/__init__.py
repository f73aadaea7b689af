"""Settings, shipped YAML files and their loading, logging, signal handlers, and the exceptions that all packages share."""
