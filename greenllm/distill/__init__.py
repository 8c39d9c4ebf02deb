"""Distil: teach a smaller model what a larger one says; one algorithm, one file."""
