"""False alarms and power of `po.check.calibration`, and the picture of its page: `python benchmarks/calibration.py`, a minute on two cores.

The model is a number seen three times; the method draws from its conjugate posterior, with faults planted. Each verdict is asked for with 100 keys.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.tree_util import Partial

import posterity as po

PICTURE = Path(__file__).parent.parent / "docs" / "results" / "calibration.png"
KEYS, SIMULATIONS = 100, (50, 200)


@po.program
def number(ys):
    x = po.sample("x", dist.Normal(0.0, 1.0))
    po.observe("ys", dist.Normal(x, 1.0), ys)
    return x


def draws_of(values):
    n, none = len(values), jnp.zeros(0)
    return po.Posterior(values, jnp.full(n, -jnp.log(n)), jnp.zeros(()), jnp.arange(n), jnp.array(0), jnp.array(0), none, none.astype(bool), None)


def posterior_with(shift, scale):
    """N(sum / 4, 1 / 4), moved by `shift` of its deviations, its deviation times `scale`."""
    return Partial(conjugate, jnp.asarray(shift), jnp.asarray(scale))


def conjugate(shift, scale, key, data):
    return draws_of(data["ys"].sum() / 4 + 0.5 * (shift + scale * jax.random.normal(key, (2_000,))))


def prior(key, data):
    return draws_of(jax.random.normal(key, (2_000,)))


METHODS = {
    "exact": posterior_with(0.0, 1.0),
    "sd x 0.9": posterior_with(0.0, 0.9),
    "sd x 0.5": posterior_with(0.0, 0.5),
    "sd x 2": posterior_with(0.0, 2.0),
    "mean + 0.25 sd": posterior_with(0.25, 1.0),
    "mean + 0.5 sd": posterior_with(0.5, 1.0),
    "prior": prior,
}


def calibrated(method, seed, simulations, **options):
    return po.check.calibration(number(jnp.zeros(3)), method, key=jax.random.key(seed), simulations=simulations, bind=given, **options)


def given(data):
    return data


def filtered(key, program):
    return po.smc(key, program, n=1_000)


def narrow(key, program):
    posterior = po.smc(key, program, n=1_000)
    mean = posterior.expect()
    return po.query(posterior, lambda x: mean + 0.5 * (x - mean))


@po.program
def walk(ys):
    x = po.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.observe("y", dist.Normal(x, 0.5), y)
        return x

    return po.scan(step, x, ys)


def picture() -> None:
    """An honest filter above, one that is half as wide as it should be below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    for part, method in zip(figure.subfigures(2, 1), (filtered, narrow), strict=True):
        po.check.calibration(walk(jnp.zeros(4)), method, key=jax.random.key(0)).plot(part)
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    print("share of verdicts that refuse, at level 0.99\n\n| method | " + " | ".join(f"{n} simulations" for n in SIMULATIONS) + " |")
    print("|---|" + "---|" * len(SIMULATIONS))
    for name, method in METHODS.items():
        shares = [sum(not calibrated(method, seed, n) for seed in range(KEYS)) / KEYS for n in SIMULATIONS]
        print(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |", flush=True)
    picture()
    print(f"\nwrote {PICTURE.name}")


if __name__ == "__main__":
    main()
