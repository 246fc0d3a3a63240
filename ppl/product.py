"""Products of experts: several programs over the same choices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from numpyro.primitives import _PYRO_STACK, Messenger

from posterity.ppl.effects import SCAN, Scan, scan
from posterity.ppl.program import Definition, FunctionProgram
from posterity.ppl.region import of_function, stacked


class Expert(Messenger):
    """One of the programs: the first makes the choices, the others observe them. Hands its scan to `at_scan(expert, scan)`."""

    def __init__(self, index: int, made: dict[str, Any], at_scan: Callable | None = None):
        super().__init__()
        self.index, self.made, self.at_scan = index, made, at_scan
        self.scored: set[str] = set()
        self._name: str | None = None

    def process_message(self, msg: Any) -> None:
        if msg["type"] == SCAN and self.at_scan is not None:
            at_scan = self.at_scan
            msg["fn"], msg["stop"] = (lambda scan: at_scan(self, scan)), True
            return
        latent = msg["type"] == "sample" and not msg["is_observed"]
        self._name = msg["name"] if latent and self.index == 0 else None
        if self.index and latent:
            if msg["name"] not in self.made:
                made = ", ".join(map(repr, self.made)) or "none"
                raise ValueError(
                    f"product: expert {self.index + 1} chooses {msg['name']!r}, the first does not (it chose {made}); all must make the same choices"
                )
            self.scored.add(msg["name"])
            msg["value"], msg["is_observed"] = self.made[msg["name"]], True
        if self.index and "name" in msg and msg["type"] != "param":
            msg["name"] = f"expert{self.index + 1}/{msg['name']}"

    def postprocess_message(self, msg: Any) -> None:
        if self._name is not None:
            self.made[self._name] = msg["value"]
            self._name = None

    def check(self) -> None:
        """Raises ValueError when a choice of the first expert was not scored by this one."""
        if self.index and (left := self.made.keys() - self.scored):
            names = ", ".join(map(repr, sorted(left)))
            raise ValueError(f"product: the first expert chooses {names}, expert {self.index + 1} does not; all must make the same choices")


class _Waiting(NamedTuple):
    """A program that has come to its scan, and the handlers that it has put around that."""

    scan: Scan
    handlers: list[Messenger]


def _product(programs: tuple[FunctionProgram, ...]) -> Any:
    """Each program runs to its scan inside the one before; the last runs all scans as one, and all go on with their carries."""
    made: dict[str, Any] = {}
    waiting: list[_Waiting] = []
    carries: list[Any] = []

    def run(index: int) -> Any:
        expert = Expert(index, made, at_scan)
        with expert:
            value = programs[index]()
        expert.check()
        return value

    def at_scan(expert: Expert, call: Scan) -> Any:
        expert.check()
        if expert.index == len(waiting):
            at = _PYRO_STACK.index(expert)
            waiting.append(_Waiting(call, _PYRO_STACK[at + 1 :]))
            with stacked(_PYRO_STACK[:at]):
                carries.extend(_together(waiting)) if len(waiting) == len(programs) else run(expert.index + 1)
        if not carries:
            raise ValueError("product: one program has a scan and another has none")
        return carries[expert.index]

    value = run(0)
    for index in range(1, 1 if waiting else len(programs)):
        run(index)
    return value


def _together(waiting: list[_Waiting]) -> tuple:
    """All the scans as one, in lockstep."""
    scans = [program.scan for program in waiting]
    if len({call.length for call in scans}) > 1:
        raise ValueError(f"product: the programs' scans have different lengths: {', '.join(str(call.length) for call in scans)}")

    def step(carries, xs):
        made: dict[str, Any] = {}
        after = []
        for index, ((call, handlers), carry) in enumerate(zip(waiting, carries, strict=True)):
            expert = Expert(index, made)
            with expert, stacked([*_PYRO_STACK, *handlers]):
                after.append(call.step(carry, None if xs is None else xs[index]))
            expert.check()
        return tuple(after)

    def until(carries):
        return jnp.any(jnp.stack([call.ended(carry) for call, carry in zip(scans, carries, strict=True)]))

    xs = tuple(call.xs for call in scans)
    return scan(step, tuple(call.init for call in scans), None if all(x is None for x in xs) else xs, length=scans[0].length, until=until)


def product(first: Any, *others: Any) -> FunctionProgram:
    """The product of experts (Hinton 2002): programs that make the same choices, their densities and potentials multiplied.

    Law: the measure with density p q .. over the choices; the value is the first program's. Choices are drawn from the first
    and weigh by the others' densities; `adapt` them, and each is drawn from the locally normalised product. The scans go in
    lockstep. A particle stops when the first of its experts does: beyond that they have no choice in common, so the density
    is that of the choices made until then. Sites of the k-th program are called `expertk/..`, except the first's.

    Args:
      first: a program made by `@po.program`, which makes the choices.
      others: programs with choices of the same names, in the initial law and in the scan's step alike.

    Raises:
      TypeError: when a program is not made of a function.
      ValueError: without others; from the inference: when the programs do not make the same choices, or their scans differ in
        length.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, posterity as po
    >>> @po.program
    ... def die(weights):
    ...     return po.sample("die", dist.Categorical(weights))
    >>> both = po.product(die(jnp.array([0.5, 0.25, 0.25])), die(jnp.array([0.2, 0.6, 0.2])))
    >>> {value: round(estimate.value, 3) for value, estimate in po.exact(both).answers().items()}
    {1: 0.5, 0: 0.333, 2: 0.167}
    """
    if not others:
        raise ValueError("product: give at least two programs")
    return Definition(_product).bind(tuple(of_function("product", program) for program in (first, *others)))
