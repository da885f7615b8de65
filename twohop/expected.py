"""How many prompts a stage runs, for its progress bar."""

from collections.abc import Mapping

import xarray as xr

from twohop.asking import Study, another, by_relation
from twohop.back_patching import dev_part, layer_pairs
from twohop.heuristic import places
from twohop.localize import MAP_COMPONENTS, window_edges
from twohop.places import has_image_tokens
from twohop.recall import same_decoder
from twohop.resolution import probed_relation
from twohop.stages import in_circuit
from twohop.swaps import MAP_ROLES, swapped_items
from twohop.transplant import PATCH_ARMS
from twohop.window import known_items

CHAINS = 3  # the chain of thought's arms
HARM_ARMS = 3  # tried on items that are right from the image
SAMPLED = 32  # entities whose pictures' sizes are looked at


def expected_rows(stage: str, study: Study, done: Mapping[str, xr.Dataset]) -> int:
    """About how many rows a stage will tick.

    Parameters
    ----------
    stage : str
    study : Study
    done : mapping of str to Dataset
        The results that the stage is given.
    """
    n_items = len(study.benchmark.items)
    if stage == "backbone_text":
        return n_items
    if stage == "recall":
        asked = 1 if same_decoder(study.vlm, study.backbone) else 2
        return len(study.benchmark.entities) + asked * n_items + blanks(study)
    if stage == "resolution":
        return resolution_rows(study)
    if stage == "windows":
        known = in_circuit(stage, done)
        most = study.protocol.window_items
        items = known_items(study.benchmark.items, known, seed=study.seed, limit=most)
        with_rival = sum(one is not None for one in another(study, items))
        return len(items) * (study.backbone.n_layers + 1) + with_rival * study.backbone.n_layers
    if stage in ("map_text", "map_image"):
        return map_rows(stage, study, done)
    if stage in ("attribution_text", "attribution_image"):
        return done[stage.replace("attribution", "map")].sizes["map_item"]
    return recovery_rows(study, done["recall"]) if stage == "recovery" else 0


def blanks(study: Study) -> int:
    """Blank images asked about: one per relation and size of picture, told from a few sizes."""
    benchmark = study.benchmark
    some = benchmark.entities[:SAMPLED]
    sizes = {benchmark.view(entity.code, 0).size for entity in some}
    of_one_size = len(benchmark.relations)
    share = (len(sizes) - 1) / max(len(some) - 1, 1)
    return of_one_size + round(share * (len(benchmark.items) - of_one_size))


def resolution_rows(study: Study) -> int:
    """Rows of the probes' states: every picture, every name in every question, one relation's."""
    benchmark = study.benchmark
    probed = dict(by_relation(benchmark.items))[probed_relation(benchmark)]
    pictures = (1 + len(study.protocol.fit_views)) * len(benchmark.entities)
    names = len(benchmark.items) + len(benchmark.entities)
    return pictures + names + len(probed)


def map_rows(stage: str, study: Study, done: Mapping[str, xr.Dataset]) -> int:
    """Rows of a map: every cell on every item, and each item's two bare runs."""
    shown = stage == "map_image"
    model = study.vlm if shown else study.backbone
    roles = len(MAP_ROLES) if has_image_tokens(model) or not shown else len(MAP_ROLES) - 1
    swapped = swapped_items(study, model, in_circuit(stage, done), shown=shown)
    windows = len(window_edges(model.n_layers, most=study.protocol.map_windows)) - 1
    return len(swapped) * (windows * len(MAP_COMPONENTS) * roles + 2)


def recovery_rows(study: Study, gates: xr.Dataset) -> int:
    """Rows of every arm."""
    protocol = study.protocol
    items = study.benchmark.items
    right = {gate: gates["right"].sel(gate=gate).values for gate in gates["gate"].values}
    able = right["recognised"] & right["backbone_text"] & ~gates["surface"].values
    lost = able & ~right["vlm_image"]
    tried = known_items(items, lost, seed=study.seed, limit=protocol.lost_items)
    kept = min(protocol.kept_items, int((able & right["vlm_image"]).sum()))
    dev = int(dev_part(tried, seed=study.seed, protocol=protocol).sum())
    pairs = layer_pairs(study.vlm.n_layers, protocol=protocol)
    arms = len(PATCH_ARMS) - 1 + CHAINS + 2 * len(pairs)
    found = len(tried) * arms + min(protocol.random_items, len(tried)) * protocol.random_seeds
    if dev:
        found += dev * len(places(study)) + len(tried) - dev
    return found + int(lost.sum()) + HARM_ARMS * kept
