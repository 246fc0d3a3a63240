"""What learned parts save: relative variance of the evidence at equal particles, and seconds a run, without and with what was learned.

Ways that are compared alternate, and medians are told, with the machine's load. Before that, where particles come to by coin betting, which has no step
size, and by steps of a size that is tuned on the answer: of seven sizes the one whose mean and spread come nearest to the target's.
"""

import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

import posterity as po

RUNS = 200


@po.program
def lettered(lm, prompt, a, length, wanted):
    def step(carry, _):
        text, count = carry
        token = po.sample("token", text.next())
        return text.push(token), count + (token == a)

    text, count = po.scan(step, (lm.start(prompt), 0), length=length)
    po.factor("wanted", jnp.where(count == wanted, 0.0, -jnp.inf))
    return {"text": text, "count": count, "at a": text.last == a}


@po.program
def walk(ys):
    def step(x, y):
        x = po.sample("x", dist.Normal(x, 1.0))
        po.observe("y", dist.Normal(x, 0.1), y)
        return x

    return po.scan(step, 0.0, ys)


def compare(title, programs, n, runs=RUNS):
    """Prints relative variance over runs, and seconds of one run, of each program."""
    found, taken = {name: [] for name in programs}, {name: [] for name in programs}
    run = jax.jit(lambda key, program: jnp.exp(po.smc(key, program, n=n).log_evidence))
    for program in programs.values():
        run(jax.random.key(0), program).block_until_ready()
    for i in range(runs):
        for name, program in programs.items():
            start = time.perf_counter()
            found[name].append(float(run(jax.random.key(i), program)))
            taken[name].append(time.perf_counter() - start)
    print(f"{title}, {n} particles, {runs} runs")
    for name in programs:
        z = np.array(found[name])
        print(f"  {name:<28} evidence {z.mean():.4g}, relative variance {z.var() / z.mean() ** 2:.3g}, {1e3 * np.median(taken[name]):.3g} ms a run")


@po.program
def bell(location, scale):
    """A normal law whose particles start from the standard one."""
    x = po.sample("x", dist.Normal(0.0, 1.0))
    po.factor("target", dist.Normal(location, scale).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x))
    return x


@po.program
def plane(location, covariance):
    x = po.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    po.factor("target", dist.MultivariateNormal(location, covariance).log_prob(x) - jnp.sum(dist.Normal(0.0, 1.0).log_prob(x)))
    return x


def moments(found):
    """Mean, and covariance matrix [d, d]."""
    x = np.asarray(found.values, float).reshape(len(found.values), -1)
    return x.mean(axis=0), np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1])


def particles(title, program, mean, covariance, n, steps=2_000):
    """Prints where n particles come to by each optimiser, and how far from the target's mean and spread, in its standard deviations."""
    key, mean, covariance = jax.random.key(0), np.atleast_1d(mean), np.atleast_2d(covariance)

    def off(found):
        at, spread = moments(found)
        scale = np.sqrt(np.diag(covariance))
        error = max(np.abs(at - mean).max() / scale.max(), np.abs(spread - covariance).max() / scale.max() ** 2)
        return error if np.isfinite(error) else np.inf

    def tried(optimizer):
        try:
            return po.svgd(key, program, n=n, steps=steps, optimizer=optimizer)
        except ValueError:  # particles that ran away
            return None

    print(f"{title}: {n} particles, {steps} steps")
    rows = {"SVGD, coins": po.svgd(key, program, n=n, steps=steps), "KSDD, coins": po.ksdd(key, program, n=n, steps=steps)}
    box = (tuple(mean - 5 * np.sqrt(np.diag(covariance))), tuple(mean + 5 * np.sqrt(np.diag(covariance))))
    rows["LAWGD, coins"] = po.lawgd(key, program, box=box, n=n, steps=steps)
    for name, make in {"gradient steps": optax.sgd, "Adam": optax.adam}.items():
        found = {size: tried(make(size)) for size in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)}
        errors = {size: np.inf if x is None else off(x) for size, x in found.items()}
        best = min(errors, key=lambda size: errors[size])
        rows[f"SVGD, {name} of {best:g} (tuned)"] = found[best]
        for size in (best / 10, best * 10):
            rows[f"SVGD, {name} of {size:g}"] = tried(make(size))
    for name, found in rows.items():
        if found is None:
            print(f"  {name:<40} ran away")
        else:
            at, spread = moments(found)
            print(f"  {name:<40} mean {np.round(at, 4)}, covariance {np.round(spread, 3).tolist()}")


def place(value):
    return value["text"].generated, value["count"], value["at a"].astype(int)


def table(parameters, at):
    return parameters[at]


def towards(parameters, x, y):
    return dist.Normal(x + parameters["gain"] * (y - x), jnp.exp(parameters["log_scale"]))


def main():
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, JAX {jax.__version__}")
    particles("N(2, 1)", bell(2.0, 1.0), 2.0, 1.0, 50)
    particles("N(10, 9)", bell(10.0, 3.0), 10.0, 9.0, 50)
    tilted = np.array([[1.0, 0.8], [0.8, 1.0]])
    particles("N((1, -1), variances 1, covariance 0.8)", plane(jnp.array([1.0, -1.0]), jnp.asarray(tilted)), np.array([1.0, -1.0]), tilted, 100)
    lm = po.tabular.ngram("abbaabbbabbbabbabbbaabbbabbabbababbabbbabbabbab", order=2)
    program = lettered(lm, lm.prompt("b"), lm.tokenizer.encode("a")[-1], 10, 7)
    learned = po.learn.twist(jax.random.key(0), program, place, table, jnp.zeros((11, 11, 2)), n=4_096)
    compare("seven of ten letters", {"bootstrap": program, "learned twist": po.twist(program, learned.log_psi)}, 64)
    data, start = walk(jnp.array([1.0, 3.0, 2.0, -1.0, 0.0])), {"gain": 0.0, "log_scale": 0.0}
    dreamt = po.learn.proposals(jax.random.key(0), data, {"x": towards}, start)
    raised = po.learn.filtering(jax.random.key(0), data, {"x": towards}, start)
    ways = {"bootstrap": data, "proposal, from dreams": po.propose(data, dreamt.proposals), "proposal, variational SMC": po.propose(data, raised.proposals)}
    compare("a walk seen sharply", ways, 64)


if __name__ == "__main__":
    main()
