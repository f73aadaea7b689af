"""Images: format detection, decoding to RGB pixels, and transforms to tensors."""
