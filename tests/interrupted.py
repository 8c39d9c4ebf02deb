"""Interrupt the deploy of a bundle at random points, and say what the device was left with. Not part of the suite.

python tests/interrupted.py BUNDLE [TIMES]
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from sshd import Sshd

from greenllm import artifact


def deploying(device, bundle):
    command = [sys.executable, "-m", "greenllm.cli", "deploy", bundle, device.host, "--ssh-config", device.config]
    return subprocess.Popen(
        [*command, "--python", sys.executable], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def state(device, old, new):
    """Which version is current on the device; it is checked and tests itself."""
    current = device.home / "greenllm/model/current"
    subprocess.run([current / "run", "--self-test"], check=True, capture_output=True)
    manifest = (current / "bundle/greenllm.json").read_bytes()
    return {(p / "greenllm.json").read_bytes(): name for p, name in ((old, "old"), (new, "new"))}[manifest]


def main(bundle, times):
    root = Path(tempfile.mkdtemp(prefix="interrupted-"))
    old, new = root / "old/model", root / "new/model"
    for path, size in ((old, 1 << 20), (new, 22 << 20)):
        shutil.copytree(bundle, path)
        (path / "more.bin").write_bytes(random.randbytes(size))  # noqa: S311
        artifact.relist(path, artifact.read(path).manifest)
    device = Sshd(root / "device")
    found = Counter()
    try:
        for each in range(-1, times):
            shutil.rmtree(device.home / "greenllm", ignore_errors=True)
            assert deploying(device, old).wait() == 0
            begin = time.monotonic()
            client = deploying(device, new)
            if each < 0:
                assert client.wait() == 0
                whole = time.monotonic() - begin
                print(f"uninterrupted: {whole:.1f} s")
                continue
            at = random.uniform(0.15, 1.0) * whole  # noqa: S311
            time.sleep(at)
            how = ("kill -9 of the client", "cut of the link")[each % 2]
            client.kill() if each % 2 == 0 else device.cut()
            said = client.communicate()[0].strip().splitlines()
            stage = next((x for x in reversed(said) if x.startswith("·")), "· before anything")
            while device.sessions() or device.running(str(device.home)):
                time.sleep(0.05)
            left = state(device, old, new)
            half = [p.stat().st_size for p in device.home.glob("greenllm/model/incoming/*/bundle/*")]
            again = deploying(device, new)
            assert again.wait() == 0, again.communicate()[0]
            after = state(device, old, new)
            found[left, after] += 1
            print(f"{each + 1:2}: {how} after {at:4.1f} s, {stage[2:]}: {sum(half) / 1e6:5.1f} MB had come, "
                  f"current was the {left} one; next try: the {after} one", flush=True)  # fmt: skip
        print(json.dumps({f"{a} then {b}": n for (a, b), n in found.items()}))
    finally:
        device.stop()
        shutil.rmtree(root)


main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20)
