"""What calls have cost, and what they may cost: a ledger that equals the server's, and a budget that is never exceeded."""

import asyncio
from typing import NamedTuple


class BudgetExhausted(RuntimeError):
    """The next call could exceed the budget. What was paid for is kept: in the run log, if there is one."""


class Budget(NamedTuple):
    """What all calls together may cost, those of the run log included. Hard limits: a call that could exceed one is not made.

    Before a call its cost is bounded: by `max_tokens`, and by the prompt's tokens (without a tokenizer, its bytes); after it, it is what
    the server says.
    """

    tokens: int | None = None  # of prompts and of what was written
    money: float | None = None  # in the currency of `prices`
    prices: tuple[float, float] | None = None  # of a million tokens of prompts, and of what is written


class Ledger(NamedTuple):
    """What a remote model's calls have come to."""

    calls: int = 0  # that the server completed
    prompt_tokens: int = 0  # of those calls, as the server counts
    generated_tokens: int = 0  # the same
    replayed: int = 0  # calls that the run log answered
    retries: int = 0  # attempts that failed and were made again
    lost: int = 0  # of those, attempts whose cost the server never told
    lost_tokens: int = 0  # at most so many: what the budget was charged for them
    uncounted: int = 0  # completed calls of which the server told no usage; their tokens are missing above, or counted by the given tokenizer
    seconds: float = 0.0  # that completed calls took, summed over calls

    @property
    def tokens(self) -> int:
        """Of prompts and of what was written."""
        return self.prompt_tokens + self.generated_tokens


class Cost(NamedTuple):
    """Tokens of one call, or a bound on them."""

    prompt: int = 0
    generated: int = 0

    def __add__(self, other):  # pyright: ignore[reportIncompatibleMethodOverride]
        return Cost(self.prompt + other.prompt, self.generated + other.generated)

    def __sub__(self, other):
        return Cost(self.prompt - other.prompt, self.generated - other.generated)


def checked(budget: Budget | None) -> Budget:
    """Raises ValueError for limits that are none, or money without prices."""
    if budget is None:
        return Budget()
    for name, limit in (("tokens", budget.tokens), ("money", budget.money)):
        if limit is not None and not limit >= 0:
            raise ValueError(f"budget: {name} must be at least 0, got {limit!r}")
    if budget.money is not None and (budget.prices is None or len(budget.prices) != 2 or not all(price >= 0 for price in budget.prices)):
        raise ValueError(f"budget: money needs prices, of a million tokens of prompts and of a million generated ones; got {budget.prices!r}")
    return budget


class Account:
    """A budget with what was spent of it and what calls under way may still take. It belongs to one event loop."""

    def __init__(self, budget: Budget, spent: Cost):
        self.budget, self.spent, self.reserved, self.under_way = budget, spent, Cost(), 0
        self.changed = asyncio.Event()

    async def reserve(self, most: Cost) -> None:
        """Waits until a call of that cost fits, whatever those under way come to.

        Raises:
          BudgetExhausted: when it does not even once nothing is under way any more, so that what was paid for has been kept.
        """
        while why := self._over(most):
            if not self.under_way:
                raise BudgetExhausted(why)
            self.changed.clear()
            await self.changed.wait()
        self.reserved += most
        self.under_way += 1

    def settle(self, most: Cost, real: Cost) -> None:
        """A call whose bound was `most` has cost `real`."""
        self.reserved -= most
        self.spent += real
        self.under_way -= 1
        self.changed.set()

    def _over(self, most: Cost) -> str | None:
        tokens, money, prices = self.budget
        least, total = self.spent, self.spent + self.reserved + most
        if tokens is not None and sum(total) > tokens:
            return f"budget: {sum(least):,} of {tokens:,} tokens are spent, and the next call may take {sum(most):,}"
        if money is not None and prices is not None and priced(total, prices) > money:
            return f"budget: {priced(least, prices):.6g} of {money:.6g} are spent, and the next call may cost {priced(most, prices):.6g}"
        return None


def priced(cost: Cost, prices: tuple[float, float]) -> float:
    """In the currency of the prices, which are those of a million tokens."""
    return (cost.prompt * prices[0] + cost.generated * prices[1]) / 1e6
