"""What is minimized: one file an objective."""
