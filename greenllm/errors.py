"""Exceptions that are shown to people without a traceback."""

from __future__ import annotations


class GreenError(Exception):
    """A user's mistake or a limit of the machine, told in plain words.

    Args:
        what: what is wrong and where, one sentence.
        fix: which option, command or file changes it; printed on a line of its own.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what if not fix else f"{what}\n{fix}")
        self.what = what
        self.fix = fix


class Interrupted(GreenError):  # noqa: N818 - it is no error
    """Ctrl-C, in a form that no library between here and there swallows."""
