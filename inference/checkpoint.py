"""Checkpoints: a run under way, kept on disk, from which the same run goes on bit for bit."""

import functools
import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from posterity.ppl.program import runs_on_host

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


class Checkpoint(NamedTuple):
    """Where a run is kept, and how often: pass it as `checkpoint=` to `smc` and its relatives.

    Call the inference again with the same arguments, in this process or another, and it goes on from the last checkpoint that stands:
    the posterior is the one, bit for bit, that an uninterrupted run gives (on the same kind of device, with the same JAX). A run that
    was finished is only read. Written by Orbax: whole or not at all, the last two kept.

    Raises, from the inference:
      ValueError: when the path holds another run (the message says what differs: key, n, the program's data, ..), or nothing that is
        undamaged. When the last checkpoint is damaged and the one before is not, that one is used, with a warning.
      OSError: when it cannot be written. The run stops; checkpoints written before stand.

    >>> import jax, numpyro.distributions as dist, posterity as po, tempfile
    >>> @po.program
    ... def walk():
    ...     return po.scan(lambda x, _: po.sample("x", dist.Normal(x, 1.0)), 0.0, length=5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = po.smc(jax.random.key(0), walk(), n=10, checkpoint=po.Checkpoint(folder, every=2))
    ...     again = po.smc(jax.random.key(0), walk(), n=10, checkpoint=po.Checkpoint(folder, every=2))
    >>> bool((first.values == again.values).all())
    True
    """

    path: str | os.PathLike  # a folder, which is made; with several processes one that all of them see
    every: int = 100  # steps


