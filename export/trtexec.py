"""The script that builds an engine on the device, where nothing else can: TensorRT's own ``trtexec``, exactly."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from greenllm.export.profiles import Profile
from greenllm.export.targets import Target

SCRIPT = "build.sh"
_TEXT = """#!/bin/sh
# Builds model.engine on {what}.
set -eu
cd "$(dirname "$0")"
trtexec=${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}
[ -x "$trtexec" ] || {{ echo "No trtexec at $trtexec: install TensorRT, or set TRTEXEC." >&2; exit 1; }}
found=$(dpkg-query -W -f='${{Version}}' tensorrt 2>/dev/null || echo unknown)
{check}"$trtexec" \\
  {options}
rm -f engine.json  # of an engine that is replaced now
mv model.engine.part model.engine
stamp='{{"compute_capability": "%s", "library": "tensorrt", "version": "%s"}}\\n'
printf "$stamp" {capability} "$found" > engine.json.part
mv engine.json.part engine.json
"""
# Only where the target says which version it has.
_CHECK = """wanted={wanted}
case "$found" in
  "$wanted"*) ;;
  *) [ "${{ANY_TENSORRT:-}}" = 1 ] || {{
       echo "Here is TensorRT $found; this was made for $wanted. Set ANY_TENSORRT=1 to try it." >&2; exit 1; }} ;;
esac
"""


def arguments(profiles: Sequence[Profile]) -> list[str]:
    """All of the command line but the program."""
    found = [
        "--onnx=model.onnx", "--saveEngine=model.engine.part", "--stronglyTyped", "--skipInference",
        "--timingCacheFile=timing.cache",
    ]  # fmt: skip
    for i, profile in enumerate(profiles):
        found.append(f"--profile={i}")
        for at, option in enumerate(("minShapes", "optShapes", "maxShapes")):
            shapes = (f"{name}:{'x'.join(map(str, dims[at]))}" for name, dims in profile.shapes.items())
            found.append(f"--{option}={','.join(shapes)}")
    return found


def write_script(directory: Path, target: Target, profiles: Sequence[Profile]) -> None:
    """Write ``build.sh`` beside the graph; it stamps what it built with the device's version of TensorRT."""
    what = f"{target.name} (compute capability {target.compute_capability})"
    what += f", JetPack {target.jetpack}" if target.jetpack else ""
    what += f", TensorRT {target.tensorrt}" if target.tensorrt else ""
    check = _CHECK.format(wanted=shlex.quote(target.tensorrt)) if target.tensorrt else ""
    text = _TEXT.format(
        what=what.replace("\n", " "), check=check, capability=shlex.quote(target.compute_capability or ""),
        options=" \\\n  ".join(shlex.quote(a) for a in arguments(profiles)),
    )  # fmt: skip
    script = directory / SCRIPT
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
