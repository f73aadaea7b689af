"""Kills and broken stores, on the real job: `make faults`. Not part of the installed package."""
