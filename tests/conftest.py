"""Compiled programs are kept in .cache/jax between runs, so that a second run of the tests compiles little."""

import os
import pathlib

# Set as environment, before JAX is imported, so that the processes which tests start share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
