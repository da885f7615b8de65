"""How many items a pair sees and knows: said before the long stages, which need them."""

from dataclasses import dataclass

import xarray as xr

from interventions.errors import InterventionsError

LEAST_KNOWN = 12
"""Items that must be both recognised and known for a run to be worth its hours."""
OF_FEW = 4
"""Of few items, a quarter is enough: who asks about few wants to look."""


@dataclass(frozen=True)
class Known:
    """Counts of items.

    Attributes
    ----------
    items : int
    recognised : int
        The VLM names the entity in the picture.
    known : int
        The backbone answers right about the named entity.
    both : int
    kept : int
        Of both, those that the VLM answers right from the picture.
    """

    items: int
    recognised: int
    known: int
    both: int
    kept: int

    @classmethod
    def of(cls, recall: xr.Dataset) -> "Known":
        """Count the items of :func:`twohop.stages.recall.recall`."""
        right = recall["right"]
        seen, known, shown = (
            right.sel(gate=gate).values.astype(bool)
            for gate in ("recognised", "backbone_text", "vlm_image")
        )
        both = seen & known
        counts = (seen, known, both, both & shown)
        return cls(len(seen), *(int(which.sum()) for which in counts))

    def said(self) -> str:
        """Say it in a line.

        Examples
        --------
        >>> Known(570, 400, 380, 300, 210).said()
        '  570 items: 400 recognised, 380 known in text, 300 both; of these 210 kept and 90 lost'
        """
        return (
            f"  {self.items} items: {self.recognised} recognised, {self.known} known in text, "
            f"{self.both} both; of these {self.kept} kept and {self.both - self.kept} lost"
        )

    def too_few(self, pair: str) -> InterventionsError | None:
        """Why it is not worth going on, and what to do; None if it is."""
        if self.both >= min(LEAST_KNOWN, self.items // OF_FEW):
            return None
        unseen = self.recognised < self.known
        cause = (
            "The VLM hardly names what it sees: look at what it says (the stage recall is stored), "
            "ask otherwise (--format, the naming question of --map), or show clearer pictures."
            if unseen
            else "The backbone hardly knows the facts: ask otherwise (--format), or about items "
            "that it knows, --data FILE."
        )
        return InterventionsError(
            f"{pair}: {self.both} of {self.items} items are both recognised ({self.recognised}) "
            f"and known in text ({self.known}), and nothing can be decided about so few. {cause} "
            "--even-if-few goes on all the same; what was done is stored."
        )
