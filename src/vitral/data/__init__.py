"""Images in: sources, decoding, resizing, augmentation, batches."""
