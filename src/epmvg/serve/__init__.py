"""A trained run behind HTTP, and the one page that uses it."""
