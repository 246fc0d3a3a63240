"""Tests are thousands of small programs, each run a few times: their cost is compilation, which is kept quick, and kept."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import signal

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells have it for what they start in the background; tests interrupt themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Set as environment, before JAX is imported, so that the processes which tests start share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Optimised code compiles at almost twice the CPU time. It is what the notebooks and the benchmarks run. Kernels emitted through MLIR
# take twice as long again; the compiler of JAX 0.12 does not let that be chosen here, and ends the process for a flag that it does not know.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)
# Nobody reads where in the source an operation of lowered code comes from.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Tracing makes millions of small objects that are all in use: looking through them for rubbish every 700 took an eighth of the time.
gc.set_threshold(50_000, 20, 50)

PROCESS = pathlib.Path("/proc/self")
MOST_MAPS, MOST_GROWTH = 20_000, 2**31
held_before = 0  # bytes, when the caches were cleared last


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Compiled code is never unloaded by itself. Linux gives a process 65,530 maps: at the next, serialising an executable would crash it."""
    global held_before
    yield
    if PROCESS.exists() and (len((PROCESS / "maps").read_bytes().splitlines()) > MOST_MAPS or _held() > held_before + MOST_GROWTH):
        import jax

        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(AttributeError):  # only glibc can be told to give back what is free
            ctypes.CDLL(None).malloc_trim(0)
        held_before = _held()


def _held() -> int:
    """Bytes of memory that are resident."""
    return int((PROCESS / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
