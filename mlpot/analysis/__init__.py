"""What a potential is worth in use: stability of its simulations."""
