"""Whether Ray is still there: a launch whose raylet or head has died gets no answer any more, so it must end, and blame no task for it."""

from __future__ import annotations

import socket
import time
from typing import Any

EVERY = 5.0                     # seconds between two looks
SERVERS = {"raylet": "its raylet on this machine", "gcs_server": "its head"}


class Pulse:
    """`Pulse(ray).why()`: what of Ray has died, "" while it lives. It is asked often and looks seldom, unless `now`."""

    def __init__(self, ray: Any):
        self.ray, self._looked, self._missed = ray, time.monotonic(), 0
        context = ray.get_runtime_context()
        self.address, self.node = str(context.gcs_address or ""), context.get_node_id()

    def why(self, now: bool = False) -> str:
        at = time.monotonic()
        if not now and at - self._looked < EVERY:
            return ""
        self._looked = at
        return self._own() or self._head() or self._node()

    def _own(self) -> str:
        """Servers that this process has started itself."""
        holder = getattr(getattr(self.ray, "_private", None), "worker", None)
        node = getattr(holder, "_global_node", None)
        dead = [SERVERS[name] for name, _ in node.dead_processes() if name in SERVERS] if hasattr(node, "dead_processes") else []
        return f"{' and '.join(dead)} was ended from outside" if dead else ""

    def _head(self) -> str:
        """Ray itself would wait a minute for its head and then end this process. One missed connection is no death."""
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdigit():
            return ""
        try:
            socket.create_connection((host.strip("[]"), int(port)), 3).close()
            self._missed = 0
        except OSError as error:
            self._missed += 1
            return f"nothing answers at {self.address} ({error})" if self._missed > 1 else ""
        return ""

    def _node(self) -> str:
        if self._missed:
            return ""
        here = next((node for node in self.ray.nodes() if node.get("NodeID") == self.node), None)
        return "this machine is no part of its cluster any more" if here is not None and not here.get("Alive") else ""
