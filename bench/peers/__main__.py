"""The command of :mod:`greenllm.bench.peers`."""

from __future__ import annotations

import argparse
from pathlib import Path

from greenllm.bench.peers import PEERS, Calibration, make
from greenllm.errors import GreenError


def main() -> None:
    """Parse, make, print where they are."""
    parser = argparse.ArgumentParser(description="Make other tools' compressed models from one checkpoint.")
    parser.add_argument("checkpoint", type=Path, help="directory in Hugging Face's format, Llama-shaped")
    parser.add_argument("--out", type=Path, required=True, help="directory for all of them; what is there is kept")
    parser.add_argument("--only", nargs="+", default=[], metavar="PEER", help=f"some of {', '.join(PEERS)}")
    parser.add_argument("--calibration", type=Path, help=".txt or .jsonl for Olive's GPTQ")
    parser.add_argument("--samples", type=int, default=64, help="of it (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="of each, in tokens (default: %(default)s)")
    given = parser.parse_args()
    try:
        calibration = Calibration(given.calibration, given.samples, given.length)
        for path in make(given.checkpoint, given.out, given.only, calibration):
            print(path)
    except GreenError as e:
        parser.exit(1, f"{e}\n")


if __name__ == "__main__":
    main()
