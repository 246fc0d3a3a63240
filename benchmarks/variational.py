"""What learned parts save: relative variance of the evidence at equal particles, and seconds a run, without and with what was learned.

Ways that are compared alternate, and medians are told, with the machine's load.
"""

import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

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


def place(value):
    return value["text"].generated, value["count"], value["at a"].astype(int)


def table(parameters, at):
    return parameters[at]


def towards(parameters, x, y):
    return dist.Normal(x + parameters["gain"] * (y - x), jnp.exp(parameters["log_scale"]))


def main():
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, JAX {jax.__version__}")
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
