"""NumPyro's kernels, as data: which one, and its options. They run in `po.mcmc`, where they adapt themselves during the warm-up."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import struct
from jax import Array
from numpyro.infer import AIES, ESS, HMC, NUTS, BarkerMH, DiscreteHMCGibbs, HMCGibbs, MixedHMC

from posterity.inference.blocks import Moved

CLASSES: dict[str, Any] = {"nuts": NUTS, "hmc": HMC, "barker": BarkerMH, "aies": AIES, "ess": ESS}
ENSEMBLES = ("aies", "ess")
MIXES = ("discrete_gibbs", "mixed_hmc", "hmc_gibbs")


@struct.dataclass
class Library:
    """A kernel of NumPyro with its options. Floats and arrays are leaves: other values compile nothing anew."""

    arrays: dict[str, Any]
    name: str = struct.field(pytree_node=False)
    static: tuple[tuple[str, Any], ...] = struct.field(pytree_node=False)
    inner: "Library | None" = None  # what a mix moves the real choices with

    def __repr__(self) -> str:
        return self.name

    def __call__(self, key: Array, program: Any, particles: Any, *, time: Any = None) -> tuple[Any, Moved]:
        raise ValueError(
            f"{self.name} adapts itself over a chain, and moves no particles of {program}: it is for po.mcmc; see po.kernels.hamiltonian, mala and slices"
        )

    @property
    def options(self) -> dict[str, Any]:
        return {**self.arrays, **dict(self.static)}

    def build(self, *, potential: Callable | None = None, model: Callable | None = None) -> Any:
        """NumPyro's kernel, for a potential energy of vectors, or for a model."""
        if self.name == "aies":
            stretch = self.options["stretch"]
            with jax.ensure_compile_time_eval():  # it looks at these shares
                return AIES(model, potential, moves={AIES.DEMove(): 1 - stretch, AIES.StretchMove(): stretch})
        if self.inner is None:
            return CLASSES[self.name](model=model, potential_fn=potential, **self.options)
        inner = self.inner.build(model=model)
        if self.name == "hmc_gibbs":
            return HMCGibbs(inner, self.options["gibbs"], list(self.options["names"]))
        return {"discrete_gibbs": DiscreteHMCGibbs, "mixed_hmc": MixedHMC}[self.name](inner, **self.options)


def _library(name: str, inner: "Library | None" = None, **options: Any) -> Library:
    arrays = {key: x for key, x in options.items() if isinstance(x, (float, jax.Array, np.ndarray, np.generic))}
    return Library(arrays, name, tuple((key, x) for key, x in options.items() if key not in arrays), inner)


def nuts(
    *, target_accept: float = 0.8, max_tree_depth: int = 10, dense_mass: bool = False, step_size: float = 1.0, find_heuristic_step_size: bool = False
) -> Library:
    """NumPyro's No-U-Turn sampler, which adapts its step size and mass matrix during the warm-up. For real choices.

    Args:
      target_accept: the mean acceptance probability that the step size is adapted to; nearer to 1 steps are smaller, and divergences fewer.
      max_tree_depth: a trajectory has at most 2^depth steps.
      dense_mass: a full mass matrix in place of a diagonal one.
      step_size: to begin with.
      find_heuristic_step_size: doubles or halves the first step size, and that of each window, until it is of the right order.

    Source: Hoffman and Gelman (2014); Betancourt (2017); Phan, Pradhan and Jankowiak (2019).
    """
    _between("nuts", target_accept)
    options = {"max_tree_depth": max_tree_depth, "dense_mass": dense_mass, "find_heuristic_step_size": find_heuristic_step_size}
    return _library("nuts", target_accept_prob=float(target_accept), step_size=float(step_size), **options)


def hmc(
    *, trajectory_length: float = 2 * np.pi, target_accept: float = 0.8, dense_mass: bool = False, step_size: float = 1.0, num_steps: int | None = None
) -> Library:
    """NumPyro's Hamiltonian Monte Carlo with trajectories of one length; the rest as `nuts`. For real choices.

    Args:
      trajectory_length: in units of the (adapted) mass matrix; divided by the step size it is the number of steps.
      num_steps: a fixed number of steps in its place, of the adapted size.
      target_accept, dense_mass, step_size: as in `nuts`.
    """
    _between("hmc", target_accept)
    length = float(trajectory_length) if num_steps is None else None
    steps = {} if num_steps is None else {"num_steps": num_steps}
    options = {"step_size": float(step_size), "dense_mass": dense_mass, "trajectory_length": length, **steps}
    return _library("hmc", None, target_accept_prob=float(target_accept), **options)


