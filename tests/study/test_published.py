"""The published pairs: their configs have the shapes of what is published."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch
from published_configs import backbone_config, published_config, vlm_config
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from interventions.errors import InterventionsError
from twohop.cli import main
from twohop.pairs import PAIRS, find_pair, what_it_takes
from twohop.published import PUBLISHED, Count, PublishedPair
from twohop.published.hosts import Gpu, ask_ndif, where_it_could_run

LLAMA_31_8B = "meta-llama/Llama-3.1-8B-Instruct"
PROTOCOL = {
    "llava-1.5-7b": ("llava-hf/llava-1.5-7b-hf", "lmsys/vicuna-7b-v1.5"),
    "llava-1.5-13b": ("llava-hf/llava-1.5-13b-hf", "lmsys/vicuna-13b-v1.5"),
    "llava-next-mistral-7b": (
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "mistralai/Mistral-7B-Instruct-v0.2",
    ),
    "llava-next-llama3-8b": (
        "llava-hf/llama3-llava-next-8b-hf",
        "meta-llama/Meta-Llama-3-8B-Instruct",
    ),
    "llava-more-8b": ("aimagelab/LLaVA_MORE-llama_3_1-8B-finetuning", LLAMA_31_8B),
    "llava-onevision-7b": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "Qwen/Qwen2-7B-Instruct"),
    "pixtral-12b": ("mistral-community/pixtral-12b", "mistralai/Mistral-Nemo-Instruct-2407"),
    "pixtral-large-124b": (
        "mistralai/Pixtral-Large-Instruct-2411",
        "mistralai/Mistral-Large-Instruct-2411",
    ),
    "gemma-3-12b": ("google/gemma-3-12b-it", "google/gemma-3-12b-it"),
    "gemma-3-27b": ("google/gemma-3-27b-it", "google/gemma-3-27b-it"),
    "qwen2.5-vl-7b": ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    "qwen2.5-vl-72b": ("Qwen/Qwen2.5-VL-72B-Instruct", "Qwen/Qwen2.5-72B-Instruct"),
    "llama-3.2-vision-11b": ("meta-llama/Llama-3.2-11B-Vision-Instruct", LLAMA_31_8B),
    "llama-3.2-vision-90b": (
        "meta-llama/Llama-3.2-90B-Vision-Instruct",
        "meta-llama/Llama-3.1-70B-Instruct",
    ),
}
NEWER = {
    "qwen3-vl-8b": ("Qwen/Qwen3-VL-8B-Instruct", "Qwen/Qwen3-8B"),
    "internvl3.5-8b": ("OpenGVLab/InternVL3_5-8B-HF", "Qwen/Qwen3-8B"),
    "smolvlm2-2.2b": (
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    ),
    "glm-4.1v-9b": ("zai-org/GLM-4.1V-9B-Thinking", "zai-org/GLM-4-9B-0414"),
    "gemma-4-31b": ("google/gemma-4-31B-it", "google/gemma-4-31B-it"),
    "qwen3.5-9b": ("Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-9B"),
}
"""Families that came after the paper."""
DEPTH_AND_WIDTH = {
    "qwen3-vl-8b": (36, 4096),
    "internvl3.5-8b": (36, 4096),
    "smolvlm2-2.2b": (24, 2048),
    "glm-4.1v-9b": (40, 4096),
    "qwen3.5-9b": (32, 4096),
    "gemma-4-31b": (60, 5376),
    "llava-1.5-13b": (40, 5120),
    "llava-onevision-7b": (28, 3584),
    "pixtral-12b": (40, 5120),
    "pixtral-large-124b": (88, 12_288),
    "gemma-3-12b": (48, 3840),
    "gemma-3-27b": (62, 5376),
    "qwen2.5-vl-7b": (28, 3584),
    "qwen2.5-vl-72b": (80, 8192),
    "llama-3.2-vision-90b": (80, 8192),
}
SAME_WEIGHTS = ["gemma-3-12b", "gemma-3-27b", "gemma-4-31b", "qwen3.5-9b"]
TIED = {*SAME_WEIGHTS, "smolvlm2-2.2b"} - {"qwen3.5-9b"}
"""Pairs whose backbone's head is its embedding."""
MORE_ROWS = {"smolvlm2-2.2b": 128}
"""Rows that a VLM's embedding has more than its backbone's, where they are more than 64."""
ROTATED_OTHERWISE = ("pixtral", "qwen2.5-vl", "qwen3-vl", "glm-4.1v")
every_pair = pytest.mark.parametrize("pair", PUBLISHED.values(), ids=PUBLISHED)


