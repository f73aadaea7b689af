"""The work on images: read, decode, caption. Independent of engines and outputs."""
