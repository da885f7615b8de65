"""At which steps of a generation an edit acts: step 0 is the prefill, each later one has a token.

Step k is the forward pass that is fed the k-th token of the answer, and says the next one.
"""

from typing import Any, Literal

from interventions.errors import PatchError
from interventions.given import index_of, plain, shown

Steps = Literal["prefill", "all"] | int | slice
PREFILL = "prefill"


def checked_steps(asked: Any) -> Steps:
    """Return steps as they are kept, or refuse them.

    Raises
    ------
    PatchError
        If they are none of these kinds, are counted from an end that is not known, or are empty.
    """
    bare = plain(asked)
    if bare in (PREFILL, "all"):
        return bare
    wrong = (
        f"steps={shown(asked)}. Expected 'prefill', 'all', an int or a slice of ints from 0 on: 0 "
        "is the prefill, and 1 the pass that is fed the first token of the answer."
    )
    if not isinstance(bare, slice) and (isinstance(bare, bool) or not hasattr(bare, "__index__")):
        raise PatchError(wrong)
    steps: Any = index_of(bare, "step", error=PatchError)
    start, stop, stride = (
        (steps.start or 0, steps.stop, steps.step or 1)
        if isinstance(steps, slice)
        else (steps, None, 1)
    )
    if start < 0 or stride < 0 or (stop is not None and stop <= start):
        raise PatchError(wrong)
    return steps


def acts_at(steps: Steps, step: int) -> bool:
    """Whether an edit of these steps acts at one of them."""
    if isinstance(steps, slice):
        start, stop = steps.start or 0, steps.stop
        within = start <= step and (stop is None or step < stop)
        return within and (step - start) % (steps.step or 1) == 0
    return steps == "all" or step == (0 if steps == PREFILL else steps)


def only_in_prefill(steps: Steps) -> bool:
    """Whether an edit acts at no later step."""
    if isinstance(steps, slice):
        start, stride = steps.start or 0, steps.step or 1
        return start == 0 and steps.stop is not None and steps.stop <= stride
    return steps in (PREFILL, 0)


def check_acts_in_prefill(steps: Steps, what: str) -> None:
    """Refuse an edit that does nothing in what is one forward pass."""
    if not acts_at(steps, 0):
        raise PatchError(
            f"{what} acts at steps {steps!r} of a generation, and this is one forward pass, which "
            "is step 0. Give it to iv.complete, or leave steps= out."
        )
