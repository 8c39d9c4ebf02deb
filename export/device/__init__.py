"""Code for the device: the standard library alone, and in ``run`` what runs the model; nothing of greenllm, no torch.

``run.py`` travels in every bundle; the other files are sent over ssh while it is deployed and leave nothing behind.
All of it is kept to what Python 3.8 knows: the interpreter that answers first may be an old one.
"""
