"""From a decoder to captions: beam search, sampling, consensus and confidence."""
