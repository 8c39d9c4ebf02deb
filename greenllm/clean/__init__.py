"""Text to calibrate on or to learn from, without what should not be in it; whatever is dropped is counted and said.

One check a file. Each is called with a text and gives the reason to drop it, or None. Streaming: a text is looked at
once, in order, and the same texts in the same order lose the same ones.
"""

from greenllm.clean.filter import Filter, Rules

__all__ = ["Filter", "Rules"]
