"""Words: how captions are split into them and numbered."""