class Kept(NamedTuple):
    """The checkpoints of one run."""

    path: str
    every: int  # steps
    manager: "ocp.CheckpointManager"
    about: dict[str, Any]  # what tells this run from others

    def save(self, run: Any, time: int) -> None:
        """Keeps the run as it is after `time` steps.

        Raises:
          OSError: when it cannot be written.
        """
        import orbax.checkpoint as ocp

        if time in self.manager.all_steps():
            return
        leaves = _storable(run)
        about = self.about | {"checksums": _sums(leaves)}
        try:
            self.manager.save(time, args=ocp.args.Composite(run=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(about)))
            self.manager.wait_until_finished()
        except Exception as error:  # of the file system, as Orbax and TensorStore put it
            standing = [step for step in self.manager.all_steps(read=True) if step != time]
            what = f"the checkpoint of step {max(standing)} stands, from which the same call goes on" if standing else "none was written before"
            raise OSError(f"checkpoint: step {time} could not be written to {self.path}; {what}. {_first_line(error)}") from error

    def computing(self, code: str) -> "Kept":
        """The same for a run that is computed by this code."""
        return self._replace(about=self.about | {"the code that it runs": hashlib.sha256(code.encode()).hexdigest()})

    def latest(self, run: Any) -> Any:
        """The run as it was kept last, in the place of `run`, which has just begun; `run` itself when none was kept.

        Raises:
          ValueError: when the path holds another run, or no undamaged one.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                found = self._restore(run, step)
            except AnotherRun:
                raise
            except Exception as error:  # whatever damaged files make of their readers
                damaged.append(f"step {step} ({_first_line(error)})")
                continue
            if damaged:
                warnings.warn(f"checkpoint: {', '.join(damaged)} at {self.path} is damaged, and removed; going on from step {step}", stacklevel=2)
                for later in steps[: steps.index(step)]:
                    self.manager.delete(later)
            return found
        if damaged:
            raise ValueError(f"checkpoint: all that {self.path} holds is damaged: {'; '.join(damaged)}. Remove it to begin anew")
        return run

    def _restore(self, run: Any, step: int) -> Any:
        import orbax.checkpoint as ocp

        sums = self._compared(step)["checksums"]
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _storable(run))
        leaves = self.manager.restore(step, args=ocp.args.Composite(run=ocp.args.StandardRestore(wanted)))["run"]
        if _sums(leaves) != sums:
            raise ValueError("its numbers are not those that were written")
        return _filled(run, leaves)

    def _compared(self, step: int) -> dict[str, Any]:
        """What was noted with a checkpoint, if it is one of this run."""
        import orbax.checkpoint as ocp

        saved = dict(self.manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"])
        differing = [name for name, value in self.about.items() if saved[name] != value]
        if differing:
            told = [f"{name} ({saved[name]} there, {self.about[name]} now)" if len(f"{saved[name]}{self.about[name]}") < 80 else name for name in differing]
            raise AnotherRun(f"checkpoint: {self.path} holds another run, which differs in {', '.join(told)}; give another path, or remove it")
        return saved


class AnotherRun(ValueError):
    """The path holds another run."""


def keep(checkpoint: Checkpoint, about: Mapping[str, Any]) -> Kept:
    """Opens the checkpoints at a path, for the run that `about` describes.

    Raises:
      AnotherRun: when they are of another.
    """
    import orbax.checkpoint as ocp  # takes a second, and is seldom needed

    path = os.path.abspath(checkpoint.path)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True)
    kept = Kept(path, checkpoint.every, ocp.CheckpointManager(path, options=options, item_names=("run", "about")), dict(about))
    for step in sorted(kept.manager.all_steps(), reverse=True)[:1]:
        try:
            kept._compared(step)
        except AnotherRun:
            raise
        except Exception:  # it is damaged, which `latest` deals with
            pass
    return kept


def check(checkpoint: Any, *traced: Any) -> None:
    """Before anything is run.

    Raises:
      TypeError: when `checkpoint` is no `Checkpoint`.
      ValueError: when `every` is less than one step, or the run is being traced.
      OSError: when the path cannot be written to.
    """
    if not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"checkpoint must be a po.Checkpoint(path, every=steps), got {checkpoint!r}")
    if not isinstance(checkpoint.every, int) or isinstance(checkpoint.every, bool) or checkpoint.every < 1:
        raise ValueError(f"checkpoint: every must be a number of steps, at least 1, got {checkpoint.every!r}")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(traced)):
        raise ValueError("checkpoint: a run inside jit (or under a checker) cannot be kept; call the inference outside")
    if any(map(runs_on_host, traced)):
        raise ValueError("checkpoint: this program runs on the host, and its states are no arrays that could be kept here; see whether it keeps a log itself")
    path = os.path.abspath(checkpoint.path)
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(1))
    except OSError as error:
        raise OSError(error.errno, f"checkpoint: cannot write to {path}: {error.strerror}; nothing was run") from error


def describe(key: Array, program: Any, n: int, init: Callable, step: Callable, **options: Any) -> dict[str, Any]:
    """What tells a run from others: JSON, by the name under which a difference is reported."""
    return {
        "key": np.asarray(_plain(key)).tolist(),
        "n": n,
        "program": _anywhere(repr(program)),
        "data of the program": _sums(jax.tree.map(jnp.asarray, jax.tree.leaves(program))),
        "algorithm": f"{_named(init)}, {_named(step)}",
        "options": {name: str(value) for name, value in options.items()},
        "JAX": f"{jax.__version__} on {jax.default_backend()}",
    }


def _named(function: Any) -> str:
    """A function and its options, the same in every process."""
    function = getattr(function, "fun", function)  # as `jax.tree_util.Partial` holds a partial
    if isinstance(function, functools.partial):
        options = [*map(_named, function.args), *(f"{name}={_named(value)}" for name, value in sorted(function.keywords.items()))]
        return f"{_named(function.func)}({', '.join(options)})"
    if callable(function) and hasattr(function, "__qualname__"):
        return f"{function.__module__}.{function.__qualname__}"
    leaves = jax.tree.leaves(function)
    if leaves and all(isinstance(leaf, Array | np.ndarray | float) for leaf in leaves):
        return str([float(np.asarray(x).item()) if np.size(x) == 1 else _sums([jnp.asarray(x)]) for x in leaves])
    return _anywhere(str(function))


def _anywhere(text: str) -> str:
    """Without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _is_key(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x: Array) -> Array:
    """Keys as the numbers that they are made of."""
    return jax.random.key_data(x) if _is_key(x) else x


def _storable(run: Any) -> dict[str, Array]:
    """Its arrays by number; those of no entries are left out."""
    return {str(i): _plain(x) for i, x in enumerate(jax.tree.leaves(run)) if x.size}


def _filled(run: Any, leaves: dict[str, Array]) -> Any:
    """The run with these arrays in the place of its own."""
    own, tree = jax.tree.flatten(run)

    def one(i: int, x: Array) -> Array:
        new = leaves.get(str(i), x)
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(x)) if new is not x and _is_key(x) else new

    return jax.tree.unflatten(tree, [one(i, x) for i, x in enumerate(own)])


def _sums(arrays: Any) -> list[int]:
    """A checksum of every array: a sum, so that devices take it together."""
    return [int(total) for total in _checksums([_plain(x) for x in jax.tree.leaves(arrays)])]


@jax.jit
def _checksums(arrays: list[Array]) -> list[Array]:
    def one(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            x = jnp.stack([x.real, x.imag])
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        words = lax.bitcast_convert_type(x, jnp.dtype(f"uint{min(32, 8 * x.dtype.itemsize)}")).astype(jnp.uint32).reshape(-1)
        places = jnp.arange(words.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B1)
        return jnp.sum((words ^ (places >> 15)) * (places | 1), dtype=jnp.uint32)

    return [one(x) for x in arrays]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
