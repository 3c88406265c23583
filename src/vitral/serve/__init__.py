"""A server: predictions over HTTP, and the page that shows how a model sees."""
