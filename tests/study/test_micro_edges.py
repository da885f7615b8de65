"""The micro models' circuit is known by construction: edges between their parts show it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interventions as iv
from interventions.attribution.agreement import spearman
from interventions.circuits.asked import batches_of, edge_contrast
from interventions.circuits.estimates import Method
from interventions.circuits.exact import ExactEdges, exact_edges
from interventions.errors import ResultsError
from twohop.micro import RECALL_BLOCKS, entity, facts, micro_folder

QUESTION = "Question : What is the capital of {} ? Answer :"
SILENT = {*range(8)} - {*RECALL_BLOCKS}
"""Blocks whose MLP is zero; attention is zero in the others."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> iv.Model:
    cache: Path = tmp_path_factory.mktemp("micro")
    return iv.load(micro_folder("micro-backbone", cache=cache))


def asked_of(llm: iv.Model, n: int) -> dict[str, Any]:
    capitals = {
        entity(fact.code).name: fact.answer
        for fact in facts()
        if fact.relation == "capital" and fact.taught
    }
    names = [name for name in capitals if " " not in name][:n]
    others = [*names[1:], names[0]]
    prompts = [
        llm.prompt([QUESTION.format(name) for name in own], spans={"entity": own})
        for own in (names, others)
    ]
    return {
        "prompt": prompts[0],
        "source": prompts[1],
        "answers": [capitals[name] for name in names],
        "foils": [capitals[name] for name in others],
    }


@pytest.fixture(scope="module")
def asked(llm: iv.Model) -> dict[str, Any]:
    return asked_of(llm, 6)


METHODS: tuple[Method, ...] = ("eap", "ig", "clean-corrupted")


@pytest.mark.parametrize("method", METHODS)
def test_the_circuit_is_recall_at_the_entity_and_reading_behind_it(
    llm: iv.Model, asked: dict[str, Any], method: Method
) -> None:
    scores = iv.attribute_edges(llm, **asked, method=method, by_role=True)
    circuit = scores.circuit(60)
    assert {"L1.mlp", "L2.mlp", "input"} <= {*circuit.nodes}
    # Parts with zero weights write nothing, and no edge out of them is in any circuit.
    silent = {f"L{layer}.mlp" for layer in SILENT}
    quiet = {f"L{layer}.H{head}" for layer in RECALL_BLOCKS for head in range(4)}
    assert not (silent | quiet) & {*circuit.nodes}
    pairs = scores.graph.edges
    names = np.array([str(node) for node in scores.graph.senders])
    zero = np.isin(names[pairs[:, 0]], sorted(silent | quiet))
    assert np.abs(scores.per_item[:, zero]).max() == 0
    # Recall is where the entity is: what the recall MLPs read counts at its token.
    into = [scores.graph.number(f"input->L{layer}.mlp") for layer in RECALL_BLOCKS]
    by_role = abs(scores.data["score"].isel(edge=into)).sum(("item", "edge"))
    assert by_role.idxmax("role") == "entity"


def test_scores_agree_with_exact_edges(llm: iv.Model, asked: dict[str, Any]) -> None:
    scores = iv.attribute_edges(llm, **asked, method="ig")
    verified = iv.verify_edges(llm, scores, **asked, k=48).data
    assert (verified["spearman"] > 0.5).all()
    assert (verified["spearman_low"] > 0.2).all()
    assert (verified["sign_agreement"] > 0.6).all()


def test_exact_edges_find_the_circuit_and_cost_less(llm: iv.Model, asked: dict[str, Any]) -> None:
    given = {name: asked[name] for name in ("answers", "foils")}
    contrast, _ = edge_contrast(llm, asked["prompt"], asked["source"], metric="logit_diff", **given)
    [exact] = exact_edges(llm, batches_of(llm, contrast, None), None)
    assert isinstance(exact, ExactEdges)
    effect = exact.effect.mean(0)
    largest = [exact.graph.name(edge) for edge in np.argsort(-np.abs(effect))[:12]]
    assert {"input->L1.mlp", "L1.mlp->L2.mlp"} <= {*largest}
    pairs = exact.graph.edges
    silent = [
        s
        for s, node in enumerate(exact.graph.senders)
        if (node.kind == "mlp" and node.layer in SILENT)
        or (node.kind == "head" and node.layer in RECALL_BLOCKS)
    ]
    assert np.abs(effect[np.isin(pairs[:, 0], silent)]).max() < 1e-4
    assert exact.alone > 10 * exact.token_blocks
    scores = iv.attribute_edges(llm, **asked, method="ig").mean
    there = np.abs(effect) > 1e-3
    assert spearman(scores[there], effect[there]) > 0.5


def test_a_twentieth_of_the_edges_keeps_most_and_random_ones_keep_nothing(
    llm: iv.Model, asked: dict[str, Any]
) -> None:
    scores = iv.attribute_edges(llm, **asked, method="ig")
    n = len(scores.mean)
    kept = iv.faithfulness(llm, scores, **asked, circuits=[0, n // 20, n], n_random=5)
    curve = {name: values.to_list() for name, values in kept.curve().items()}
    assert curve["faithfulness"][0] == pytest.approx(0, abs=1e-4)
    assert curve["faithfulness"][1] > 0.4
    assert curve["low"][1] > curve["random_high"][1]
    assert curve["random_high"][1] < 0.1
    assert curve["faithfulness"][2] == pytest.approx(1, abs=1e-4)


def test_what_recall_reads_flows_through_both_blocks(llm: iv.Model, asked: dict[str, Any]) -> None:
    """Both recall blocks are needed, one on the other."""
    paths = [
        ["input->L1.mlp", "L1.mlp->L2.mlp"],
        ["input->L1.mlp", "L1.mlp->L2.mlp", "input->L2.mlp"],
        ["input->L1.KV0.v"],
    ]
    effects = iv.path_patch(llm, paths=paths, **asked)["effect"].mean("item")
    assert float(effects[1]) < float(effects[0]) < -1
    assert float(effects[2]) == pytest.approx(0, abs=1e-4)


def test_edges_that_so_many_items_show(llm: iv.Model) -> None:
    """Clear are edges of the circuit alone; those of parts that are zero never."""
    scores = iv.attribute_edges(llm, **asked_of(llm, 12), method="ig")
    by_edge = scores.statistics()
    assert len(by_edge) == len(scores.graph.edges)
    np.testing.assert_allclose(by_edge["change"].sort_index(), scores.mean, atol=1e-6)
    clear = by_edge[by_edge["clear"]]
    assert 3 < len(clear) < 30
    ends = {*clear["sender"], *clear["receiver"]}
    assert {f"L{block}.mlp" for block in RECALL_BLOCKS} <= ends
    assert not {f"L{block}.mlp" for block in SILENT} & ends
    assert bool(np.all((clear["low"] > 0) | (clear["high"] < 0)))
    few = iv.EdgeScores(scores.data.isel(item=slice(0, 4)))
    with pytest.raises(ResultsError, match="4 independent item"):
        few.statistics()
