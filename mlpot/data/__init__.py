"""Labelled structures: read them in any supported format, check, reference and split them."""
