"""The engine that runs the stages: Ray."""
