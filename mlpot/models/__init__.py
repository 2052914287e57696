"""Backbones, heads and the potential that joins them."""
