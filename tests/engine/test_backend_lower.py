"""What the compiler is given and gives: kernels of a graph in few libraries, twice from one cache, and the plain way where that fails."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from composer.engine import backend_lower
from composer.engine.backend_lower import Kernels, compiled, text
from composer.engine.backend_program import Program

KERNEL = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C"  void  kernel(const float* in_ptr0, int64_t ks0)\n{\n    other_kernel(in_ptr0);\n}\n'


def test_kernels_of_a_file_have_names_of_their_own():
    made = text([(["const float*", "int64_t"], KERNEL), (["const float*", "int64_t"], KERNEL)])
    assert [made.count(f"void  kernel_{k}(const float*") for k in range(3)] == [1, 1, 0] and made.count("other_kernel(in_ptr0)") == 2
    assert "kernel_1(_given<const float*>(args[0]), _given<int64_t>(args[1]))" in made and made.count("PyInit_kernel(") == 1


@pytest.mark.parametrize("source", ["int main() {}", KERNEL + KERNEL])
def test_a_source_without_its_one_entry_is_an_error(source):
    with pytest.raises(ValueError, match="entries"):
        text([((), source)])


def test_kernels_are_built_when_the_first_is_asked_for_and_each_once(monkeypatch):
    built: list[list[str]] = []
    monkeypatch.setattr(backend_lower, "build", lambda kernels: built.append([source for _, source in kernels]) or [source.upper for _, source in kernels])
    kernels = Kernels()
    a, b = kernels.promised((), "a"), kernels.promised((), "b")
    assert not built and b.result()() == "B" and a.result()() == "A" and built == [["a", "b"]]
    c = kernels.promised((), "c")
    assert c.result()() == "C" and a.result()() == "A" and built == [["a", "b"], ["c"]]


def test_a_failure_leaves_the_compiler_as_it_was_and_asks_it_plainly(monkeypatch):
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    before = AsyncCompile.cpp_pybinding, config.cpp.vec_isa_ok, config.cpp_cache_precompile_headers
    seen: list[bool] = []

    def lowered(graph, examples):
        seen.append(AsyncCompile.cpp_pybinding is before[0])
        if len(seen) == 1:
            raise RuntimeError("no such compiler")
        return "made"

    monkeypatch.setattr(backend_lower, "_lowered", lowered)
    assert compiled(None, [torch.ones(1)]) == "made" and seen == [False, True]
    assert (AsyncCompile.cpp_pybinding, config.cpp.vec_isa_ok, config.cpp_cache_precompile_headers) == before


# -- the compiler itself ---------------------------------------------------------------------------------------------------------------------


def sums(x: Tensor, y: Tensor) -> list[Tensor]:
    """Float, integer and boolean pointers; reductions between what is fused, so that there are several kernels."""
    made = [(x @ x.T + k).softmax(k % 2).cumsum(0) @ x for k in range(4)]
    return [*made, F.cross_entropy(x, y), (y * 2).clamp(max=5), x > 0, x.double().sum(1).sqrt()]


@pytest.fixture
def libraries(monkeypatch, tmp_path) -> list[int]:
    """Numbers of kernels in each library that is asked for, from an empty cache."""
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counters.clear()
    made: list[int] = []
    plain = backend_lower.text
    monkeypatch.setattr(backend_lower, "text", lambda kernels: made.append(len(kernels)) or plain(kernels))
    return made


@pytest.mark.slow
def test_a_compiled_program_is_the_function_from_few_libraries_and_the_next_process_reads_it(libraries):
    from torch._dynamo.utils import counters
    from torch._inductor.codecache import PyCodeCache

    x, y = torch.rand(9, 9) + 0.1, torch.arange(9)
    for sitting in range(2):
        PyCodeCache.cache_clear()
        found = Program(sums, compiled)([x, y])
        for a, b in zip(found, sums(x, y), strict=True):
            torch.testing.assert_close(a, b)
        assert counters["aot_autograd"]["autograd_cache_hit"] == sitting, "what was compiled once lies on disk"
    assert len(libraries) <= 4 and sum(libraries) >= 8


@pytest.mark.slow
def test_the_plain_way_compiles_the_same(libraries, monkeypatch):
    def refuses(self, argtypes, source):
        raise ValueError("another version of the compiler")

    monkeypatch.setattr(Kernels, "promised", refuses)
    x, y = torch.rand(9, 9) + 0.1, torch.arange(9)
    for a, b in zip(Program(sums, compiled)([x, y]), sums(x, y), strict=True):
        torch.testing.assert_close(a, b)
    assert not libraries
