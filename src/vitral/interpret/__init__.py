"""Looking inside a model: what it attends to, what each layer knows, what its filters and positions look like."""
