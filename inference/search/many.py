"""A strategy on many problems at once, in one compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PRNGKeyArray

from posterity.inference.budget import Stopwatch
from posterity.inference.drive import check_counts, check_key
from posterity.inference.search.result import Inferred, Selection


def many(
    key: PRNGKeyArray, strategy: Callable[..., Selection | Inferred], program_of: Callable[..., Any], prompts: Any, *arguments: Any, n: int, **options: Any
) -> Any:
    """`strategy(key, program_of(prompt, *arguments), n=n, **options)` for every prompt, all in one compiled program whose products they share.

    Args:
      key: a `jax.random.key`; each problem has a key of its own, by its number.
      strategy: one of `po.search`, or any function of the same signature that jit accepts.
      program_of: from a prompt to its program; the same function object again compiles nothing anew.
      prompts: a pytree with leading axis problems, such as `lm.prompts(texts)`.
      arguments: what programs share, a model and a reward, say: data, which compiled code does not hold.
      n, options: the strategy's, fixed in the compiled code.

    Returns:
      What the strategy gives, every leaf with leading axis problems: `jax.tree.map(lambda x: x[i], result)` is the i-th. Seconds in the ledgers are
      those of all problems together.

    >>> import jax, posterity as po
    >>> lm = po.tabular.ngram(["ab;ba;", "b;a;aa", "aab;b;b"], order=2)
    >>> program_of = lambda prompt, lm: po.reason(lm, prompt, delimiter=";", max_steps=2, max_step_tokens=3)
    >>> found = many(jax.random.key(0), po.search.self_consistency, program_of, lm.prompts(["a", "ab", "b"]), lm, n=4)
    >>> found.log_weights.shape
    (3, 4)
    """
    check_key(key)
    check_counts(n=(n, 1))
    with Stopwatch() as watch:
        found = jax.block_until_ready(_over(strategy, program_of, n, tuple(sorted(options.items())))(key, prompts, arguments))
    ledger = found.ledger
    seconds = {name: jnp.full(ledger.generated.shape, getattr(watch, name)) for name in ("wall", "device")}
    return found.replace(ledger=ledger.replace(**seconds))


@functools.lru_cache(maxsize=64)
def _over(strategy: Callable, program_of: Callable, n: int, options: tuple) -> Callable:
    @jax.jit
    def run(key: Array, prompts: Any, arguments: tuple) -> Any:
        problems = jax.tree.leaves(prompts)[0].shape[0]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(problems))
        return jax.vmap(lambda key, prompt: strategy(key, program_of(prompt, *arguments), n=n, **dict(options)))(keys, prompts)

    return run
