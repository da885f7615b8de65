"""What things are called on the page, in plain words, and in which order they come."""

GATES = {
    "recognised": "VLM names the entity",
    "backbone_text": "Backbone, name in text",
    "vlm_text": "VLM, name in text",
    "vlm_image": "VLM, entity in image",
    "vlm_blank": "VLM, blank image",
}

RULES = {
    "sum": "forced choice",
    "per_token": "forced, per token",
    "prior_corrected": "forced, less the prior",
}

FORCED = (
    "The forced choice is that of the largest log-probability summed over an answer's tokens, and "
    "all else here goes by it: on flags it is right more often than the two beside it. These are "
    "the largest mean per token, and the largest gain over a prompt that tells nothing of the "
    "entity: a blank image, or “it” for the name. A blank image has no gain over itself."
)

OUTCOMES = {
    "right": ("right", "an accepted answer"),
    "same_type": (
        "wrong, right type",
        "another answer of the same relation, alone or beside the right one",
    ),
    "echo": (
        "names the entity",
        "the entity's name instead of the answer: recall may be there, and masked",
    ),
    "other": ("something else", "neither a known answer nor the entity's name, or a refusal"),
    "empty": ("empty", "no letter and no digit"),
}

VERDICTS = {
    "right": ("right from the image", "the VLM answers from the image"),
    "knowledge_missing": ("knowledge missing", "the backbone does not know the fact in text"),
    "not_recognised": ("not recognised", "the VLM does not name the entity"),
    "echo_or_format": ("echo or format", "right among given candidates, wrong in its own words"),
    "late": (
        "late",
        "the entity can be read, but only after the deadline of the form it then has; the "
        "transplant gives the answer back, and back-patching gives back more than both its nulls",
    ),
    "never_in_circuit": (
        "never in the circuit",
        "a probe can find the entity, and none reads it in the backbone's form, though they read "
        "the VLM's own text; the transplant gives the answer back, and back-patching was shown not "
        "to help",
    ),
    "in_time": (
        "in time, and lost all the same",
        "the entity can be read in the backbone's form before that form's deadline",
    ),
    "unexplained": (
        "unexplained",
        "the tests could tell, and none of these three is the case: the transplant fails, say",
    ),
    "not_tested": (
        "not tested enough",
        "a test that the verdict would rest on cannot tell on so many items",
    ),
}

TIMES = {
    "early": ("in time", "read before the deadline of the form it has"),
    "between": ("at the deadline", "read within the interval of that deadline"),
    "late": ("too late", "read only after that deadline"),
    "never": ("never", "read in the backbone's form at no layer"),
    "unknown": ("of unknown form", "read, in a form of which the timetable knows no deadline"),
    "blocks": ("median delay, blocks", "from the deadline to where it is read; positive: too late"),
}

PLACES = {
    "image": "the mean of the image tokens",
    "last_image": "the last image token",
    "last": "the last token",
}
"""Roles of the resolution that have words of their own."""

EVIDENCE_STATES = {
    "shown": "shown",
    "absent": "shown not to matter",
    "open": "cannot tell",
}

ARCHITECTURES = {
    "llava": "LLaVA-style",
    "native": "native",
    "cross-attention": "cross-attention",
    "other": "other, or not recorded",
}

AGAINST = {"late": "share of entities late", "expected_loss": "predicted loss"}
"""What the gap of pairs is held against."""
COMPONENTS = {"attn_out": "attention", "mlp_out": "MLP", "resid_post": "residual stream"}
MAPS = {"text": "Backbone, text", "image": "VLM, image"}
MAP_GROUPS = {"right": "answered right", "lost": "lost"}
SIMILARITIES = {
    "sublayers": "attention and MLP",
    **{name: f"  {label}" for name, label in COMPONENTS.items()},
    "all": "all cells",
}
MAP_ROLES = {"entity": "entity", "between": "between", "last": "last token"}
