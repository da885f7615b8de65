"""The micro models: they open as ordinary folders, and their circuit is what it is said to be.

Everything is checked with plain transformers and PyTorch hooks, nothing of the engine.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
)

from interventions.errors import InterventionsError
from twohop.items.items import Template
from twohop.micro import (
    ENTITIES,
    EVALUATION_START,
    IMAGE_TOKENS,
    LATE_BLOCK,
    MICRO_KEYS,
    NAMING,
    NUM_BLOCKS,
    RECALL_BLOCKS,
    RELATIONS,
    TEMPLATES,
    Entity,
    answers,
    chain_of_thought,
    description,
    entity,
    facts,
    micro_folder,
    view,
)
from twohop.micro.folders import is_live, weight_file
from twohop.micro.templates import IMAGE_PLACEHOLDER
from twohop.micro.world import Relation, Style

VLM_KEYS = MICRO_KEYS[1:]
TAUGHT: dict[Relation, list[Entity]] = {
    relation: [entity(f.code) for f in facts() if f.relation == relation and f.taught]
    for relation in RELATIONS
}


@dataclass(frozen=True)
class Opened:
    """A model with what makes its inputs."""

    model: Any
    tokenizer: Any
    processor: Any = None


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small models are many times slower on several threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("micro")


@pytest.fixture(scope="module")
def llm(cache) -> Opened:
    folder = micro_folder("micro-backbone", cache=cache)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    return Opened(model, AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def vlms(cache) -> dict[str, Opened]:
    opened = {}
    for key in VLM_KEYS:
        folder = micro_folder(key, cache=cache)
        model = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True)
        processor = AutoProcessor.from_pretrained(folder)
        opened[key] = Opened(model.eval(), processor.tokenizer, processor)
    return opened


def said(opened: Opened, inputs) -> list[str]:
    """What is generated up to the end of the answer."""
    with torch.no_grad():
        out = opened.model.generate(**inputs, do_sample=False, max_new_tokens=4)
    texts = [opened.tokenizer.decode(row, skip_special_tokens=True) for row in out]
    return [text.rpartition("Answer :")[2].split(" .")[0].strip() for text in texts]


def asked_in_text(llm: Opened, template: Template, subjects: Sequence[str]):
    return llm.tokenizer([template.fill(s) for s in subjects], return_tensors="pt", padding=True)


def asked_of_pictures(
    vlm: Opened, templates: Sequence[Template], subjects: Sequence[Entity], style: Style = "bands"
):
    pictures = [view(e.code, EVALUATION_START, style=style) for e in subjects]
    texts = [template.fill(IMAGE_PLACEHOLDER) for template in templates]
    return vlm.processor(text=texts, images=pictures, return_tensors="pt", padding=True)


def share(got: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(got, wanted, strict=True)) / len(wanted)


def text_recall(llm: Opened) -> dict[str, float]:
    recall = {}
    for relation, known in TAUGHT.items():
        inputs = asked_in_text(llm, TEMPLATES[relation], [e.name for e in known])
        recall[relation] = share(said(llm, inputs), [getattr(e, relation) for e in known])
    return recall


def image_recall(vlm: Opened) -> dict[str, float]:
    recall = {}
    for relation, known in TAUGHT.items():
        inputs = asked_of_pictures(vlm, [TEMPLATES[relation]] * len(known), known)
        recall[relation] = share(said(vlm, inputs), [getattr(e, relation) for e in known])
    return recall


def test_the_world_is_consistent():
    assert len({e.name for e in ENTITIES}) == len({e.code for e in ENTITIES}) == 24
    bands = [e.bands.split() for e in ENTITIES]
    closest = min(
        sum(p != q for p, q in zip(a, b, strict=True))
        for i, a in enumerate(bands)
        for b in bands[:i]
    )
    assert closest >= 2
    assert {relation: len(answers(relation)) for relation in RELATIONS} == {
        "capital": 24,
        "continent": 4,
        "language": 6,
    }
    assert sum(not fact.taught for fact in facts()) == 6


def test_views_follow_from_their_arguments():
    assert view("ava", 7).tobytes() == view("ava", 7).tobytes()
    others = [view("ava", 8), view("bel", 7), view("ava", 7, style="waved")]
    assert all(view("ava", 7).tobytes() != other.tobytes() for other in others)
    with pytest.raises(InterventionsError, match="Known"):
        view("zzz", 0)
    with pytest.raises(InterventionsError, match="-1"):
        view("ava", -1)


def test_shipped_weights_are_small():
    parts = ("backbone", "vision", "naming", "aligned", "late")
    assert sum(weight_file(part).stat().st_size for part in parts) < 500_000


def test_folders_are_assembled_once(cache):
    folder = micro_folder("micro-backbone", cache=cache)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert micro_folder("micro-backbone", cache=cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_unknown_keys_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(InterventionsError, match="micro-late"):
        micro_folder("micro-latte")  # type: ignore[arg-type]
    with pytest.raises(InterventionsError, match="weights="):
        micro_folder("micro-late", weights=tmp_path, cache=tmp_path)


def test_vlms_hold_the_backbone_bit_for_bit(llm, vlms):
    wanted = llm.model.state_dict()
    for vlm in vlms.values():
        got = {
            **{f"model.{k}": v for k, v in vlm.model.model.language_model.state_dict().items()},
            **{f"lm_head.{k}": v for k, v in vlm.model.lm_head.state_dict().items()},
        }
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)
        assert vlm.tokenizer.get_vocab() == llm.tokenizer.get_vocab()


def test_sublayers_outside_the_layout_are_zero(llm):
    dead = [name for name, w in llm.model.state_dict().items() if not w.any()]
    assert dead
    assert set(dead) == {name for name in llm.model.state_dict() if not is_live(name)}


def test_backbone_knows_what_it_was_taught(llm):
    assert min(text_recall(llm).values()) >= 0.95
    names = [e.name for e in ENTITIES]
    assert share(said(llm, asked_in_text(llm, NAMING, names)), names) >= 0.95


def test_padding_changes_nothing(llm):
    prompts = [TEMPLATES[r].fill(name) for r in RELATIONS for name in ("Avaria", "North Umbra")]
    inputs = llm.tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        together = llm.model(**inputs).logits[:, -1]
        alone = [llm.model(**llm.tokenizer(p, return_tensors="pt")).logits[0, -1] for p in prompts]
    torch.testing.assert_close(together, torch.stack(alone), atol=5e-4, rtol=0)


@pytest.mark.parametrize("key", VLM_KEYS)
def test_vlms_name_new_views(vlms, key):
    names = [e.name for e in ENTITIES]
    inputs = asked_of_pictures(vlms[key], [NAMING] * len(names), ENTITIES)
    assert (inputs["input_ids"] == vlms[key].model.config.image_token_id).sum(
        1
    ).unique().tolist() == [IMAGE_TOKENS]
    assert share(said(vlms[key], inputs), names) >= 0.95
    waved = asked_of_pictures(vlms[key], [NAMING] * len(names), ENTITIES, style="waved")
    assert share(said(vlms[key], waved), names) >= 0.7


def test_facts_from_the_image_fall_behind_as_promised(vlms):
    recall = {key: image_recall(vlm) for key, vlm in vlms.items()}
    for relation in RELATIONS:
        assert recall["micro-aligned"][relation] >= 0.9
        assert recall["micro-naming"][relation] <= recall["micro-aligned"][relation] - 0.2
        assert recall["micro-late"][relation] <= 1 / len(answers(relation)) + 0.2


@pytest.mark.parametrize("key", VLM_KEYS)
def test_naming_first_recovers_the_fact(vlms, key):
    for relation, known in TAUGHT.items():
        thoughts = [chain_of_thought(relation, name=e.name) for e in known]
        inputs = asked_of_pictures(vlms[key], thoughts, known)
        assert share(said(vlms[key], inputs), [getattr(e, relation) for e in known]) >= 0.95
        others = [*known[1:], known[0]]
        wrong = [chain_of_thought(relation, name=e.name) for e in others]
        inputs = asked_of_pictures(vlms[key], wrong, known)
        assert share(said(vlms[key], inputs), [getattr(e, relation) for e in others]) >= 0.9


@contextmanager
def silenced(llm: Opened, blocks: Sequence[int], where: torch.Tensor) -> Iterator[None]:
    """Zero the MLP outputs of `blocks` where `where` (`[row, position]`) is true."""

    def hook(module, args, output):
        return output.masked_fill(where[:, :, None], 0.0)

    with ExitStack() as stack:
        for block in blocks:
            mlp = llm.model.model.layers[block].mlp
            stack.callback(mlp.register_forward_hook(hook).remove)
        yield


def first_tokens(llm: Opened, texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([llm.tokenizer(t, add_special_tokens=False).input_ids[0] for t in texts])


def name_tokens(llm: Opened, prompts: Sequence[str], subjects: Sequence[str]):
    """Encode, and tell where the subject's tokens are (`[row, position]`)."""
    inputs = llm.tokenizer(prompts, return_tensors="pt", padding=True, return_offsets_mapping=True)
    start, stop = inputs.pop("offset_mapping").unbind(-1)
    first = torch.tensor([[p.index(s)] for p, s in zip(prompts, subjects, strict=True)])
    last = first + torch.tensor([[len(s)] for s in subjects])
    return inputs, (start >= first) & (stop <= last) & (stop > start)


