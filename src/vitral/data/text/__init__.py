"""Text in data: tokenizers, sources of text pairs and of images with text, batches and the data check."""
