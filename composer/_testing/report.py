"""What a contract found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One contract on one primitive ("loss/ce"); `message` says what broke, and is empty where it held."""

    primitive: str
    contract: str
    ok: bool
    message: str = ""


class Broken(Exception):
    """A contract does not hold; the message says how."""


class ContractError(AssertionError):
    """Contracts that a primitive breaks."""

    def __init__(self, failures: list[Result]):
        self.failures = failures
        super().__init__("\n".join(f"{r.primitive} breaks the contract '{r.contract}': {r.message}" for r in failures))


def need(condition: object, message: str) -> None:
    if not condition:
        raise Broken(message)
