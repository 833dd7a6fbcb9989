"""Limits on requests to a server: their pace, and the tokens and the money that they may cost."""

import threading
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Prices = Mapping[Literal["input", "output"], NonNegativeFloat | NonNegativeInt | None]
Amounts = Mapping[Literal["tokens", "money"], PositiveFloat | PositiveInt | None]
MILLION = 1e6  # the tokens that prices are for


class Tokens(NamedTuple):
    """The tokens of a prompt, and of all its responses."""

    prompt: int = 0
    responses: int = 0


class Pace:
    """At most so many requests per minute, evenly spaced; None: as many as there are."""

    def __init__(self, per_minute: float | int | None):
        self.interval = 0.0 if per_minute is None else 60 / per_minute
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Returns when the next request may be sent."""
        if not self.interval:
            return
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self.interval
        time.sleep(max(start - time.monotonic(), 0.0))


class Purse:
    """The tokens and the money that requests cost, and their limits.

    The most that a request may cost is reserved before it is sent, so that no limit is ever crossed; a request that
    finds no room waits for those under way, and is refused where there are none.

    Args:
        limits: tokens (prompts and responses) and money; None: no limit.
        price: of a million tokens, in any one currency; None: nothing.
        path: of the replies that are kept, for messages.

    Raises:
        ValueError: a limit on money without a price.
    """

    def __init__(self, limits: Amounts, price: Prices, path: str):
        self.limits = {name: limits.get(name) for name in ("tokens", "money")}
        self.price = Tokens(price.get("input") or 0, price.get("output") or 0)  # type: ignore[arg-type]
        self.path, self.requests = path, 0
        self._spent, self._reserved = {"tokens": 0.0, "money": 0.0}, {"tokens": 0.0, "money": 0.0}
        self._under_way, self._change = 0, threading.Condition()
        if self.limits["money"] is not None and not any(self.price):
            raise ValueError(
                f"teacher.budget.money={self.limits['money']} is a limit on money, but teacher.price is not given; "
                "give teacher.price={input: ..., output: ...} per million tokens, or set teacher.budget.money=null"
            )

    def money(self, tokens: Tokens) -> float:
        """The price of these tokens."""
        return (tokens.prompt * self.price.prompt + tokens.responses * self.price.responses) / MILLION

    def reserve(self, most: Tokens) -> None:
        """Sets aside the most that a request may cost. Raises ValueError where a limit has no room for it."""
        with self._change:
            while lacking := self._lacking(most):
                if not self._under_way:
                    raise ValueError(self._refusal(lacking, most))
                self._change.wait()
            self._under_way += 1
            self._move(self._reserved, most, 1)

    def release(self, most: Tokens) -> None:
        """Gives back what `reserve` set aside."""
        with self._change:
            self._under_way -= 1
            self._move(self._reserved, most, -1)
            self._change.notify_all()

    def pay(self, tokens: Tokens) -> None:
        """Counts the cost of a reply."""
        with self._change:
            self.requests += 1
            self._move(self._spent, tokens, 1)

    def _amounts(self, tokens: Tokens) -> dict[str, float]:
        return {"tokens": float(sum(tokens)), "money": self.money(tokens)}

    def _move(self, account: dict[str, float], tokens: Tokens, sign: int) -> None:
        for name, amount in self._amounts(tokens).items():
            account[name] += sign * amount

    def _lacking(self, most: Tokens) -> str | None:
        """The limit that has no room for a request, if there is one."""
        for name, amount in self._amounts(most).items():
            limit = self.limits[name]
            if limit is not None and self._spent[name] + self._reserved[name] + amount > limit * (1 + 1e-9):
                return name
        return None

    def _refusal(self, name: str, most: Tokens) -> str:
        return (
            f"teacher.budget.{name}={self.limits[name]} has no room for another request: {self.requests} cost "
            f"{self._spent[name]:.6g}, and the next may cost {self._amounts(most)[name]:.6g}; their replies are kept "
            f"in {self.path}, so raise it, and the same command goes on from there"
        )
