"""What a hub's refusal means, and what to do: a gated repo, no token, a token that is not taken."""

from collections.abc import Iterator
from typing import Any

FORBIDDEN = (401, 403)


def refusal(error: BaseException) -> str | None:
    """Say why the hub does not give a repo, and what to do; None if that is not what went wrong.

    Parameters
    ----------
    error : BaseException
        What opening raised; what it came from is looked at too.

    Returns
    -------
    str or None
        Sentences that follow the name of what was asked for.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    answer = next((part for part in _causes(error) if isinstance(part, HfHubHTTPError)), None)
    status = getattr(getattr(answer, "response", None), "status_code", None)
    if answer is None or status not in FORBIDDEN:
        return None
    repo, page = _asked_for(answer)
    own = "Run `hf auth login`, or set HF_TOKEN to a token of that account"
    if isinstance(answer, GatedRepoError):
        terms = f"{repo} is gated: its owner gives it to accounts that accept the terms at {page}."
        if get_token() is None:
            return f"{terms} Nobody is logged in here. Accept them, then: {own}, and try again."
        return (
            f"{terms} The account of the token that is set here has no access (HTTP {status}). "
            "Accept them with that account and wait until it is granted, or use a token of one "
            "that has it; a fine-grained token also needs the right to read gated repos."
        )
    if get_token() is None:
        return (
            f"the hub gives {repo} to nobody who is not logged in (HTTP {status}): there is no "
            f"such repo, or it is private. Look for a slip in its name; else: {own} that may read "
            "it."
        )
    return (
        f"the hub does not take the token that is set here for {repo} (HTTP {status}): it is "
        "mistyped, has expired, or may not read this repo. Make another one at "
        f"https://huggingface.co/settings/tokens. {own}."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _asked_for(answer: Any) -> tuple[str, str]:
    """The repo that an answer is about, and its page."""
    url = str(answer.response.url)
    start, _, rest = url.partition("/resolve/")
    if not rest:
        start, _, _ = url.partition("/revision/")
    repo = "/".join(start.removesuffix("/").split("/")[-2:])
    return repr(repo), start.replace("/api/models/", "/")
