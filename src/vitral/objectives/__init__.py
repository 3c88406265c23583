"""Training objectives, one file per objective."""
