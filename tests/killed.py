"""greenllm, which signals itself just before a given file comes to its final name, or a directory is made.

No timing decides when it is killed.

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
    if not waiting or event not in ("os.rename", "os.mkdir"):
        return
    if fnmatch.fnmatch(os.fspath(arguments[event == "os.rename"]), f"*/{pattern}"):
        waiting.clear()
        os.kill(os.getpid(), number)


sys.addaudithook(watch)
main()
