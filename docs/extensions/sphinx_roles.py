"""Docstrings name things by Sphinx roles; on the pages these are links, where there is a page."""

import re
from typing import Any

from griffe import Extension

ROLE = re.compile(r":(?:func|class|meth|attr|data|mod|exc):`(?P<short>~?)(?P<target>[\w.]+)`")
LITERAL = re.compile(r"::$", re.MULTILINE)
AXES = re.compile(r"^(?! *(?:>>>|\.\.\.) )[^`\n]*\]\[[^`\n]*$", re.MULTILINE)
"""Two axes beside each other in a line of prose, which Markdown would take for a link."""


def linked(match: re.Match[str], module: str) -> str:
    """Return a reference that is a link if its target has a page, and code if not."""
    target = match["target"]
    shown = target.split(".")[-1] if match["short"] or "." in target else target
    path = target if "." in target else f"{module}.{target}"
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'


class SphinxRoles(Extension):
    """Rewrite the roles of every docstring before it is parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is None:
            return
        module = obj.module.path
        text = ROLE.sub(lambda match: linked(match, module), obj.docstring.value)
        text = AXES.sub(lambda match: match[0].replace("][", "]\\["), text)
        obj.docstring.value = LITERAL.sub(":", text)
