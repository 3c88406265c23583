"""The loop, its state, its journal."""