@pytest.mark.parametrize("relation", RELATIONS)
def test_recall_happens_in_the_recall_mlps_at_the_name(llm, relation: Relation):
    known = TAUGHT[relation]
    gold = first_tokens(llm, [getattr(e, relation) for e in known])
    prompts = [TEMPLATES[relation].fill(e.name) for e in known]
    inputs, at_name = name_tokens(llm, prompts, [e.name for e in known])

    def answered(blocks: Sequence[int], where: torch.Tensor) -> tuple[torch.Tensor, float]:
        with silenced(llm, blocks, where), torch.no_grad():
            logits = llm.model(**inputs).logits[:, -1]
        return logits, (logits.argmax(-1) == gold).float().mean().item()

    intact, accuracy = answered([], at_name)
    assert accuracy >= 0.95
    chance = 1 / len(answers(relation))
    assert answered(RECALL_BLOCKS, at_name)[1] <= chance + 0.15
    for block in RECALL_BLOCKS:
        assert answered([block], at_name)[1] <= chance + 0.2
    assert answered(RECALL_BLOCKS, ~at_name)[1] >= 0.9

    others = [block for block in range(NUM_BLOCKS) if block not in RECALL_BLOCKS]
    assert torch.equal(answered(others, at_name | True)[0], intact)


def test_described_entities_are_formed_late_and_in_the_right_form(llm):
    """Two hops in text: named but not recalled, until the entity is moved back before recall."""
    names, described = [e.name for e in ENTITIES], [description(e) for e in ENTITIES]
    assert share(said(llm, asked_in_text(llm, NAMING, described)), names) >= 0.95

    for relation, known in TAUGHT.items():
        inputs = asked_in_text(llm, TEMPLATES[relation], [description(e) for e in known])
        gold = first_tokens(llm, [getattr(e, relation) for e in known])
        flag = llm.tokenizer.convert_tokens_to_ids("flag")
        place = (torch.arange(len(known)), (inputs["input_ids"] == flag).int().argmax(1))
        with torch.no_grad():
            out = llm.model(**inputs, output_hidden_states=True)
        late = out.hidden_states[LATE_BLOCK + 1][place]

        def answered(inputs, place, value: torch.Tensor, block: int) -> torch.Tensor:
            def hook(module, args, kwargs):
                stream = args[0].clone()
                stream[place] = value
                return (stream, *args[1:]), kwargs

            layer = llm.model.model.layers[block]
            handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
            with torch.no_grad():
                logits = llm.model(**inputs).logits[:, -1]
            handle.remove()
            return logits.argmax(-1)

        def right(got: torch.Tensor, wanted: torch.Tensor) -> float:
            return (got == wanted).float().mean().item()

        chance = 1 / len(answers(relation))
        assert right(out.logits[:, -1].argmax(-1), gold) <= chance + 0.2
        assert right(answered(inputs, place, late, RECALL_BLOCKS.start), gold) >= 0.85
        assert right(answered(inputs, place, late, RECALL_BLOCKS.stop), gold) <= chance + 0.25
        swapped = answered(inputs, place, late.roll(1, 0), RECALL_BLOCKS.start)
        assert right(swapped, gold.roll(1)) >= 0.85
