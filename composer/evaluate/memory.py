"""Batches that fit the memory: one that does not is halved and tried again, until single images are too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from composer.errors import ComposerError

Answer = TypeVar("Answer")
SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cudnn_status_alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out: PyTorch's own type, Python's, or the words of an allocator."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or isinstance(error, RuntimeError) and any(s in str(error).lower() for s in SIGNS)


class Fit:
    """The number of images taken at once. `refused` lists the sizes that did not fit, for the record."""

    def __init__(self, size: int, refused: list[int] | None = None):
        self.size, self.refused = size, refused if refused is not None else []

    def __call__(self, work: Callable[[int], Answer]) -> Answer:
        """work(size), and where memory runs out again with half the size.

        Errors: ComposerError where a single image does not fit.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                told = str(error)
            # Outside the handler: the error's frames, which hold the batch's tensors, are gone.
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.refused.append(self.size)
            if self.size <= 1:
                raise ComposerError("a single image does not fit the memory", why=told.splitlines()[0] if told else "memory ran out",
                                    fix="a smaller model, or a device with more memory")
            self.size = self.size // 2

    def slices(self, total: int, work: Callable[[int, int], Answer]) -> list[Answer]:
        """work(begin, end) over range(total) in slices that fit; the answers in order."""
        answers: list[Answer] = []
        done = 0
        while done < total:
            at = done

            def one(size: int, at: int = at) -> tuple[int, Answer]:
                end = min(at + size, total)
                return end, work(at, end)

            done, answer = self(one)
            answers.append(answer)
        return answers
