"""Published compute-optimal laws, each as its frontier D*(N) = k N^g with C = 6 N D.

One form for all makes them comparable: what a paper gives as N*(C) and D*(C), with whatever unit of
compute, or as a table, or as a loss surface, is a power law between D and N once C is eliminated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_jax.laws.chinchilla import Chinchilla


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal tokens D* = k N^g of a model with N parameters; `law` where a loss is
    known."""

    k: float
    g: float
    source: str
    law: Chinchilla | None = None

    @property
    def a(self) -> float:
        """Exponent of N* in C."""
        return 1.0 / (1.0 + self.g)

    def tokens(self, params: float) -> float:
        """D* of a model of N parameters."""
        return self.k * params**self.g

    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """(N*, D*) at C = 6 N D."""
        n_star = (flops / 6.0 / self.k) ** self.a
        return n_star, self.tokens(n_star)

    def same_loss(self, loss: float) -> float | None:
        """FLOPs (6 N D) that reach `loss` (nats a token) on the frontier; None without a law, or
        for a loss that the law says no compute reaches.

        On the frontier both reducible terms fall as C^-gamma, gamma = alpha beta / (alpha + beta).
        """
        if self.law is None or not loss > self.law.E:
            return None
        law = self.law
        gamma = law.alpha * law.beta / (law.alpha + law.beta)
        scale = law.A * law.G**-law.alpha + law.B * law.G**law.beta
        return 6.0 * float(scale / (loss - law.E)) ** (1.0 / gamma)


def _through(small: tuple[float, float], large: tuple[float, float], source: str) -> Frontier:
    """The power law through two rows (N, D*) of a published table."""
    g = math.log(large[1] / small[1]) / math.log(large[0] / small[0])
    return Frontier(small[1] / small[0] ** g, g, source)


def _surface(law: Chinchilla, source: str) -> Frontier:
    # At the optimum alpha A / N^alpha = beta B / D^beta.
    k = (law.beta * law.B / (law.alpha * law.A)) ** (1.0 / law.beta)
    return Frontier(k, law.alpha / law.beta, source, law)


FRONTIERS = {
    "kaplan": Frontier(
        2e10 / 1.3e9 ** (0.27 / 0.73),
        0.27 / 0.73,
        "Kaplan 2020, table 6: N = 1.3e9 C^0.73, D = 2e10 C^0.27 (so 6 N D is 1.8 C); its N leaves "
        "embeddings out, ours does not",
    ),
    "hoffmann-1": _through(
        (1e9, 20.2e9), (1e12, 21.2e12), "Hoffmann 2022, approach 1: rows 1B and 1T of table 3"
    ),
    "hoffmann-2": _through(
        (1e9, 20.0e9), (1e12, 26.5e12), "Hoffmann 2022, approach 2: rows 1B and 1T of table A3"
    ),
    "hoffmann-3": _surface(
        Chinchilla(1.69337368, 406.401018, 410.722827, 0.33917084, 0.2849083),
        "Hoffmann 2022, approach 3: coefficients at the precision of the paper's TeX source",
    ),
    "besiroglu": _surface(
        Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
        "Besiroglu 2024: approach 3 fitted again to the points of Hoffmann's figure",
    ),
}
