"""The tables of an output: write, publish, verify and prune them."""
