"""Errors that speak of the user's code: where a site was made, and what is wrong with a carry."""

import contextlib
import itertools
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from numpyro.primitives import Messenger

from posterity.ppl import component

_LIBRARIES = ("jax", "jaxlib", "numpyro", "numpy", "flax", "contextlib", "functools")
_OURS = ("posterity.ppl", "posterity.inference", "posterity.models.programs.kalman")


class Located(Messenger):
    """Marks every site with the line that made it and with the part of the program it is in, and tells errors where they happened.

    Raises:
      ValueError: on a second site of the same name.
    """

    def __init__(self, program: str):
        super().__init__()
        self.program, self.part = program, "initial law"
        self.lines: dict[str, Any] = {}
        self.current: str | None = None  # the site that is being made

    def process_message(self, msg: Any) -> None:
        if "name" not in msg:
            return
        name, line = msg["name"], _user_line(traceback.walk_stack(sys._getframe(1)))
        self.current, first = name, self.lines.get(name)
        if name in self.lines and msg["type"] in ("sample", "deterministic"):
            lines = f"at {short(first)} and at {short(line)}"
            raise ValueError(f"{self.program}: two sites are called {name!r}, {lines}; sites before the scan, in its step and after it need different names")
        self.lines[name] = msg["line"] = line
        msg["program"], msg["part"] = self.program, self.part

    def postprocess_message(self, msg: Any) -> None:
        self.current = None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        told = any(note.startswith(f"In program {self.program},") for note in getattr(error, "__notes__", ()))
        if isinstance(error, Exception) and not told:
            last = next(reversed(self.lines), None)
            when = f"at site {self.current!r}" if self.current else f"after site {last!r}" if last else "before its first site"
            runner, *frames = traceback.walk_tb(trace)
            own = itertools.takewhile(lambda frame: frame[0].f_code is not runner[0].f_code, frames)  # not those of a program that this one runs
            error.add_note(f"In program {self.program}, {when}:{_shown(_user_line(reversed(list(own))))}")
        super().__exit__(kind, error, trace)


@contextlib.contextmanager
def same_for_all(complaint: str) -> Iterator[None]:
    """What JAX refuses here because it depends on what is mapped over, which all entries must share, is told as this complaint.

    Raises:
      ValueError: with the complaint.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(complaint) if "out_axes" in str(error) else error from None


def log_density(site: dict) -> Any:
    """The log density of a site's value, nats, summed over a plate's rows or an array's entries, times its scale."""
    given = (site["value"], site["intermediates"]) if site["intermediates"] else (site["value"],)
    try:
        log_prob = jnp.sum(site["fn"].log_prob(*given))
    except Exception as error:
        law, shape = site["fn"], jnp.shape(site["value"])
        what = f"{type(law).__name__} of batch shape {law.batch_shape} and event shape {law.event_shape} at a value of shape {shape}"
        error.add_note(f"In program {site.get('program')}, the log density of site {site['name']!r}, {what}:{_shown(site.get('line'))}")
        raise
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def check_carry(name: str, before: Any, after: Any) -> None:
    """Raises TypeError when a step's carry `after` differs from the one `before` in structure, shapes or dtypes, and says where and what to do."""
    old, old_tree = jax.tree_util.tree_flatten_with_path(before, is_leaf=component.is_component)
    new, new_tree = jax.tree_util.tree_flatten_with_path(after, is_leaf=component.is_component)
    if old_tree != new_tree:
        wrong = [_structure(before, after, [f"carry{keystr(path)}" for path, _ in old], [f"carry{keystr(path)}" for path, _ in new])]
    else:
        wrong = [f"carry{keystr(path)} {_difference(a, b)}" for (path, a), (_, b) in zip(old, new, strict=True) if _kind(a) != _kind(b)]
    if wrong:
        scan = short(_user_line(traceback.walk_stack(sys._getframe(1))))
        raise TypeError(f"{name}: the step of po.scan (at {scan}) must return a carry like the one it was given:" + "".join(f"\n  {line}" for line in wrong))
    component.check_places(name, [leaf for _, leaf in old], [leaf for _, leaf in new])


def _structure(before: Any, after: Any, old: list[str], new: list[str]) -> str:
    if after is None:
        return "it returned None, which a function does that ends without a return statement"
    if isinstance(after, tuple) and len(after) == 2 and jax.tree.structure(after[0]) == jax.tree.structure(before):
        return "it returned a pair whose first entry is one; unlike jax.lax.scan, po.scan takes the carry alone"
    missing, extra = [path for path in old if path not in new], [path for path in new if path not in old]
    if missing or extra:
        return " and ".join(f"{', '.join(paths)} {what}" for paths, what in ((missing, "is missing"), (extra, "is new")) if paths)
    return f"it was {jax.tree.structure(before)} and came out as {jax.tree.structure(after)}"


def _difference(before: Any, after: Any) -> str:
    changed = f"was {_kind(before)} and came out of the step as {_kind(after)}"
    if component.is_component(before) or component.is_component(after):
        return f"{changed}: return the {_kind(before)} itself"
    old, new, shape = jnp.result_type(before), jnp.result_type(after), jnp.shape(after)
    number = " (the float 0.0 rather than the int 0)" if shape == () and old.kind == "i" and new.kind == "f" else ""
    keep = f"return it .astype(jnp.{old.name})" if jnp.shape(before) == shape else f"return it in its shape {jnp.shape(before)}"
    return f"{changed}; start it like jnp.zeros({shape}, jnp.{new.name}){number}, or {keep}"


def _kind(leaf: Any) -> str:
    return type(leaf).__name__ if component.is_component(leaf) else f"{jnp.result_type(leaf).name}{list(jnp.shape(leaf))}"


def _user_line(frames: Iterable[tuple[FrameType, int]]) -> traceback.FrameSummary | None:
    """The first of these frames, innermost first, that is neither ours nor a library's."""
    for frame, number in frames:
        module = f"{frame.f_globals.get('__name__', '')}."
        if not module.startswith(tuple(f"{library}." for library in _LIBRARIES + _OURS)):
            return traceback.FrameSummary(frame.f_code.co_filename, number, frame.f_code.co_name, lookup_line=False)
    return None


def short(line: traceback.FrameSummary | None) -> str:
    """A line as file:line, without the file's folder."""
    return f"{os.path.basename(line.filename)}:{line.lineno}" if line else "an unknown line"


def _shown(line: traceback.FrameSummary | None) -> str:
    """A line as Python's tracebacks show it."""
    return f"\n{''.join(traceback.format_list([line])).rstrip()}" if line else " a line of a library"
