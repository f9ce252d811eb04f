"""What a run has cost, per token: rates, money, energy, and the part of what the machine could do.

Each figure is absent (None) where what it follows from is not known.
"""

from collections.abc import Callable
from dataclasses import dataclass

_MILLION = 1e6
_JOULES_A_WATT_HOUR = 3600
_SECONDS_AN_HOUR = 3600

Floor = Callable[[int, int, int], float]
"""(requests, prompt tokens, generated tokens) -> the least seconds this machine needs for them."""


@dataclass(frozen=True)
class Bill:
    """One run's work, and what it took.

    Attributes:
      answered: requests. prompt_tokens, completion_tokens: of them.
      seconds: of the run.
      price_per_hour: of the machine, in whatever currency.
      joules: that the machine used. metered: what of it that is, "cpu, gpu".
      floor: the bound, see `Floor`.
    """

    answered: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    price_per_hour: float | None = None
    joules: float | None = None
    metered: str = ""
    floor: Floor | None = None

    @property
    def generated_per_second(self) -> float | None:
        return _per(self.completion_tokens, self.seconds)

    @property
    def prompt_per_second(self) -> float | None:
        return _per(self.prompt_tokens, self.seconds)

    @property
    def fraction(self) -> float | None:
        """The least time the machine needs for these tokens, over the time that it took."""
        if self.floor is None or not self.answered:
            return None
        least = self.floor(self.answered, self.prompt_tokens, self.completion_tokens)
        return _per(least, self.seconds)

    @property
    def price_per_million_generated(self) -> float | None:
        return _per(self._price, self.completion_tokens / _MILLION)

    @property
    def price_per_million_tokens(self) -> float | None:
        """Of prompts and answers together."""
        return _per(self._price, (self.prompt_tokens + self.completion_tokens) / _MILLION)

    @property
    def watt_hours_per_million_generated(self) -> float | None:
        hours = None if self.joules is None else self.joules / _JOULES_A_WATT_HOUR
        return _per(hours, self.completion_tokens / _MILLION)

    @property
    def watt_hours_per_million_tokens(self) -> float | None:
        """Of prompts and answers together."""
        hours = None if self.joules is None else self.joules / _JOULES_A_WATT_HOUR
        return _per(hours, (self.prompt_tokens + self.completion_tokens) / _MILLION)

    @property
    def _price(self) -> float | None:
        if self.price_per_hour is None:
            return None
        return self.price_per_hour * self.seconds / _SECONDS_AN_HOUR

    def words(self) -> list[str]:
        """The figures there are, one a line, for people."""
        said = []
        rates = ((self.generated_per_second, "generated"), (self.prompt_per_second, "prompt"))
        if shown := [f"{rate:,.1f} {kind} tok/s" for rate, kind in rates if rate]:
            said.append(", ".join(shown))
        if (fraction := self.fraction) is not None:
            said.append(f"{fraction:.1%} of what this machine's memory and arithmetic allow")
        price = self.price_per_million_generated, self.price_per_million_tokens
        energy = self.watt_hours_per_million_generated, self.watt_hours_per_million_tokens
        said += _per_million("cost", *price, "")
        of = f" of {self.metered}" if self.metered else ""
        return said + _per_million(f"energy{of}", *energy, " Wh")


def _per_million(what: str, generated: float | None, every: float | None, unit: str) -> list[str]:
    """Nothing where the figure is not known; encoders generate no tokens."""
    if every is None:
        return []
    of_all = f"{every:,.4g}{unit} per million tokens"
    if generated is None:
        return [f"{what}: {of_all}"]
    return [f"{what}: {generated:,.4g}{unit} per million generated tokens, {of_all} in all"]


def _per(amount: float | None, base: float) -> float | None:
    return None if amount is None or base <= 0 else amount / base
