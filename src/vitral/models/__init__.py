"""The Vision Transformer: layers, presets, and the model itself."""
