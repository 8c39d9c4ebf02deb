"""A model over HTTP, as OpenAI's API: loopback by default, one answer at a time, the others in a bounded queue."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from pathlib import Path

import uvicorn

from greenllm import captions, classify, generate, match, transcribe
from greenllm.embed import Embedder
from greenllm.errors import GreenError
from greenllm.serve.app import Served, make_app
from greenllm.serve.guard import Guard

__all__ = ["serve"]

_GRACE = 3  # seconds that answers have left after Ctrl-C
_CONNECTIONS = 256


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    waiting: int = 16,
    threads: int | None = None,
) -> None:
    """Serve until it is interrupted.

    Args:
        model: an artifact or a directory.
        host: address to listen at.
        port: 0 takes a free one.
        key_file: a file with the key that clients send as ``Authorization: Bearer``; None asks for none.
        waiting: requests that may wait.
        threads: CPU threads; None leaves it to the runtime.

    Raises:
        GreenError: no such model, one that is not served, an address that is taken, or a key file without a key.
    """
    key = read_key(key_file) if key_file else None
    with contextlib.closing(listen(host, port)) as listener:
        served = open_model(model, threads)
        port = listener.getsockname()[1]
        local = is_loopback(host)
        app = Guard(
            make_app(served, waiting), key=key, hosts={host, "localhost", "127.0.0.1", "::1"} if local else None
        )
        _announce(served, host, port, local=local, key=bool(key))
        config = uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", log_level="warning", access_log=False, proxy_headers=False,
            server_header=False, timeout_graceful_shutdown=_GRACE, limit_concurrency=_CONNECTIONS,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])


def open_model(model: str | Path, threads: int | None) -> Served:
    """Load what is to be served; its name is that of the directory that was given.

    Raises:
        GreenError: see :func:`greenllm.generate.load`; or plain ONNX, which cannot sample.
    """
    directory = generate.find(model)
    name = Path(model).expanduser().absolute().name
    if generate.is_encoder(directory):
        return Served(name, embedder=Embedder(directory, threads=threads))
    told = (
        transcribe.hears,
        captions.sees,
        match.matches,
        classify.decides,
    )  # what they do is told when they are opened
    if not (generate.is_genai(directory) or any(is_one(directory) for is_one in told)):
        raise GreenError(f"{model} is plain ONNX; text is served by ORT-GenAI.", "Export it with --to genai.")
    return Served(name, model=generate.open_found(directory, threads=threads, keep=True))


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, before anything is loaded.

    Raises:
        GreenError: no such address here, or it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as e:
        reason = e.strerror or str(e)
        raise GreenError(f"Cannot listen at {host}, port {port}: {reason}.", "Choose another --port or --host.") from e


def read_key(file: Path) -> bytes:
    """The key in a file, without the blanks around it.

    Raises:
        GreenError: it cannot be read, is empty, or is not one line of printable ASCII.
    """
    try:
        key = file.expanduser().read_bytes().strip()
    except OSError as e:
        raise GreenError(f"{file}: the key cannot be read: {e.strerror}.") from e
    if not key or not all(0x21 <= b <= 0x7E for b in key):  # noqa: PLR2004 - printable ASCII
        raise GreenError(
            f"{file} holds no key: one line of printable ASCII without blanks is needed.",
            "Make one: openssl rand -hex 32 > FILE",
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _announce(served: Served, host: str, port: int, *, local: bool, key: bool) -> None:
    shown = f"[{host}]" if ":" in host else host
    if not local and not key:
        sys.stderr.write(
            f"\n*** WARNING. {host} is reached from other machines, and there is NO AUTHENTICATION: whoever reaches\n"
            f"*** port {port} can use this model. Give a key with --api-key-file, or leave out --host.\n\n"
        )
    sys.stderr.write(f"{served.name} at http://{shown}:{port}/v1 ({served.what}). Ctrl-C stops it.\n")
    sys.stderr.flush()
