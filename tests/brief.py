"""A device's interpreter for tests: all as it is, but `greenllm bench` measures briefly and without energy.

python tests/brief.py MODEL OUT   (called by the script that Device.interpreter writes)
"""

import sys

import greenllm
from greenllm.bench import EFFORTS, Effort

model, out = sys.argv[1:3]
EFFORTS["brief"] = Effort(windows=1, sentences=2, sittings=2, seconds=0.5, turn=0.01)
greenllm.bench([model], effort="brief", energy=False, window=64, prompt_tokens=8, answer_tokens=4, report=out)
