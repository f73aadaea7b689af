"""The tables of an output: writing, publishing, verifying, pruning."""
