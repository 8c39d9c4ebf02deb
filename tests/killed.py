"""greenllm, which signals itself just before a given file comes to its final name: a kill that no timing decides.

python tests/killed.py SIGNAL PATTERN argument …
"""

import fnmatch
import os
import signal
import sys

from greenllm.cli import main

number, pattern = signal.Signals[sys.argv.pop(1)], sys.argv.pop(1)
waiting = [pattern]


def watch(event: str, arguments: tuple) -> None:
    if event == "os.rename" and waiting and fnmatch.fnmatch(os.fspath(arguments[1]), f"*/{pattern}"):
        waiting.clear()
        os.kill(os.getpid(), number)


sys.addaudithook(watch)
main()
