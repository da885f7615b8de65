"""What went wrong, what was expected, and what to do about it.

Every error a user can cause derives from :class:`InterventionsError`, so that a command line can
show its message without a traceback. A message names what was got, what was expected and the fix.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from typing import Any


class InterventionsError(Exception):
    """Base of every error this project raises on purpose."""


class LoadError(InterventionsError):
    """A model, processor or folder cannot be loaded, or is not of a kind that is supported."""


class UpstreamError(InterventionsError):
    """A model that cannot run, for a fault in the version of transformers that is installed."""


class PromptError(InterventionsError):
    """Text, images or spans that do not fit together."""


class PromptWarning(UserWarning):
    """A prompt that does not begin as the model was trained to see one."""


class PictureError(PromptError):
    """A picture that cannot be shown to a model, or not in one way only.

    Attributes
    ----------
    reason : str
        Of which kind the trouble is, in a word such as ``image_missing``, to count and to sort by.
    """

    def __init__(self, reason: str, said: str) -> None:
        PromptError.__init__(self, reason, said)
        self.reason = reason
        self.said = said

    def __str__(self) -> str:
        """Return what was got, what was expected and what to do."""
        return self.said


class RoleError(InterventionsError):
    """A token role that a prompt, or some of its rows, does not have."""


class SiteError(InterventionsError):
    """A component, layer or position that the model or the running prompt does not have."""


class PatchError(InterventionsError):
    """A value that cannot be written where it was asked to go."""


class BudgetTooSmall(PatchError):
    """Patches, or rows, that need more memory than they may take."""


class ModeError(InterventionsError):
    """A model in train mode, in which dropout makes its numbers a matter of chance."""


class AlignmentError(InterventionsError):
    """Two models between which nothing can be patched."""


class ProbeError(InterventionsError):
    """Activations and labels that no probe can be fitted to."""


class ResultsError(InterventionsError):
    """A results folder that cannot be read, or that belongs to other settings."""


class RemoteError(InterventionsError):
    """A server that cannot be reached, does not take the request, or cannot run it."""


class JobError(RemoteError):
    """The code of a request failed on the server; its message and the user's line are shown."""


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was stopped by Ctrl-C.

    Attributes
    ----------
    dataset : Dataset
        What is done; NaN elsewhere.
    """

    def __init__(self, dataset: Any, out: Any) -> None:
        more = f"; run the same again to go on in {out}" if out is not None else ""
        KeyboardInterrupt.__init__(self, f"stopped: error.dataset holds what is done{more}")
        self.dataset = dataset


class JobTimeout(RemoteError):
    """A job is not done in time; it goes on, and waiting for it can be taken up again."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a sentence that names the nearest known spelling, then every known one.

    Parameters
    ----------
    given : str
        What the user wrote.
    known : iterable of str
        What would have been accepted.

    Examples
    --------
    >>> did_you_mean("entitty", ["entity", "last"])
    "Did you mean 'entity'? Known: entity, last."
    >>> did_you_mean("mlp", ["mlp_out", "mlp_in"])
    "Did you mean 'mlp_out'? Known: mlp_out, mlp_in."
    """
    names = list(known)
    close = get_close_matches(given, names, n=max(1, len(names)))
    # Of those that begin so, or are equally near, the first that is known.
    near = {name: SequenceMatcher(None, name, given).ratio() for name in close}
    begins = {name: bool(given) and name.startswith(given) for name in close}
    close.sort(
        key=lambda name: (not begins[name], not begins[name] and -near[name], names.index(name))
    )
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) or 'none'}."
