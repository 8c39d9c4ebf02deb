"""A small adapter over a frozen model, quantized or not, learned from a few samples of a task."""
