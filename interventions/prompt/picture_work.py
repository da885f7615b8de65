"""What an image processor did: the settings it worked with, and what it returned.

They come from its class, its folder, the processor of texts and images, and the call, each over the
other in an order that only transformers knows; so they are caught where they arrive.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.image_processing_utils import BaseImageProcessor

STEP = "_preprocess"
"""What does the work in transformers' image processors, with all settings read."""


@dataclass
class Work:
    """What an image processor did with the pictures of one row.

    Attributes
    ----------
    settings : dict
        Empty for one that does not work as transformers' do.
    output : dict
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)


def watched(processor: Any) -> tuple[Any, Work]:
    """Return a copy of an image processor that keeps what it did last, and where it keeps it."""
    work = Work()
    step = getattr(processor, STEP, None)
    if not isinstance(processor, BaseImageProcessor) or step is None:
        return processor, work
    own = copy.copy(processor)

    def kept(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        work.settings, work.output = dict(kwargs), dict(output)
        return output

    setattr(own, STEP, kept)
    return own, work
