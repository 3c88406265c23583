"""Weights on disk: the model folder and safe tensor files."""
