"""Processes: the `nightcap` command and `python -m jobs.…` entry points. No logic lives here."""
