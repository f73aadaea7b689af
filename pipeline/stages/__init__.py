"""What a worker does: read, decode, caption."""
