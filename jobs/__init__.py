"""The `nightcap` command and the entry points `python -m jobs.…`. They call the other packages and hold no logic."""
