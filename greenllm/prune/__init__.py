"""Smaller models: blocks, heads, channels, tokens and single weights that go."""
