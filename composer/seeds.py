"""One hash behind every random number: (seed, path, step) -> the seed of a generator. No torch."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, path: str, step: int | str = 0) -> int:
    """63 bits from the hash of (seed, path, step)."""
    text = f"{seed}\0{path}\0{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
