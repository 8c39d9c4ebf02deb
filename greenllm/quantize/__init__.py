"""Weights as integers: one algorithm a file, pure functions on tensors."""
