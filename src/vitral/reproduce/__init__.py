"""Comparisons of papers at a chosen scale: the same table on other data, with the paper's values beside it."""
