"""Tiny twins of the published pairs as folders, with items that they happen to know.

A random model has no facts; these say letters only. What its backbone says to each question is
made the answer, and some of what the VLM says an accepted one, so that items are recognised, lost
and kept, and every stage of a study has something to run on. The numbers mean nothing.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from published_configs import published_config

import interventions as iv
from interventions.running.greedy import greedy
from twohop.ask.study import Study, image_prompt, text_prompt
from twohop.items.benchmark import data_benchmark
from twohop.items.formats import CHAT, Writer, chat_template_of
from twohop.items.items import Benchmark
from twohop.items.validation import Checked, check
from twohop.published import PUBLISHED

PLACES = ("Bern", "Oslo", "Lima", "Kiel")
SIZES = ((40, 30), (24, 60), (33, 33))  # of the pictures, in turn
ASKED = {"capital": "What is the capital of {}?", "flag": "What is on the flag of {}?"}
VIEWS = 4
UNKNOWN = "The town of many words that no model would say"  # longer than what they say
LONGEST = 8  # tokens of what they say
REPEATING = {"HuggingFaceTB/SmolLM2-1.7B-Instruct"}
"""Models whose head is their embedding, and whose twin so says one word for ever."""
SEEDS = {"Qwen/Qwen3.5-9B": 5}
"""Of weights, where those of seed 0 happen to lose nothing from the picture."""


@dataclass(frozen=True)
class Folders:
    """A pair's twins and their items on disk."""

    vlm: Path
    backbone: Path
    data: Path


@cache
def module_of(repo: str) -> tuple[Any, Any]:
    config = tiny.shrink(published_config(repo))
    if repo in REPEATING:
        config.tie_word_embeddings = False
    module, processor = (
        tiny.build_model(config, seed=SEEDS.get(repo, 0)),
        tiny.tiny_processor(config),
    )
    head: Any = module.get_output_embeddings()
    say_words(head.weight.data, getattr(processor, "tokenizer", processor))
    return module, processor


def say_words(head: torch.Tensor, tokenizer: Any) -> None:
    """Take every other token out of a head [token, d_model]: a logit of 0 is never the largest."""
    for token in range(len(head)):
        if not re.fullmatch(" ?[A-Za-z]+", tokenizer.decode([token])):
            head[token] = 0


def opened(repo: str) -> iv.Model:
    module, processor = module_of(repo)
    if hasattr(module.config, "vision_config"):
        return iv.load(module, processor=processor)
    return iv.load(module, tokenizer=processor)


def rows_of(folder: Path, places: Sequence[str] = PLACES) -> list[dict[str, Any]]:
    """Two questions about each entity, one question left out; pictures of three sizes."""
    rows = []
    for e, name in enumerate(places):
        size = SIZES[e % len(SIZES)]
        images = [f"{name}-{view}.png" for view in range(VIEWS)]
        for view, image in enumerate(images):
            tiny.picture(size, seed=10 * e + view).save(folder / image)
        for relation, question in ASKED.items():
            row = {"id": f"{name}/{relation}", "entity": name, "aliases": [f"{UNKNOWN} {name}"]}
            row |= {"image": images, "relation": relation, "question": question.format(name)}
            rows.append({**row, "answers": [f"{relation} {name}"]})
    return rows[1:]


def written(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(model: iv.Model, prompt: iv.Prompt) -> list[list[int]]:
    prefill = iv.run(model, prompt, keep_cache=True)
    return greedy(model, prefill, max_new_tokens=LONGEST, stop=None).ids


def endings(sequences: Sequence[Sequence[int]]) -> set[int]:
    """Tokens that end every answer behind its second token, or later."""
    kept = {token for ids in sequences for token in ids[:2]}
    several = ([token for token in ids[2:] if token not in kept] for ids in sequences)
    return {ids[0] for ids in several if ids}


def words(model: iv.Model, ids: Sequence[int], ends: set[int]) -> str:
    """What an answer says up to its end, in letters and digits; nothing if it has no end."""
    n = next((i for i, token in enumerate(ids) if token in ends), 0)
    text = str(model.tokenizer.decode(ids[:n], skip_special_tokens=True))
    return " ".join(re.findall("[A-Za-z0-9]+", text.split("\n")[0]))


def in_a_chat(vlm: iv.Model, checked: Checked, *, brief: bool = True) -> Benchmark:
    """The items as a study asks a model with a chat template; ``brief``: to be brief."""
    chat = replace(CHAT, brief=checked.map.brief_in("chat") if brief else None)
    return data_benchmark(checked, Writer(chat, chat_template_of(vlm.processor, name="twin")))


def asked(
    vlm: iv.Model, backbone: iv.Model, checked: Checked, *, brief: bool
) -> dict[str, list[list[int]]]:
    """What each model says, by who is asked of what: to names, to pictures, and as names."""
    benchmark = in_a_chat(vlm, checked, brief=brief)
    study = Study(vlm=vlm, backbone=backbone, benchmark=benchmark)
    found: dict[str, list[list[int]]] = {"text": [], "image": [], "name": []}
    for item in benchmark.items:
        template, one = benchmark.templates[item.relation], [item.entity]
        found["text"] += said(backbone, text_prompt(backbone, template, one))
        found["image"] += said(vlm, image_prompt(study, template, one))
        found["name"] += said(vlm, image_prompt(study, benchmark.naming, one))
    return found


def answered(
    vlm: iv.Model, backbone: iv.Model, rows: list[dict[str, Any]], data: Path, *, brief: bool = True
) -> None:
    """Make what the models say the rows' answers, and let the models end their answers there."""
    heard = asked(vlm, backbone, check(written(data, rows)), brief=brief)
    sequences = [ids for several in heard.values() for ids in several]
    ends = endings(sequences) | vlm.end_ids | backbone.end_ids
    for i, row in enumerate(rows):
        text, image, name = (words(vlm, heard[who][i], ends) for who in ("text", "image", "name"))
        if text:
            row["answers"] = [text]
        if image and i % 3 == 0:
            row["answers"].append(image)
        if name:
            row["aliases"].append(name)
    for model in (vlm, backbone):
        model.module.generation_config.eos_token_id = sorted({*model.end_ids, *ends})
    written(data, rows)


def make(key: str, folder: Path, *, brief: bool = True) -> Folders:
    """Write a published pair's twins and their items to a folder; ``brief``: as a study asks."""
    pair = PUBLISHED[key]
    folder.mkdir(parents=True, exist_ok=True)
    vlm = opened(pair.vlm)
    backbone = vlm if pair.same_weights else opened(pair.backbone)
    data = folder / "items.jsonl"
    answered(vlm, backbone, rows_of(folder), data, brief=brief)
    places = {
        role: tiny.save_model(*module_of(repo), folder / role / key)
        for role, repo in (("vlm", pair.vlm), ("backbone", pair.backbone))
    }
    if pair.same_weights:
        places["backbone"] = places["vlm"]
    return Folders(data=data, **places)
