"""What things are called on the page, in plain words, and in which order they come."""

GATES = {
    "recognised": "VLM names the entity",
    "backbone_text": "Backbone, name in text",
    "vlm_text": "VLM, name in text",
    "vlm_image": "VLM, entity in image",
    "vlm_blank": "VLM, blank image",
}

OUTCOMES = {
    "right": ("right", "an accepted answer"),
    "same_type": ("wrong, right type", "another answer of the same relation"),
    "echo": (
        "names the entity",
        "the entity's name instead of the answer: recall may be there, and masked",
    ),
    "other": ("something else", "neither a known answer nor the entity's name"),
    "empty": ("empty", "nothing, or only punctuation"),
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

ARM_GROUPS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "Transplant: the backbone's entity",
        {
            "transplant_all_image": "into all image tokens",
            "transplant_last_image": "into the last image token",
            "transplant_all_image_mlp": "MLP outputs only, all image tokens",
        },
    ),
    (
        "Controls: what should not help",
        {
            "transplant_random_position": "same values, random text tokens",
            "wrong_entity": "another entity's values",
            "mean_entity": "mean over entities",
            "norm_matched": "random vector, same norm",
        },
    ),
    (
        "Back-patching: the VLM's own later state",
        {
            "back_patching": "layers fixed on other entities",
            "back_patching_null": "same, another picture (null)",
            "back_patching_grid_mean": "mean over all layer pairs",
            "back_patching_oracle": "best pair per item (oracle)",
            "back_patching_null_oracle": "best pair per item, null",
        },
    ),
    (
        "Chain of thought: name it, then ask",
        {
            "cot_named": "the VLM's own name",
            "cot_gold": "the right name given",
            "cot_wrong": "a wrong name given",
        },
    ),
)

COMPONENTS = {"attn_out": "attention", "mlp_out": "MLP", "resid_post": "residual stream"}
MAP_ROLES = {"entity": "entity", "between": "between", "last": "last token"}


def arm_groups(known: list[str]) -> list[tuple[str, dict[str, str]]]:
    """Groups of the arms that a run has, in order; arms without a label come last."""
    groups = [
        (title, {arm: label for arm, label in arms.items() if arm in known})
        for title, arms in ARM_GROUPS
    ]
    labelled = {arm for _, arms in ARM_GROUPS for arm in arms}
    rest = {arm: arm.replace("_", " ") for arm in known if arm not in labelled}
    return [(title, arms) for title, arms in (*groups, ("Other arms", rest)) if arms]


def arm_label(arm: str) -> str:
    """Full name of an arm, to be read on its own."""
    for title, arms in ARM_GROUPS:
        if arm in arms:
            return f"{title.split(':')[0].removesuffix('s')}: {arms[arm]}"
    return arm.replace("_", " ")


HOW_TO_READ = {
    "gates": (
        "Every fact is asked several times: of the backbone with the entity's name in text, of the "
        "VLM with the name in text, and of the VLM with the entity in an image. The blank image shows "
        "what the question alone gives away. A free answer is what the model writes. A forced choice "
        "takes the most probable of the relation's answers, so it cannot be lost to bad format. The gap "
        "is text minus image, counted only where the VLM names the entity."
    ),
    "outcomes": (
        "A wrong answer can be wrong in several ways. The first bar sorts the image answers by what was "
        "said, on recognised items. The second gives every item one reason, the first that holds in the "
        "order shown, on all items."
    ),
    "resolution": (
        "Layer l is the input of block l. The plain probe asks whether the entity can be told from the "
        "image tokens at all. The transfer probe asks more: it is fitted on the backbone's own text "
        "states, so it tells whether the entity is there in the form that the backbone's recall reads. "
        "The shaded blocks are where the backbone does its recall. An entity whose transfer curve rises to "
        "the right of the shading comes too late."
    ),
    "windows": (
        "Measured on the backbone alone, in text. One curve: how many answers survive when the MLPs from "
        "this block up are replaced by their mean at the entity's tokens. Where it reaches 90 % of its "
        "full value, the recall is done and the enrichment window ends. Other curve: how often the answer "
        "follows another entity whose state is swapped in after this block. Where it falls below 10 % of "
        "its maximum, the entity's tokens are read no more."
    ),
    "map": (
        "A run about one entity is patched with values from a run about another. Red cells bring the "
        "answer over: 1 is all of it, 0 is nothing, blue is the opposite. Left: the backbone in text. "
        "Right: the VLM with an image. If the right side looks like the left one, the VLM uses the same "
        "places."
    ),
    "recovery": (
        "Only items that the VLM recognises, the backbone knows, and the VLM gets wrong from the image. "
        "Each bar is the share answered right after one intervention. A transplant counts only as far as "
        "it beats its controls. A diamond shows how often the answer follows the wrong entity that was put "
        "in: high means that the place is read."
    ),
    "harm": (
        "The same interventions on items that were right from the image. Less than 100 % is damage done."
    ),
    "examples": (
        "Items picked by class, not by interest: one for each diagnosis and each kind of image answer, "
        "then more of the largest classes."
    ),
}

TERMS = {
    "backbone": "the language model that the VLM was built on, asked in text only",
    "recognised": "the VLM, asked what the image shows, names the entity",
    "hop 1, hop 2": "from the image to the entity; from the entity to the fact",
    "interval": "95 %, bootstrap over entities, as questions about one entity are not independent",
    "points": "percentage points of accuracy",
    "relative gap": "the gap as a share of the backbone's accuracy in text",
    "enrichment window": (
        "the blocks whose MLPs are needed at the entity's tokens, in the backbone's text run"
    ),
    "read-out window": "the blocks up to which the answer is still read from the entity's tokens",
    "resolution depth": "first layer at which a probe's curve is at 90 % of its maximum",
    "lateness": (
        "resolution depth on the image tokens minus the last block of the enrichment window, in "
        "layers; positive is too late"
    ),
    "best constant": "accuracy of always giving the relation's most common answer",
    "surface item": (
        "the answer starts with the same token as the entity's name; left out of every number here"
    ),
    "lost item": "recognised, right in text, wrong from the image",
    "null": "the same search with the states of another entity's picture",
}

LIMITS = (
    "It is an independent study after Too Late to Recall (Venhoff et al., arXiv 2512.03276). The paper's "
    "code and items are not public, so the definitions are this project's own. Compare directions and "
    "order with the paper, not digits.",
    "Decodable is not used. A linear probe can read an entity that no later layer reads. No order of "
    "events is inferred from one curve.",
    "“Late” has to be earned: the transfer probe rises after the window closes, the transplant helps, "
    "and back-patching beats its null. Anything short of that is called something else.",
    "One picture of each entity is scored (view 0 of the held-out pictures). How answers vary over "
    "pictures is not in the intervals, and neither is how results vary over training runs of the VLM.",
    "The patching maps are drawn on a few items that the model answers right. The image map therefore "
    "shows how the VLM succeeds, not how it fails.",
    "The arms of the recovery are not all tried on the same items; n says on how many. Back-patching is "
    "scored on the entities that did not choose its layers. Back-patching and random positions must "
    "give the canonical answer word for word, while the other arms may give any accepted answer.",
    "An interval of zero width at 0 % or 100 % is a limit of the bootstrap, not certainty. With k "
    "entities, a true rate up to about 3/k away cannot be excluded.",
    "McNemar’s test takes items as independent, which the questions about one entity are not. Trust the "
    "interval of the gap before the p-value.",
)
