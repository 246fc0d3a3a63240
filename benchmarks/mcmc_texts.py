"""What a move of chains on texts costs with the cache that goes back, and without: tokens read and seconds.

    python benchmarks/mcmc_texts.py [--chains 32] [--moves 20] [--length 64]

Suffix moves on texts of Abacus that end when the model ends them, by chains in one batch. "rewound": the kept prefix is not read again. "from the start": the
same moves, whose tried texts are read from their prompt on. Seconds are those of alternating runs in one process, the shortest of each.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp

import posterity as po
from posterity.inference.mcmc.on_runs import suffix
from posterity.inference.mcmc.runs import kept
from posterity.inference.mcmc.sequences import roomy
from posterity.inference.mcmc.tries import are_tried, back, choose, log_positions, of_chain, on, place
from posterity.models.programs.generate import generate

PROMPT = "12*(3+4)-5*6="


def rewound(key, target, runs):
    """A suffix move, and the tokens that it read."""
    place_key, back_key, on_key, choose_key = jax.random.split(key, 4)
    position = place(place_key, runs, least=0)
    runs = back(back_key, target, runs, position, 1, begun=True)
    runs = on(on_key, target, runs, target.length, are_tried(runs, 1))
    tried, stayed = runs.steps[runs.chains :], jnp.maximum(position[runs.chains :] - 1, 0)
    tokens = jnp.sum(tried - stayed) + jnp.sum(stayed > 0)
    return choose(choose_key, target, runs, target.log_target(runs) - log_positions(runs), 1)[0], tokens


def reread(key, target, runs):
    """The same move, in which the tried text is read from its prompt on."""
    place_key, back_key, on_key, choose_key = jax.random.split(key, 4)
    position, own = place(place_key, runs, least=0), of_chain(runs, runs.choices)
    spare = are_tried(runs, 1)
    runs = back(back_key, target, runs, jnp.zeros_like(position), 1, begun=True)
    runs = on(on_key, target, runs, jnp.maximum(position - 1, 0), spare, own)
    runs = on(on_key, target, runs, target.length, spare)
    return choose(choose_key, target, runs, target.log_target(runs) - log_positions(runs), 1)[0], jnp.sum(runs.steps[runs.chains :])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("chains", 32), ("moves", 20), ("length", 64), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    target = kept(generate(po.load("abacus"), PROMPT, max_tokens=options.length), scored=True)

    @jax.jit
    def begun(key):
        runs, _ = target.init(key, options.chains)
        return roomy(target, suffix(), on(key, target, runs, target.length, jnp.ones(options.chains, bool)))

    @partial(jax.jit, static_argnums=0)
    def moved(move, runs, key):
        def once(runs, key):
            runs, tokens = move(key, target, runs)
            return runs, (tokens, jnp.mean(runs.steps[: options.chains]))

        return jax.lax.scan(once, runs, jax.random.split(key, options.moves))[1]

    start, seconds, counts = begun(jax.random.key(0)), {}, {}
    for repeat in range(options.repeats + 1):  # the first compiles
        for move in (rewound, reread):
            began = time.perf_counter()
            counts[move] = jax.block_until_ready(moved(move, start, jax.random.key(repeat)))
            if repeat:
                seconds.setdefault(move, []).append(time.perf_counter() - began)
    print(f"{options.chains} chains, {options.moves} moves, texts of {float(counts[rewound][1].mean()):.1f} tokens")
    for move, name in ((rewound, "rewound"), (reread, "from the start")):
        tokens = float(counts[move][0].sum()) / options.moves / options.chains
        print(f"{name:>15}: {tokens:6.2f} tokens a move and chain, {1e3 * min(seconds[move]) / options.moves:7.2f} ms a move")


if __name__ == "__main__":
    main()
