"""Encoders and decoders: the neural networks, without what is done with them."""
