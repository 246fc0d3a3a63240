"""Tests are thousands of small programs, each run a few times: their cost is compilation, which is kept quick, and kept."""

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

MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory_maps():
    """Compiled code is never unloaded by itself, and Linux gives a process 65,530 maps: at the next, serialising an executable would crash it."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > 20_000:
        import jax

        jax.clear_caches()