def barker(*, target_accept: float = 0.4, dense_mass: bool = False, step_size: float = 1.0) -> Library:
    """NumPyro's Barker proposal (Livingstone and Zanella 2022): one gradient a draw, robust where step sizes are hard to tune. For real choices."""
    _between("barker", target_accept)
    return _library("barker", target_accept_prob=float(target_accept), step_size=float(step_size), dense_mass=dense_mass)


def aies(*, stretch: float = 0.5) -> Library:
    """NumPyro's affine-invariant ensemble (Goodman and Weare 2010): all chains are one ensemble, and propose to each other. For real choices.

    It takes no gradients, and wants an even number of chains, at least twice as many as coordinates. The chains are not independent: R-hat says little.

    Args:
      stretch: the share of stretch moves; the others are differential evolution.
    """
    if not 0 <= stretch <= 1:
        raise ValueError(f"aies: stretch must lie in [0, 1], got {stretch!r}")
    return Library({}, "aies", (("stretch", float(stretch)),))


def ess() -> Library:
    """NumPyro's ensemble slice sampler (Karamanis and Beutler 2021): as `aies`, with slices along differences of other chains."""
    return _library("ess")


def discrete_gibbs(inner: Library | None = None, *, random_walk: bool = False, modified: bool = True) -> Library:
    """NumPyro's mix for programs with finite and real choices: Gibbs steps on the finite ones, `inner` (`nuts()` by default, or `hmc()`) on the real ones.

    Args:
      inner: what moves the real choices.
      random_walk: uniform proposals in place of draws of the conditional law, which takes the density at every value.
      modified: never propose the value that is there.

    Source: Liu (1996), "Peskun's theorem and a modified discrete-state Gibbs sampler".
    """
    return _library("discrete_gibbs", _inner("discrete_gibbs", inner or nuts(), ("nuts", "hmc")), random_walk=random_walk, modified=modified)


def mixed_hmc(inner: Library | None = None, *, updates: int | None = None, random_walk: bool = False, modified: bool = True) -> Library:
    """NumPyro's Mixed HMC (Zhou 2020): finite choices change within the trajectory of the real ones.

    Args:
      inner: an `hmc()`.
      updates: how many of the finite choices are updated in a trajectory; by default as many as there are.
      random_walk, modified: as in `discrete_gibbs`.
    """
    inner = _inner("mixed_hmc", inner or hmc(), ("hmc",))
    return _library("mixed_hmc", inner, num_discrete_updates=updates, random_walk=random_walk, modified=modified)


def hmc_gibbs(gibbs: Callable, *names: str, inner: Library | None = None) -> Library:
    """NumPyro's mix of your own Gibbs step with `inner` (`nuts()` by default) on the other choices.

    Args:
      gibbs: `gibbs(rng_key, gibbs_sites, hmc_sites)`, dicts of values by name, to a dict of new values for `names`: a draw of their conditional law.
        That it is one is yours to see to.
      names: the choices that it draws.
    """
    if not callable(gibbs) or not names:
        raise ValueError("hmc_gibbs: give a function that draws the conditional law, and the names of the choices that it draws")
    return _library("hmc_gibbs", _inner("hmc_gibbs", inner or nuts(), ("nuts", "hmc")), gibbs=gibbs, names=names)


def _inner(kernel: str, inner: Any, allowed: tuple[str, ...]) -> Library:
    if not isinstance(inner, Library) or inner.name not in allowed:
        raise ValueError(f"{kernel}: inner must be {' or '.join(f'po.kernels.{name}(...)' for name in allowed)}, got {inner!r}")
    return inner


def _between(kernel: str, target_accept: float) -> None:
    if not 0 < target_accept < 1:
        raise ValueError(f"{kernel}: target_accept must lie between 0 and 1, got {target_accept!r}")
