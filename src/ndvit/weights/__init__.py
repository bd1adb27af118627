"""Weights of any origin to networks, and networks to files."""
