"""A graph lowered by torch.compile's compiler, on a CPU with its C++ kernels in few libraries.

Left to itself the compiler hands every kernel to g++ as a file of its own, so that the same headers are read again for each, precompiles these headers,
and builds a library for each kind of vector instruction to see whether it loads. For a residual network that is three quarters of the time. Here the
kernels of a graph share a few files, and what the processor says of itself is believed. What comes out is the same machine code. Where this way fails
(it touches the compiler's inside, which other versions may have otherwise) the compiler is asked in its own way.

What was lowered once lies in the compiler's cache on disk, graphs and libraries: a later process that needs the same reads it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx

KERNELS_A_FILE = 6              # at least, before a second file is worth its headers
ENTRY = re.compile(r'(extern\s+"C"[^(){};]*?\bvoid\s+)kernel(?=\s*\()')
HEAD = """
#include <torch/csrc/inductor/cpp_prefix.h>
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <cstdlib>
#include <stdexcept>
static void* (*_data_ptr)(PyObject*);
template <typename T> static inline T _given(PyObject* arg) {
    if constexpr (std::is_pointer_v<T>) return static_cast<T>(_data_ptr(arg));
    else if constexpr (std::is_floating_point_v<T>) return static_cast<T>(PyFloat_AsDouble(arg));
    else return static_cast<T>(PyLong_AsLongLong(arg));
}
"""
CALL = """
static PyObject* _call_%(k)d(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n != %(n)d) { PyErr_SetString(PyExc_TypeError, "kernel_%(k)d takes %(n)d arguments"); return nullptr; }
    try { kernel_%(k)d(%(given)s); }
    catch (std::exception const& e) { PyErr_SetString(PyExc_RuntimeError, e.what()); return nullptr; }
    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
}
"""
TAIL = """
static PyMethodDef _methods[] = {%s {NULL, NULL, 0, NULL}};
static struct PyModuleDef _module = {PyModuleDef_HEAD_INIT, "kernel", NULL, -1, _methods};
PyMODINIT_FUNC PyInit_kernel(void) {
    const char* address = std::getenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR");
    _data_ptr = address ? reinterpret_cast<decltype(_data_ptr)>(std::strtoull(address, nullptr, 10)) : nullptr;
    if (!_data_ptr) { PyErr_SetString(PyExc_RuntimeError, "nobody says where a tensor's data lie"); return nullptr; }
    return PyModule_Create(&_module);
}
"""
Kernel = tuple[Sequence[str], str]              # types of its arguments, its source
_one_at_a_time = threading.RLock()


def compiled(graph: fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    """The graph as one compiled function. It is a trace already, of fixed shapes: nothing is guarded, nothing compiled again."""
    if any(t.device.type != "cpu" for t in examples):
        return _lowered(graph, examples)
    try:
        with _few_libraries():
            return _lowered(graph, examples)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 (whatever went wrong, the plain way is asked next, and its error counts)
        from torch._inductor.cpu_vec_isa import valid_vec_isa_list

        valid_vec_isa_list.cache_clear()
        return _lowered(graph, examples)


def _lowered(graph: fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    import torch._inductor

    return torch._inductor.standalone_compile(graph, examples, dynamic_shapes="from_example_inputs")


@contextmanager
def _few_libraries() -> Iterator[None]:
    """Within, kernels of a graph are compiled together when the first of them is asked for."""
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    kept, kernels = AsyncCompile.cpp_pybinding, Kernels()
    settings = {"compile_threads": max(2, config.compile_threads or 0), "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}
    with _one_at_a_time, config.patch(settings):
        AsyncCompile.cpp_pybinding = lambda self, argtypes, source: kernels.promised(argtypes, source)  # type: ignore[method-assign]
        try:
            yield
        finally:
            AsyncCompile.cpp_pybinding = kept  # type: ignore[method-assign]


class Kernels:
    """Kernels that are wanted, and as functions once one of them is asked for."""

    def __init__(self) -> None:
        self.wanted: list[Kernel] = []
        self.made: list[Callable[..., None]] = []

    def promised(self, argtypes: Sequence[str], source: str) -> Any:
        from torch._inductor.codecache import LambdaFuture

        self.wanted.append((argtypes, source))
        place = len(self.wanted) - 1
        return LambdaFuture(lambda: self._ready()[place])

    def _ready(self) -> list[Callable[..., None]]:
        if left := self.wanted[len(self.made):]:
            self.made += build(left)
        return self.made


def build(kernels: Sequence[Kernel]) -> list[Callable[..., None]]:
    """The kernels as functions of tensors, from at most as many libraries as compilers may run at a time."""
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    files = min(config.compile_threads or 1, ceil(len(kernels) / KERNELS_A_FILE))
    order = sorted(range(len(kernels)), key=lambda k: -len(kernels[k][1]))          # long ones first, so that files come out about equal
    loads = [CppPythonBindingsCodeCache.load_async(text([kernels[k] for k in order[f::files]]), submit_fn=AsyncCompile.submit) for f in range(files)]
    modules = [load() for load in loads]
    made = {k: getattr(modules[place % files], f"kernel_{place // files}") for place, k in enumerate(order)}
    return [made[k] for k in range(len(kernels))]


def text(kernels: Sequence[Kernel]) -> str:
    """One C++ file: the kernels under names of their own, and a module that calls them. Errors: ValueError, a source without its one entry."""
    pieces, methods = [HEAD], []
    for k, (argtypes, source) in enumerate(kernels):
        named, found = ENTRY.subn(rf"\1kernel_{k}", source)
        if found != 1:
            raise ValueError(f"a kernel with {found} entries")
        given = ", ".join(f"_given<{kind}>(args[{place}])" for place, kind in enumerate(argtypes))
        pieces += [named, CALL % {"k": k, "n": len(argtypes), "given": given}]
        methods.append(f'{{"kernel_{k}", (PyCFunction)(void(*)(void))_call_{k}, METH_FASTCALL, ""}},')
    return "\n".join([*pieces, TAIL % " ".join(methods)])
