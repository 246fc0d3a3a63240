"""Where and when a measurement was made."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import jax

from posterity.cli import running


def machine(seconds: float) -> dict[str, Any]:
    """Where and when, and how long drawing and judging took in this run (0 where all of it was there)."""
    named = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in (named.read_text().splitlines() if named.is_file() else []) if line.startswith("model name")]
    device = jax.devices()[0]
    return {
        "machine": {"processor": models[0] if models else platform.processor() or platform.machine(), "cores": os.cpu_count(), "device": device.device_kind},
        "versions": running.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }
