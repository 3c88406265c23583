"""What kind of answer a model gives, one file per task."""
