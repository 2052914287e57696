"""Recipes: pre-training by denoising, and training on energies and forces."""