@dataclass(frozen=True)
class Shapes:
    """What a model built from its config alone says of itself.

    `blocks` leaves out those that only attend to the image; `block_parameters` is that of the
    others; `rows` are those of the embedding and of an untied head.
    """

    parameters: int
    block_parameters: int
    blocks: int
    all_blocks: int
    d_model: int
    rows: int
    embedding_rows: int


def _parameters(*modules: torch.nn.Module) -> int:
    # A module lists a tied weight once.
    return sum(p.numel() for p in torch.nn.ModuleList(modules).parameters())


@cache
def shapes(repo: str, text_only: bool) -> Shapes:
    config = published_config(repo, text_only=text_only)
    sees = hasattr(config, "vision_config")
    builder = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with torch.device("meta"):
        model: Any = builder.from_config(config)
    decoder = model.get_decoder()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    crossing = getattr(config.get_text_config(decoder=True), "cross_attention_layers", [])
    blocks = [block for i, block in enumerate(decoder.layers) if i not in crossing]
    tied = head.weight is embedding.weight
    return Shapes(
        parameters=_parameters(model),
        block_parameters=_parameters(*blocks),
        blocks=len(blocks),
        all_blocks=len(decoder.layers),
        d_model=embedding.weight.shape[1],
        rows=embedding.weight.shape[0] + (0 if tied else head.weight.shape[0]),
        embedding_rows=embedding.weight.shape[0],
    )


def both(pair: PublishedPair) -> tuple[Shapes, Shapes]:
    return shapes(pair.vlm, False), shapes(pair.backbone, pair.same_weights)


def agrees(published: Count, counted: int) -> bool:
    return abs(counted - published.value) <= published.tolerance


def test_every_pair_of_the_protocol_is_registered() -> None:
    named = {key: (pair.vlm, pair.backbone) for key, pair in PUBLISHED.items()}
    assert named == PROTOCOL | NEWER
    assert list(named)[: len(PROTOCOL)] == list(PROTOCOL)
    classes = [PUBLISHED[key].architecture for key in PROTOCOL]
    assert {name: classes.count(name) for name in sorted(set(classes))} == {
        "cross-attention": 2,
        "llava": 8,
        "native": 4,
    }
    assert [pair.key for pair in PUBLISHED.values() if pair.same_weights] == SAME_WEIGHTS
    assert not PUBLISHED.keys() & PAIRS.keys()


@every_pair
def test_the_configs_have_as_many_parameters_as_is_published(pair: PublishedPair) -> None:
    vlm, backbone = both(pair)
    assert agrees(pair.vlm_parameters, vlm.parameters), vlm.parameters
    assert agrees(pair.backbone_parameters, backbone.parameters), backbone.parameters


@every_pair
def test_a_vlm_has_the_blocks_of_its_backbone(pair: PublishedPair) -> None:
    vlm, backbone = both(pair)
    assert (vlm.blocks, vlm.d_model) == (backbone.blocks, backbone.d_model)
    assert vlm.block_parameters == backbone.block_parameters
    depth, width = DEPTH_AND_WIDTH.get(pair.key, (32, 4096))
    assert (backbone.blocks, backbone.d_model) == (depth, width)
    crossing = {"llama-3.2-vision-11b": 8, "llama-3.2-vision-90b": 20}.get(pair.key, 0)
    assert vlm.all_blocks == vlm.blocks + crossing


