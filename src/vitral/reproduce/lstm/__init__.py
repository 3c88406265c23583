"""The Transformer beside the LSTM that it replaced, part by part."""
