"""What a worker does with images: read, decode, caption. Knows neither engines nor outputs."""