@every_pair
def test_a_vlm_has_its_backbones_vocabulary_and_perhaps_more(pair: PublishedPair) -> None:
    vlm, backbone = both(pair)
    more = vlm.embedding_rows - backbone.embedding_rows
    assert 0 <= more <= 64 or more == MORE_ROWS[pair.key]
    assert backbone.rows == (1 if pair.key in TIED else 2) * backbone.embedding_rows
    image: Any = published_config(pair.vlm)
    assert image.image_token_id < vlm.embedding_rows


@every_pair
def test_a_vlm_and_its_backbone_read_positions_alike(pair: PublishedPair) -> None:
    vlm: Any = vlm_config(pair).get_text_config(decoder=True)
    backbone: Any = backbone_config(pair)
    same = vlm.rope_parameters == backbone.rope_parameters
    # Pixtral's decoders were trained with a larger base; others rotate by three axes.
    assert same == (not pair.key.startswith(ROTATED_OTHERWISE))
    assert vlm.rms_norm_eps == backbone.rms_norm_eps
    both_shared = [config.per_layer_config[0].num_key_value_heads for config in (vlm, backbone)]
    assert both_shared[0] == both_shared[1]


def test_gemma_windows_five_blocks_of_six() -> None:
    for key, n_full in (("gemma-3-12b", 8), ("gemma-3-27b", 10)):
        config: Any = backbone_config(PUBLISHED[key])
        full = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
        assert full == list(range(5, 6 * n_full, 6))
        assert len(config.layer_types) == config.num_hidden_layers


def test_a_config_is_new_each_time_and_unknown_models_are_named() -> None:
    one: Any = published_config(LLAMA_31_8B)
    one.rope_parameters["factor"] = 1.0
    other: Any = published_config(LLAMA_31_8B)
    assert other.rope_parameters["factor"] == 8.0
    with pytest.raises(InterventionsError, match=r"Did you mean 'Qwen/Qwen2\.5-7B-Instruct'"):
        published_config("Qwen/Qwen2.5-7B-Instruc")


def test_memory_is_two_bytes_a_parameter_and_the_same_weights_count_once() -> None:
    llava, gemma = PUBLISHED["llava-1.5-7b"], PUBLISHED["gemma-3-12b"]
    assert llava.vlm_bytes == 14_126_854_144
    assert llava.total_bytes == llava.vlm_bytes + llava.backbone_bytes
    assert gemma.total_bytes == gemma.vlm_bytes


def test_where_a_pair_could_run_depends_on_the_gpus() -> None:
    large, small = Gpu("large", 80 * 10**9), Gpu("small", 24 * 10**9)
    assert where_it_could_run(PUBLISHED["llava-1.5-7b"], []) == ("NDIF",)
    tiny, alone = Gpu("tiny", 16 * 10**9), "one GPU here, one model at a time"
    assert where_it_could_run(PUBLISHED["llava-1.5-7b"], [tiny]) == ("NDIF",)
    assert where_it_could_run(PUBLISHED["llava-1.5-7b"], [small]) == (alone, "NDIF")
    both = where_it_could_run(PUBLISHED["llava-1.5-7b"], [small, small])
    assert both == (alone, "2 GPUs here", "NDIF")
    assert where_it_could_run(PUBLISHED["gemma-3-12b"], [small]) == ("NDIF",)
    assert where_it_could_run(PUBLISHED["gemma-3-12b"], [large]) == ("one GPU here", "NDIF")
    assert where_it_could_run(PUBLISHED["llava-1.5-7b"], [tiny] * 3) == ("3 GPUs here", "NDIF")
    assert where_it_could_run(PUBLISHED["llava-1.5-7b"], [small, large])[0] == "one GPU here"
    assert where_it_could_run(PUBLISHED["llava-more-8b"], []) == ("NDIF (once converted)",)


