"""Posteriors as ArviZ knows them: an `xarray.DataTree`, for its plots and diagnostics (extra `arviz`)."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from posterity.inference.posterior import Posterior
from posterity.ppl.answer import Answer

if TYPE_CHECKING:
    import xarray  # pyright: ignore[reportMissingImports]


def to_arviz(runs: Posterior | Sequence[Posterior], *, draws: int | None = None, seed: int = 0) -> "xarray.DataTree":
    """One or several runs of an inference as a DataTree, one run a chain.

    Diagnostics that compare chains, such as R-hat, need several runs with other keys: the particles of one are not independent.

    Groups:
      posterior: equally weighted draws (with replacement, by weight), dimensions chain, draw and a variable's own. Names are those of the
        value's entries, joined by dots; `value` where it has none; texts are given by what they answer. Choices of the initial law stand beside them.
      sample_stats: the `particle` that each draw is, and `log_weight`, that particle's.
      particles: the particles as they are, dimensions chain and particle: the same variables, raw `log_weight` (normalised, nats) and `eve`.
      evidence: of each chain `log_evidence`, `log_evidence_error`, `ess`, `steps`.
      history: dimensions chain and step: `ess` and `resampled`, and `ancestors` (by particle) where they were kept; NaN for steps not made.

    Args:
      runs: posteriors of one program, all with as many particles.
      draws: of each chain; as many as there are particles by default.
      seed: of the draws.

    Raises:
      ImportError: without the extra.
      ValueError: for no runs, runs of different size, no draws, or where the evidence is zero.
    """
    try:
        import arviz_base  # pyright: ignore[reportMissingImports]
        import xarray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install 'posterity[arviz]'") from error
    chains = [runs] if isinstance(runs, Posterior) else list(runs)
    sizes = {len(chain) for chain in chains}
    if len(sizes) != 1 or (draws is not None and draws < 1):
        raise ValueError(f"to_arviz: there must be runs, all with as many particles, and draws at least 1; got sizes {sorted(sizes)} and draws={draws}")
    n = sizes.pop() if draws is None else draws
    keys = jax.random.split(jax.random.key(seed), len(chains))
    chosen = np.stack([_chosen(key, chain, n) for key, chain in zip(keys, chains, strict=True)])
    variables = _stacked([_variables(chain) for chain in chains])
    log_weight = np.stack([np.asarray(chain.log_weights, float) for chain in chains])
    take = lambda x: np.stack([of[which] for of, which in zip(x, chosen, strict=True)])  # noqa: E731
    tree = arviz_base.from_dict(
        {
            "posterior": {name: take(x) for name, x in variables.items()},
            "sample_stats": {"particle": chosen, "log_weight": take(log_weight)},
        },
        attrs={"/": {"inference_library": "posterity", "sampling": "equally weighted draws of weighted particles; the particles are in their own group"}},
    )
    dataset = lambda data, dims, own=None: xarray.DataTree(arviz_base.dict_to_dataset(data, sample_dims=dims, dims=own, check_conventions=False))  # noqa: E731
    eves = np.stack([np.asarray(chain.eves) for chain in chains])
    tree["particles"] = dataset({**variables, "log_weight": log_weight, "eve": eves}, ["chain", "particle"])
    tree["evidence"] = dataset(_stacked([_evidence(chain) for chain in chains]), ["chain"])
    tree["history"] = dataset(_stacked([_history(chain) for chain in chains]), ["chain", "step"], {"ancestors": ["particle"]})
    return tree


def _chosen(key: jax.Array, posterior: Posterior, n: int) -> np.ndarray:
    """Which particles [n] are drawn."""
    return np.asarray(dataclasses.replace(posterior, values=np.arange(len(posterior))).sample(key, n))


def _variables(posterior: Posterior) -> dict[str, np.ndarray]:
    """Every part of the values and choices by name, [particles, ...]."""
    parts: dict[str, np.ndarray] = {}
    for tree in (posterior.choices, posterior.values):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Answer)):
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
            if isinstance(leaf, Answer):
                rows = jax.device_get(leaf)
                parts[name] = np.array([str(jax.tree.map(lambda x, i=i: x[i], rows).answer()) for i in range(len(posterior))])
            elif not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # keys are no results
                parts[name] = np.asarray(leaf)
    return parts


def _evidence(posterior: Posterior) -> dict[str, Any]:
    names = ("log_evidence", "log_evidence_error", "ess", "steps")
    return {name: np.asarray(getattr(posterior, name)) for name in names}


def _history(posterior: Posterior) -> dict[str, np.ndarray]:
    kept = {} if posterior.ancestors is None else {"ancestors": np.asarray(posterior.ancestors)}
    return {"ess": np.asarray(posterior.ess_history), "resampled": np.asarray(posterior.resampled), **kept}


def _stacked(chains: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([chain[name] for chain in chains]) for name in chains[0]}
