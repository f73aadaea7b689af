"""Which images to caption in this run, and why."""
