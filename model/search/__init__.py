"""Search for captions with a decoder: greedy, beam, sampling, consensus; and their confidence."""