@contextmanager
def service(answer: bytes) -> Iterator[str]:
    """A service on this machine that answers every question alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    monkeypatch.delenv("NDIF_HOST", raising=False)


@pytest.mark.usefixtures("_loopback")
def test_ndif_says_which_models_run(monkeypatch: pytest.MonkeyPatch) -> None:
    deployments = {
        "a": {"repo_id": LLAMA_31_8B, "application_state": "RUNNING"},
        "b": {"repo_id": "google/gemma-3-12b-it", "application_state": "RUNNING"},
        "c": {"repo_id": "lmsys/vicuna-7b-v1.5", "application_state": "DEPLOYING"},
    }
    with service(json.dumps({"deployments": deployments}).encode()) as host:
        monkeypatch.setenv("NDIF_HOST", host)
        ndif = ask_ndif()
    assert ndif.reached
    assert ndif.statement == f"NDIF at {host} runs 2 models."
    expected = {
        "gemma-3-12b": "NDIF (running)",
        "llama-3.2-vision-11b": "NDIF (backbone running)",
        "llava-1.5-7b": "NDIF (not running)",
        "llava-more-8b": "NDIF (once converted, backbone running)",
    }
    assert {key: where_it_could_run(PUBLISHED[key], [], ndif)[0] for key in expected} == expected


@pytest.mark.usefixtures("_loopback")
def test_an_ndif_that_cannot_be_reached_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    with service(b"<html>") as page:
        monkeypatch.setenv("NDIF_HOST", page)
        assert not ask_ndif().reached
    with service(b"[]") as gone:
        monkeypatch.setenv("NDIF_HOST", gone)
        assert "what answers there is no NDIF" in ask_ndif().statement
    nobody = ask_ndif()
    assert not nobody.reached
    assert nobody.statement.startswith(f"NDIF at {gone} could not be reached: ")
    assert where_it_could_run(PUBLISHED["gemma-3-12b"], [], nobody) == ("NDIF (not reached)",)
    monkeypatch.setenv("NDIF_HOST", "not a place")
    assert not ask_ndif().reached


@pytest.mark.usefixtures("_loopback")
def test_pairs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sorted(listed) == ["built_in", "gpus", "ndif", "published"]
    assert [one["key"] for one in listed["built_in"]] == list(PAIRS)
    assert [one["key"] for one in listed["published"]] == [*PROTOCOL, *NEWER]
    assert len(PROTOCOL) == 14
    assert listed["ndif"] is None
    first = listed["published"][0]
    assert first["vlm_parameters"] == 7_063_427_072
    assert first["vlm_parameters_tolerance"] == 0
    assert first["total_bytes"] == 27_603_685_376
    assert first["where"][-1] == "NDIF"


@pytest.mark.usefixtures("_loopback")
def test_pairs_as_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NDIF_HOST", "http://127.0.0.1:9")
    assert main(["pairs", "--ndif"]) == 0
    shown = capsys.readouterr().out
    for pair in PUBLISHED.values():
        for part in (pair.key, pair.architecture, pair.vlm, pair.backbone):
            assert part in shown or part == pair.backbone == pair.vlm
    assert "~13.35B" in shown
    assert "NDIF at http://127.0.0.1:9 could not be reached" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80


def test_a_published_pair_is_known_and_what_it_takes_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["study", "llava-1.5-7b"]) == 2
    said = capsys.readouterr().err
    assert "the processor of 'llava-hf/llava-1.5-7b-hf' cannot be opened" in said
    assert "llava-1.5-7b takes llava-hf/llava-1.5-7b-hf (14.1 GB at bfloat16)" in said
    assert "lmsys/vicuna-7b-v1.5 (13.5 GB)" in said
    with pytest.raises(InterventionsError, match="Did you mean 'gemma-3-12b'"):
        find_pair("gemma3-12b")
    assert "which is its own backbone" in what_it_takes(PUBLISHED["gemma-3-12b"])
    with pytest.raises(InterventionsError, match="convert it first"):
        find_pair("pixtral-large-124b")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from twohop.cli import parser; parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
