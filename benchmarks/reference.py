"""How close methods come to eight posteriors that are known: `python benchmarks/reference.py`, some minutes on two cores.

Of each: the largest distance of a mean from the reference, in its standard deviations; the smallest and the largest ratio of standard deviations;
log evidence less that of quadrature, with its standard error over runs; and seconds of the processor, compilation included.
"""

import sys
import time

import jax
import numpy as np

from posterity.tests.fixtures.posteriors import METHODS, PROGRAMS, deviations, evidence, known


def main() -> None:
    names = sys.argv[1:] or list(PROGRAMS)
    print("| posterior | numbers | method | mean off by | sd ratio | log evidence off by | CPU seconds |\n|---|---|---|---|---|---|---|")
    for name in names:
        of = known(name)
        for method, run in METHODS.items():
            start = time.process_time()
            runs = run(jax.random.key(0), name)
            off, ratio = deviations(of, runs)
            seconds = time.process_time() - start
            told = ""
            if len(runs) > 1 and np.isfinite(float(runs[0].log_evidence)):
                log_evidence, error = evidence(runs)
                told = f"{log_evidence - of.log_evidence:+.3f} ± {error:.3f}"
            ratios = f"{ratio.min():.3f} to {ratio.max():.3f}"
            print(f"| {name} | {len(of.mean)} | {method} | {np.abs(off).max():.3f} | {ratios} | {told} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
