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
    "never_in_circuit": (
        "never in the circuit",
        "a probe can find the entity, but not in the backbone's form at any layer of the window; "
        "the transplant gives the answer back, back-patching does not beat its null",
    ),
    "late": (
        "late",
        "the entity first appears in the backbone's form after the window has closed; the "
        "transplant gives the answer back, and back-patching beats its null",
    ),
    "unexplained": ("unexplained", "none of the above, failed transplants included"),
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
