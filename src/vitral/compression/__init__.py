"""Models made lighter: fewer tokens on their way, fewer heads and hidden features."""
