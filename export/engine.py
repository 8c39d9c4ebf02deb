"""Build a TensorRT engine: run as ``-m`` in a process of its own, whose memory and prints stay there.

One path for the library ``tensorrt``, which builds for the GPU that is here, and ``tensorrt_rtx``, which builds for a
named compute capability and needs no GPU. Both take the types from the graph.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

LIBRARIES = ("tensorrt", "tensorrt_rtx")


def build(library: str, request: dict[str, Any]) -> dict[str, Any]:
    """Parse a graph and, where an engine is wanted, build it.

    Args:
        library: "tensorrt" or "tensorrt_rtx".
        request: "graph"; "engine", a file to write, or None to parse alone; "sm", the compute capability as 89;
            "profiles", a list of shapes by input; "timing", a file to keep timings in.

    Returns:
        "refused": nodes that the parser does not take, with reasons; or "error"; or "seconds", "peak_bytes" and
        "bytes" of the engine.
    """
    trt = importlib.import_module(library)
    log = _logger(trt)
    builder = trt.Builder(log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    start = time.monotonic()
    if not parser.parse_from_file(request["graph"]):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        return {"refused": [[e.node_name(), e.node_operator(), e.desc()] for e in errors]}
    if request["engine"] is None:
        return {"seconds": round(time.monotonic() - start, 2)}
    config = builder.create_builder_config()
    if library == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{request['sm']}"), 0)
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    timing = Path(request["timing"]) if library == "tensorrt" else None  # tensorrt_rtx times on the device
    if timing:
        config.set_timing_cache(config.create_timing_cache(timing.read_bytes() if timing.exists() else b""), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"error": log.last or "no reason given"}
    with Path(request["engine"]).open("wb") as file:
        file.write(engine)
    if timing:
        timing.write_bytes(config.get_timing_cache().serialize())
    return {
        "seconds": round(time.monotonic() - start, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes": engine.nbytes,
    }


def _logger(trt: Any) -> Any:
    """A logger that keeps the last error and prints nothing."""

    class Log(trt.ILogger):
        last = ""

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = text

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

    return Log()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(build(sys.argv[1], json.loads(sys.argv[2]))) + "\n")
