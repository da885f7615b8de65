"""Drawing the next token, so that a row's draws hang on nothing but the seed and its number."""

from dataclasses import dataclass, replace

import torch

from interventions.errors import PromptError
from interventions.given import number, seed_of


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes
    ----------
    temperature : float
        Logits are divided by it.
    top_p : float
        Drawn from as few of the likeliest tokens as have this probability together (Holtzman et
        al., "The Curious Case of Neural Text Degeneration", ICLR 2020).
    uniform : Tensor [row, step], float64
        A number in [0, 1) for each draw: where in the cumulated probabilities, from the likeliest
        token on, it falls.
    """

    temperature: float
    top_p: float
    uniform: torch.Tensor

    def of_rows(self, rows: torch.Tensor) -> "Sampling":
        """Return the draws of some rows."""
        return replace(self, uniform=self.uniform[rows.cpu()])

    def drawn(self, logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        """Token of each row [row], from its logits [row, vocab]."""
        # On the CPU, as devices differ in their cumulated sums, and some have no float64.
        wide = logits.cpu().double()
        probabilities = ((wide - wide.amax(-1, keepdim=True)) / self.temperature).softmax(-1)
        probabilities, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        behind = probabilities.cumsum(-1)
        kept = behind - probabilities < self.top_p  # the likeliest always is
        behind = torch.where(kept, probabilities, 0.0).cumsum(-1)
        place = self.uniform[rows.cpu(), step] * behind[:, -1]
        chosen = torch.searchsorted(behind, place[:, None], right=True)
        last = kept.sum(-1, keepdim=True) - 1
        return tokens.gather(-1, chosen.minimum(last))[:, 0].to(logits.device)


def sampling_of(
    temperature: float, top_p: float, seed: int, *, n_rows: int, steps: int
) -> Sampling | None:
    """Return how to draw; None where the likeliest token is taken.

    Raises
    ------
    PromptError
        For a temperature below 0, or a share ``top_p`` outside of 0 to 1.
    """
    temperature = number(temperature, "temperature", least=0, error=PromptError)
    top_p, seed = number(top_p, "top_p", least=0, error=PromptError), seed_of(seed)
    if not 0 < top_p <= 1:
        raise PromptError(f"top_p={top_p}. Expected a share of probability: above 0, up to 1.")
    if temperature == 0:
        if top_p < 1:
            raise PromptError(
                f"top_p={top_p} says how to draw, and at temperature=0 the likeliest token is "
                "taken. Give a temperature too, such as 1.0."
            )
        return None
    rows = [
        torch.rand(steps, dtype=torch.float64, generator=_generator(seed, row))
        for row in range(n_rows)
    ]
    return Sampling(temperature, top_p, torch.stack(rows))


def _generator(seed: int, row: int) -> torch.Generator:
    """One for each row, so that a row added behind changes no other."""
    own = (seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9 + 1) % 2**63
    return torch.Generator().manual_seed(own)
