"""Pages against a model in plain Python: lists of tokens, copied whenever they are shared."""

import jax
import numpy as np
import pytest

from posterity.models.lm.pages import NOWHERE, Pages

N, STEPS = 6, 13
push, select, rewind = jax.jit(Pages.push), jax.jit(Pages.select), jax.jit(Pages.rewind)


class Held:
    """Pages with a pool of tokens that obeys them."""

    def __init__(self, capacity: int, size: int):
        self.pages, self.pool = Pages.empty(N, STEPS, capacity, size), np.full((capacity, size), -1)

    def push(self, active: np.ndarray, tokens: np.ndarray) -> None:
        self.pages, writes = jax.device_get(push(self.pages, active, tokens))
        paged, self.twins = self.pool, writes.twins
        paged[writes.targets[writes.targets < NOWHERE]] = paged[writes.sources[writes.targets < NOWHERE]]
        assert (writes.pages[~active] == NOWHERE).all()
        written = writes.pages < NOWHERE
        paged[writes.pages[written], writes.offsets[written]] = tokens[written]

    def texts(self) -> list[list[int]]:
        table, lengths, size = np.asarray(self.pages.table), np.asarray(self.pages.lengths), self.pages.size
        return [self.pool[row[: -(-length // size)]].ravel()[:length].tolist() for row, length in zip(table, lengths)]

    def check(self, expected: list[list[int]]) -> None:
        assert self.texts() == expected
        table, size = np.asarray(self.pages.table), self.pages.size
        named = [table[i, : -(-len(text) // size)] for i, text in enumerate(expected)]
        np.testing.assert_array_equal(self.pages.counts, np.bincount(np.concatenate(named), minlength=self.pages.capacity))
        assert all((table[i, len(row) :] == NOWHERE).all() for i, row in enumerate(named))


def operate_at_random(size: int, operations: int) -> None:
    rng, held = np.random.default_rng(size), Held(N * -(-STEPS // size), size)
    texts, finished = [[] for _ in range(N)], np.zeros(N, bool)
    for _ in range(operations):
        kind = rng.choice(["push", "select", "rewind", "finish"], p=[0.7, 0.15, 0.1, 0.05])
        if kind == "push":
            active = (rng.random(N) < 0.8) & ~finished & (np.array([len(text) for text in texts]) < STEPS)
            tokens = rng.integers(10 if rng.random() < 0.5 else 2, size=N)  # with two of them many texts are the same
            held.push(active, tokens)
            texts = [[*text, token] if active[i] else text for i, (text, token) in enumerate(zip(texts, tokens.tolist()))]
        elif kind == "select":
            ancestors = rng.integers(N, size=N) if rng.random() < 0.8 else np.full(N, rng.integers(N))
            held.pages = select(held.pages, ancestors)
            texts, finished = [texts[i] for i in ancestors], finished[ancestors]
        elif kind == "rewind":
            lengths = np.where(rng.random(N) < 0.5, [rng.integers(len(text) + 1) for text in texts], STEPS)
            held.pages = rewind(held.pages, lengths)
            texts = [text[:length] for text, length in zip(texts, lengths)]
        else:
            finished = rng.random(N) < 0.3
        held.check(texts)
    assert int(held.pages.lacking) == 0
    assert int(rewind(held.pages, np.zeros(N, int)).used) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_random_operations_leave_every_text_its_own_tokens_and_no_page_behind(size):
    operate_at_random(size, 300)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_ten_thousand_random_operations_leave_every_text_its_own_tokens_and_no_page_behind(size):
    operate_at_random(size, 10_000)


def test_full_pages_are_shared_and_the_open_one_is_copied_when_written():
    held = Held(20, 4)
    for token in range(6):
        held.push(np.arange(N) == 0, np.full(N, token))
    held.pages = select(held.pages, np.zeros(N, int))
    assert int(held.pages.used) == 2
    held.push(np.ones(N, bool), np.arange(10, 10 + N))
    assert int(held.pages.used) == 1 + N
    held.check([[0, 1, 2, 3, 4, 5, 10 + i] for i in range(N)])


def test_texts_that_draw_the_same_token_after_the_same_past_go_on_as_one():
    held = Held(20, 4)
    for token in range(5):
        held.push(np.ones(N, bool), np.full(N, token))
    assert int(held.pages.peak) == 2
    held.push(np.ones(N, bool), np.array([7, 8, 7, 8, 8, 9]))
    assert int(held.pages.used) == 1 + 3
    held.check([[0, 1, 2, 3, 4, token] for token in (7, 8, 7, 8, 8, 9)])
    held.push(np.arange(N) > 0, np.full(N, 1))
    np.testing.assert_array_equal(held.twins, [0, 1, 2, 1, 1, 5])


def test_pages_are_freed_when_their_last_reader_ends():
    held = Held(2 * N, 2)
    for token in range(4):
        held.push(np.ones(N, bool), np.arange(token, token + N))
    assert int(held.pages.used) == 2 * N
    held.pages = select(held.pages, np.full(N, 3))
    assert int(held.pages.used) == 2
    assert int(held.pages.peak) == 2 * N
    held.pages = rewind(held.pages, np.full(N, 2))
    assert int(held.pages.used) == 1


def test_a_push_that_does_not_fit_is_refused_whole():
    held = Held(N + 2, 1)
    held.push(np.ones(N, bool), np.arange(N))
    before = held.texts()
    held.push(np.ones(N, bool), np.arange(N))
    assert int(held.pages.lacking) == N - 2
    held.check(before)
    held.push(np.arange(N) < 2, np.arange(N))
    held.check([[0, 0], [1, 1], [2], [3], [4], [5]])
