"""A paper's comparison at a chosen scale: the same table, of other data, with the paper's row beside it."""
