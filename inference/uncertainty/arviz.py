"""Posteriors as ArviZ knows them: an `xarray.DataTree`, for its plots and diagnostics (extra `arviz`)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from posterity.inference.mcmc.chain import Chain
from posterity.inference.posterior import Posterior
from posterity.inference.queries import Weighted
from posterity.inference.uncertainty.diagnostics import ess_bulk, ess_tail, rank_rhat
from posterity.ppl.answer import Answer

if TYPE_CHECKING:
    import xarray  # pyright: ignore[reportMissingImports]

NAMES = {"divergent": "diverging", "acceptance": "acceptance_rate", "steps": "n_steps", "log_density": "lp"}  # ours and ArviZ's
DIAGNOSTICS: dict[str, Callable[[Any], float]] = {"rank_rhat": rank_rhat, "ess_bulk": ess_bulk, "ess_tail": ess_tail}


def to_arviz(runs: Posterior | Chain | Sequence[Posterior] | Sequence[Chain], *, draws: int | None = None, seed: int = 0) -> "xarray.DataTree":
    """One or several runs of an inference as a DataTree, with dimensions chain and draw.

    A `Chain` goes as it is:
      posterior: its draws, chain by chain. Names are those of the value's entries, joined by dots; `value` where it has none; texts are given by
        what they answer. Choices of the initial law stand beside them.
      sample_stats: what the kernel told of each draw, under the names that ArviZ's plots look for (`diverging`, `acceptance_rate`, `n_steps`, `lp`, `energy`).
      diagnostics: of every number in every variable its `rank_rhat`, `ess_bulk` and `ess_tail`; NaN for one that never changes, or with fewer than 4 draws.

    Of a `Posterior`, one run is a chain. Diagnostics that compare chains, such as R-hat, need several runs with other keys: the particles of one are not
    independent. Its groups:
      posterior: equally weighted draws (with replacement, by weight), variables as above.
      sample_stats: the `particle` that each draw is, and `log_weight`, that particle's.
      particles: the particles as they are, dimensions chain and particle: the same variables, raw `log_weight` (normalised, nats) and `eve`.
      evidence: of each chain `log_evidence`, `log_evidence_error`, `ess`, `steps`.
      history: dimensions chain and step: `ess` and `resampled`, and `ancestors` (by particle) where they were kept; NaN for steps not made.

    Args:
      runs: posteriors of one program, all with as many particles; or chains of it, all with as many draws.
      draws: of each posterior; as many as there are particles by default. Chains keep all that they have.
      seed: of these draws.

    Raises:
      ImportError: without the extra.
      ValueError: for no runs, runs of different size, no draws, where the evidence is zero, or a chain some of whose draws count for nothing.
    """
    try:
        import arviz_base  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("to_arviz needs ArviZ: pip install 'posterity[arviz]'") from error
    every = [runs] if isinstance(runs, Weighted) else list(runs)
    chains, posteriors = [run for run in every if isinstance(run, Chain)], [run for run in every if isinstance(run, Posterior)]
    if chains and len(chains) == len(every):
        return _of_chains(chains)
    if len(posteriors) < len(every):
        raise ValueError(f"to_arviz: runs must be posteriors or chains, all of one kind; got {', '.join(type(run).__name__ for run in every)}")
    return _of_posteriors(posteriors, draws, seed)


def _of_chains(runs: list[Chain]) -> "xarray.DataTree":
    import arviz_base  # pyright: ignore[reportMissingImports]
    import xarray  # pyright: ignore[reportMissingImports]

    sizes = {len(run) // run.chains for run in runs}
    if len(sizes) != 1:
        raise ValueError(f"to_arviz: chains must all have as many draws, got {sorted(sizes)}")
    if any(np.isneginf(np.asarray(run.log_weights)).any() for run in runs):
        raise ValueError("to_arviz: some draws came before their chain found a state that is allowed; give it a longer warm-up")
    apart = lambda run, parts: {name: x.reshape(run.chains, -1, *x.shape[1:]) for name, x in parts.items()}  # noqa: E731
    together = lambda parts: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}  # noqa: E731
    variables = together([apart(run, _variables(run)) for run in runs])
    statistics = [{"acceptance": np.asarray(run.accepted, float), **{name: np.asarray(x) for name, x in run.statistics.items()}} for run in runs]
    told = together([apart(run, {NAMES.get(name, name): x for name, x in of.items()}) for run, of in zip(runs, statistics, strict=True)])
    tree = arviz_base.from_dict({"posterior": variables, "sample_stats": told}, attrs={"/": {"inference_library": "posterity"}})
    found = {name: _diagnosed(x) for name, x in variables.items() if np.issubdtype(x.dtype, np.number) or x.dtype == bool}
    dataset = arviz_base.dict_to_dataset(found, sample_dims=["diagnostic"], coords={"diagnostic": list(DIAGNOSTICS)}, check_conventions=False)
    tree["diagnostics"] = xarray.DataTree(dataset)
    return tree


def _diagnosed(x: np.ndarray) -> np.ndarray:
    """Every diagnostic of every number in a variable [chains, draws, ...]: [diagnostics, ...]."""

    def of(diagnostic: Callable[[Any], float], column: np.ndarray) -> float:
        usable = column.shape[1] >= 4 and np.isfinite(column).all() and np.ptp(column) > 0
        return diagnostic(column) if usable else np.nan

    columns = np.moveaxis(x.astype(float).reshape(*x.shape[:2], -1), 2, 0)
    return np.array([[of(diagnostic, column) for column in columns] for diagnostic in DIAGNOSTICS.values()]).reshape(-1, *x.shape[2:])


def _of_posteriors(chains: list[Posterior], draws: int | None, seed: int) -> "xarray.DataTree":
    import arviz_base  # pyright: ignore[reportMissingImports]
    import xarray  # pyright: ignore[reportMissingImports]

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


def _variables(posterior: Posterior | Chain) -> dict[str, np.ndarray]:
    """Every part of the values and choices by name, [n, ...]."""
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
