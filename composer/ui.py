"""`composer ui`: deliver what waits, then become MLflow's own server on the store."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from composer.errors import ComposerError
from composer.track import artifact_root, deliver, store_uri
from composer.track_names import bare

OPEN = """
import socket, sys, time, webbrowser
for _ in range(240):
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
    except OSError:
        time.sleep(0.5)
    else:
        webbrowser.open(sys.argv[3])
        break
"""


def ui(out: Path | str = "runs", port: int = 5000, host: str = "127.0.0.1", open_browser: bool = False) -> None:
    """Serve the store's MLflow page until interrupted; the process becomes the server.

    With MLFLOW_TRACKING_URI naming a server, that one has the page: its address is printed (and opened) and nothing is started.
    Errors: ComposerError where mlflow is missing, the store is not there, the port is taken or not ours to take.
    """
    out = Path(out)
    uri = store_uri(out)
    if importlib.util.find_spec("mlflow") is None:
        raise ComposerError("mlflow is not installed", fix="pip install 'mlflow>=3.13,<4'")
    if uri.startswith("http"):
        return _elsewhere(out, uri, open_browser)
    if not out.is_dir():
        raise ComposerError(f"there is no store at {out}", fix="run something first (composer run mart_ours), or name its folder with --out")
    check_port(host, port)
    for sentence in deliver(out):
        print(sentence, file=sys.stderr)
    shown = f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '::') else host}:{port}"
    print(f"MLflow's page of {out}: {shown}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if open_browser:
        _open_when_up(host, port, shown)
    os.execve(sys.executable, command(out, uri, port, host), environment(os.environ))


def command(out: Path, uri: str, port: int, host: str) -> list[str]:
    """The server's command line: every address absolute, so that the working folder plays no part."""
    root = artifact_root(out, uri) or (Path(os.path.abspath(out)) / "artifacts").as_uri()
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--default-artifact-root", root, "--artifacts-destination", root,
            "--host", host, "--port", str(port), "--workers", "1"]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: telemetry off, and none of the limits that keep a training process from waiting."""
    ours = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_LOGGING_LEVEL", "MLFLOW_TRACKING_URI")
    return {name: value for name, value in given.items() if name not in ours} | {"MLFLOW_DISABLE_TELEMETRY": "true"}


def check_port(host: str, port: int) -> None:
    """Errors: ComposerError where nothing can listen there."""
    if not 0 < port < 65536:
        raise ComposerError(f"port {port} is none", fix="choose one from 1024 to 65535 with --port")
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ComposerError(f"port {port} on {host} cannot be used: {error.strerror}",
                            fix=f"composer ui --port {port + 1 if port < 65535 else 5000}, or end what listens there") from None


def _elsewhere(out: Path, uri: str, open_browser: bool) -> None:
    for sentence in deliver(out) if out.is_dir() else ():
        print(sentence, file=sys.stderr)
    print(f"MLflow's page is {bare(uri)} (MLFLOW_TRACKING_URI).", file=sys.stderr)
    if open_browser:
        import webbrowser

        webbrowser.open(bare(uri))


def _open_when_up(host: str, port: int, shown: str) -> None:
    """A process of its own waits for the server: this one becomes it."""
    at = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    subprocess.Popen([sys.executable, "-c", OPEN, at, str(port), shown], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     stderr=subprocess.DEVNULL, start_new_session=True)
