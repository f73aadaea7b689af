"""The neural networks: CNN encoders and LSTM decoders."""
