"""Circuits: found where they are known, pruned without loss, stored, drawn; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import case_of, model_of
from test_architectures import SIDE_BY_SIDE, UNDERSTOOD, build, tokenizer_of
from transformers import LlamaConfig, LlamaForCausalLM

import interventions as iv
from interventions.attribution.sides import contrast_of
from interventions.circuits.asked import edge_contrast
from interventions.circuits.carried import Choice, carried
from interventions.circuits.exact import ExactEdges, exact_edges
from interventions.circuits.graph import BlockNodes, Graph
from interventions.circuits.scores import Circuit
from interventions.errors import PromptError, ResultsError, RoleError, SiteError

PART = 16  # width of each of the four parts of the residual stream
CIRCUIT = ["input->L0.H1.v", "L0.H1->L2.H0.v", "L2.H0->logits"]
COPIED: dict[str, Any] = {"answers": "of", "foils": "is"}
CLEAN = "clean_logprob"
ASKED: dict[str, Any] = {"answers": "Paris", "foils": "town"}


def copying() -> iv.Model:
    """Three blocks wired by hand: two heads bring a token to the logits, others lead nowhere.

    The stream has four parts. Words enter in A; head 1 of block 0 brings the mean of A over tokens
    into B, head 0 of block 2 the mean of B into C, and the logits read C. In block 1 head 2 brings
    A into D, which nobody reads. Queries, keys and MLPs are zero, and words have orthogonal
    vectors of one length, so that no norm changes its scale.
    """
    tokenizer = model_of("llama").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=4 * PART,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    module = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" not in name:
                weight.zero_()
        ids = tokenizer("The of The is", add_special_tokens=False)["input_ids"]
        for which, token in enumerate(dict.fromkeys([tokenizer.bos_token_id, *ids])):
            module.model.embed_tokens.weight[token, which] = 1.0
            module.lm_head.weight[token, 2 * PART + which] = 1.0
        wires = {(0, 1): (0, 1), (1, 2): (0, 3), (2, 0): (1, 2)}
        for (layer, head), (read, write) in wires.items():
            attention: Any = module.model.layers[layer].self_attn
            own = torch.arange(head * PART, (head + 1) * PART)
            attention.v_proj.weight[own, read * PART + torch.arange(PART)] = 1.0
            attention.o_proj.weight[write * PART + torch.arange(PART), own] = 1.0
    return iv.load(module, tokenizer=tokenizer)


def copied(model: iv.Model) -> tuple[iv.Prompt, iv.Prompt]:
    return model.prompt("The of The The"), model.prompt("The is The The")


@pytest.mark.parametrize("method", ["eap", "ig", "clean-corrupted"])
def test_a_circuit_wired_by_hand_is_found_and_nothing_else_matters(method: Any) -> None:
    model = copying()
    clean, corrupt = copied(model)
    scores = iv.attribute_edges(model, clean, corrupt, method=method, **COPIED)
    assert sorted(scores.circuit(3).names) == sorted(CIRCUIT)
    assert scores.circuit(3).nodes == ["input", "L0.H1", "L2.H0"]
    assert scores.table(1)["score"].iloc[0] < 0
    kept = iv.faithfulness(
        model, scores, clean, corrupt, circuits=[0, 3, len(scores.mean)], n_random=5, **COPIED
    )
    curve = {name: values.to_list() for name, values in kept.curve().items()}
    assert np.allclose(curve["faithfulness"], [0, 1, 1], atol=1e-9)
    assert curve["random_high"][1] < 0.5
    assert curve["n_edges"][1] == 3


def test_a_change_that_is_none_has_no_share() -> None:
    model = copying()
    clean, corrupt = copied(model)
    texts = [model.tokenizer.decode(prompt.inputs["input_ids"][0]) for prompt in (clean, corrupt)]
    there, back = (model.prompt(rows) for rows in (texts, texts[::-1]))
    asked = {"circuits": [3], "n_random": 0, **COPIED}
    swapped = iv.attribute_edges(model, there, back, **COPIED)
    kept = iv.faithfulness(model, swapped, there, back, **asked)
    says = (
        "higher in the run than in the source for 1 items and lower for 1, by as much in all.*"
        r"\.to_dataframe\(\)"
    )
    with pytest.raises(ResultsError, match=says):
        kept.curve()
    assert len({*kept.to_dataframe()["value"].tolist()}) > 1
    kept.data["source_metric"] = kept.data["run_metric"]
    with pytest.raises(ResultsError, match="the same metric in every item"):
        kept.curve()


def test_of_that_circuit_exact_edges_are_the_only_ones_with_an_effect() -> None:
    model = copying()
    clean, corrupt = copied(model)
    scores = iv.attribute_edges(model, clean, corrupt, **COPIED)
    verified = iv.verify_edges(model, scores, clean, corrupt, k=len(scores.mean), **COPIED)
    effect = verified.data["checked_effect"].values[0]
    checked = verified.data["checked_edge"].values
    names = {scores.graph.name(edge) for edge in checked[np.abs(effect) > 1e-6]}
    assert names == {*CIRCUIT}
    whole = float(scores.data["source_metric"][0] - scores.data["run_metric"][0])
    assert np.allclose(effect[np.abs(effect) > 1e-6], whole)


def test_paths_flow_along_their_edges_only() -> None:
    model = copying()
    clean, corrupt = copied(model)
    paths = [CIRCUIT, CIRCUIT[:2], CIRCUIT[0], [*CIRCUIT[:1], CIRCUIT[2]], "input->logits"]
    effects = iv.path_patch(model, clean, corrupt, paths, **COPIED)
    whole = float(effects["source_metric"][0] - effects["run_metric"][0])
    assert abs(whole) > 0.01
    # The fourth begins twice: head 0 of block 2 is frozen but for what it writes in the source.
    assert np.allclose(effects["effect"][:, 0], [whole, whole, whole, whole, 0], atol=1e-9)


def test_what_a_path_leaves_out_stays_as_it_was() -> None:
    case = case_of("llama", torch.float64, "sdpa")
    model, prompt = case.model, case.prompt
    corrupt = model.prompt([text.replace("capital of", "of capital") for text in case.texts])
    through = ["input->L1.mlp", "L1.mlp->L3.KV0.v", "L3.H0->logits"]
    effects = iv.path_patch(model, prompt, corrupt, [through, through[:1]], **COPIED)
    row = 0
    own = prompt.select([row]).trimmed()[0]
    other = corrupt.select([row]).trimmed()[0]
    assert abs(float(effects["effect"][0, row])) > 1e-6
    assert float(effects["effect"][0, row]) == pytest.approx(by_hooks(model, own, other), abs=1e-9)


def by_hooks(model: iv.Model, prompt: iv.Prompt, source: iv.Prompt) -> float:
    """The path input -> MLP of block 1 -> values of head 0 of block 3 -> logits, by hand."""
    module = model.module
    blocks = module.model.layers
    dim = model.anatomy.head_dim
    kept: dict[str, torch.Tensor] = {}
    seen = {"embed": module.model.embed_tokens, "mlp": blocks[1].mlp, "z": blocks[3].self_attn}
    ids = [own.inputs["input_ids"] for own in (prompt, source)]
    hooks = [
        seen["embed"].register_forward_hook(lambda _m, _a, out: kept.__setitem__("embed", out)),
        blocks[1].post_attention_layernorm.register_forward_pre_hook(
            lambda _m, args: kept.__setitem__("mid", args[0])
        ),
        blocks[1].mlp.register_forward_hook(lambda _m, _a, out: kept.__setitem__("mlp", out)),
        blocks[3].register_forward_pre_hook(
            lambda _m, args: kept.__setitem__("pre3", args[0]), with_kwargs=False
        ),
        blocks[3].self_attn.o_proj.register_forward_pre_hook(
            lambda _m, args: kept.__setitem__("z", args[0])
        ),
        module.model.norm.register_forward_pre_hook(
            lambda _m, args: kept.__setitem__("last", args[0])
        ),
    ]
    with torch.no_grad():
        module(input_ids=ids[1])
        other = kept["embed"]
        module(input_ids=ids[0])
        clean = dict(kept)
        for hook in hooks:
            hook.remove()
        block = blocks[1]
        read = clean["mid"] + other - clean["embed"]
        mlp = block.mlp(block.post_attention_layernorm(read))
        stream = clean["pre3"] + mlp - clean["mlp"]
        attention = blocks[3].self_attn
        values = attention.v_proj(blocks[3].input_layernorm(stream))

        def revalue(_m: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            new = output.clone()
            new[..., :dim] = values[..., :dim]
            return new

        z: list[torch.Tensor] = []
        swap = attention.v_proj.register_forward_hook(revalue)
        look = attention.o_proj.register_forward_pre_hook(lambda _m, args: z.append(args[0]))
        module(input_ids=ids[0])
        swap.remove()
        look.remove()
        # Of the heads that share these values only head 0 goes on.
        change = (z[0] - clean["z"])[..., :dim] @ attention.o_proj.weight[:, :dim].T
        logits = [
            module.lm_head(module.model.norm(hidden))[0, -1].log_softmax(-1)
            for hidden in (clean["last"], clean["last"] + change)
        ]
    answer, foil = (
        model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]
        for word in ("of", "is")
    )
    before, after = (float(own[answer] - own[foil]) for own in logits)
    return after - before


def test_edges_that_carry_nothing_have_no_effect_on_answers_of_several_tokens() -> None:
    model = copying()
    clean, corrupt = copied(model)
    first, second = model.tokenizer(" of is", add_special_tokens=False)["input_ids"]
    own, _ = edge_contrast(
        model,
        clean,
        corrupt,
        answers=[[first, second]],
        foils=[[second, first]],
        metric="logit_diff",
    )
    [exact] = exact_edges(model, [own], None)
    assert isinstance(exact, ExactEdges)
    choices = [Choice([edge]) for edge in range(len(exact.graph.edges))]
    [flowing] = carried(model, [own], choices, None)
    assert np.abs(exact.effect[0] - (flowing.values - flowing.run)[:, 0]).max() < 1e-9
    silent = exact.graph.number("L0.mlp->L2.mlp")
    [alone] = exact_edges(model, [own], [silent])
    assert isinstance(alone, ExactEdges)
    assert alone.effect.tolist() == [[0.0]]
    assert np.abs(exact.effect).max() > 0.1


def contrast_between(model: iv.Model, clean: iv.Prompt, corrupt: iv.Prompt) -> Any:
    return contrast_of(
        model,
        clean,
        corrupt,
        answers="Paris",
        foils="town",
        metric="logit_diff",
        roles=None,
        read_roles=None,
        each=True,
        by_role=False,
    )


@pytest.mark.parametrize("name", [name for name in UNDERSTOOD if name != "Granite"])
def test_other_architectures_carry_everything_or_nothing(name: str) -> None:
    model = iv.load(build(name, UNDERSTOOD[name]), tokenizer=tokenizer_of())
    clean, corrupt = (
        model.prompt("The capital of France is"),
        model.prompt("The of capital France is"),
    )
    own = contrast_between(model, clean, corrupt)
    [edges] = carried(model, [own], [Choice([], but=True), Choice([])], None)
    graph = edges.graph
    chosen = np.random.default_rng(0).choice(len(graph.edges), 12, replace=False).tolist()
    scale = np.abs(edges.run).max() + np.abs(edges.source).max()
    assert np.abs(edges.values[0] - edges.source).max() < 1e-4 * scale
    assert np.abs(edges.values[1] - edges.run).max() < 1e-4 * scale
    [exact] = exact_edges(model, [own], chosen)
    [flowing] = carried(model, [own], [Choice([edge]) for edge in chosen], None)
    assert isinstance(exact, ExactEdges)
    assert np.abs(flowing.values - flowing.run - exact.effect.T).max() < 1e-4 * scale
    side_by_side = name in SIDE_BY_SIDE
    assert all(block.parallel == side_by_side for block in graph.blocks)
    assert all(block.n_heads == model.anatomy.n_heads for block in graph.blocks)


def test_pruned_edges_change_nothing() -> None:
    case = case_of("llama", torch.float64, "sdpa")
    corrupt = case.model.prompt([t.replace("capital of", "of capital") for t in case.texts])
    scores = iv.attribute_edges(case.model, case.prompt, corrupt, **ASKED)
    circuits = [scores.circuit(60, prune=prune) for prune in (False, True)]
    assert 0 < len(circuits[1]) < len(circuits[0]) == 60
    kept = iv.faithfulness(
        case.model, scores, case.prompt, corrupt, circuits=circuits, n_random=0, **ASKED
    )
    values = kept.data["value"].values
    assert np.allclose(values[0], values[1], atol=1e-10)
    assert "random" not in kept.curve()


def graph() -> Graph:
    return Graph(
        [BlockNodes(0, 4, 2, False), BlockNodes(1, 0, 0, False), BlockNodes(2, 4, 4, True)], 3
    )


def test_edges_lead_upward_and_have_names() -> None:
    edges = graph()
    names = [edges.name(i) for i in range(len(edges.edges))]
    assert len({*names}) == len(names)
    assert [edges.number(name) for name in names] == [*range(len(names))]
    assert {"input->L0.KV1.v", "L0.H3->L0.mlp", "L1.attn->L1.mlp", "L1.mlp->L2.H3.k"} <= {*names}
    assert "L2.H0->L2.mlp" not in names
    for wrong in ("L2.H0->L2.mlp", "L2.mlp->L0.mlp"):
        with pytest.raises(SiteError, match="no edge leads from"):
            edges.number(wrong)
    with pytest.raises(SiteError, match="Expected SENDER->RECEIVER"):
        edges.number("L0.H9->logits")


@pytest.mark.parametrize("n", [0, 1, 2, 5, 17, 60])
def test_random_circuits_have_as_many_edges_and_are_connected(n: int) -> None:
    edges, rng = graph(), np.random.default_rng(0)
    drawn = [edges.connected(n, rng) for _ in range(5)]
    assert all(len({*own.tolist()}) == n for own in drawn)
    assert all(len(edges.pruned(own)) == n for own in drawn)
    assert len({tuple(own) for own in drawn}) > 1 or n < 2


def test_all_edges_are_as_many_as_there_are() -> None:
    edges = graph()
    everything = edges.connected(10**6, np.random.default_rng(0))
    assert (edges.pruned(everything) == np.arange(len(edges.edges))).all()
    assert edges.whole().sum() == len(edges.edges)


def test_scores_and_curves_come_back_from_disk_and_are_drawn(tmp_path: Path) -> None:
    case = case_of("llama")
    corrupt = case.model.prompt(
        [t.replace("capital of", "of capital") for t in case.texts],
        spans={"entity": ["France", "the town"]},
    )
    scores = iv.attribute_edges(case.model, case.prompt, corrupt, by_role=True, **ASKED)
    whole = iv.attribute_edges(case.model, case.prompt, corrupt, **ASKED)
    assert np.allclose(scores.per_item, whole.per_item, atol=1e-4)
    assert scores.data["role"].values.tolist()[-1] == "answer"
    again = iv.EdgeScores.load(scores.save(tmp_path / "scores.nc"))
    assert again.data.equals(scores.data)
    assert again.circuit(30).names == scores.circuit(30).names
    assert len(scores.circuit(threshold=0.1).edges) <= len(scores.mean)
    asked = {**ASKED, "circuits": [30, 200], "n_random": 3}
    kept = iv.faithfulness(case.model, again, case.prompt, corrupt, **asked)
    back = iv.Faithfulness.load(kept.save(tmp_path / "kept.nc"))
    assert back.curve().equals(kept.curve())
    assert len(kept.to_dataframe()) == 2 * 2 * (1 + 3)
    assert {*scores.to_dataframe()} == {"item", "edge", "sender", "receiver", "role", "score"}
    with pytest.raises(ResultsError, match="not EdgeScores"):
        iv.EdgeScores.load(tmp_path / "kept.nc")
    for figure in (scores.circuit(30).draw(title="llama"), kept.draw()):
        figure.savefig(tmp_path / "figure.png")


def test_batches_of_rows_give_the_same_scores() -> None:
    case = case_of("llama", torch.float64, "sdpa")
    corrupt = case.model.prompt([t.replace("capital of", "of capital") for t in case.texts])
    scores = [
        iv.attribute_edges(case.model, case.prompt, corrupt, batch_size=size, **ASKED).per_item
        for size in (1, 2)
    ]
    assert np.allclose(*scores, atol=1e-5 * np.abs(scores[0]).max())


def test_exact_edges_cost_less_than_a_pass_for_each() -> None:
    case = case_of("llama")
    prompt = case.model.prompt("Who was the first mayor of the town in the north of France?")
    corrupt = case.model.prompt("Who was the first mayor of the town in the north of France!")
    [exact] = exact_edges(case.model, [contrast_between(case.model, prompt, corrupt)], None)
    assert isinstance(exact, ExactEdges)
    assert exact.alone > 10 * exact.token_blocks


def test_what_does_not_belong_together_is_refused() -> None:
    case = case_of("llama")
    model, prompt = case.model, case.prompt
    corrupt = model.prompt([t.replace("capital of", "of capital") for t in case.texts])
    scores = iv.attribute_edges(model, prompt, corrupt, **ASKED)
    with pytest.raises(ResultsError, match="the other way round"):
        iv.faithfulness(model, scores, corrupt, prompt, **ASKED)
    with pytest.raises(ResultsError, match="answers"):
        iv.verify_edges(model, scores, prompt, corrupt, answers="river", foils="town")
    with pytest.raises(PromptError, match="none that edges are measured by"):
        iv.attribute_edges(model, prompt, corrupt, metric="rank", **ASKED)
    with pytest.raises(RoleError, match="differ in length"):
        iv.attribute_edges(model, prompt, prompt.select([1, 0]), **ASKED)
    with pytest.raises(ResultsError, match="give one of n="):
        scores.circuit()
    with pytest.raises(SiteError, match="near 'L0"):
        iv.path_patch(model, prompt, corrupt, ["L0.H77->logits"], **ASKED)
    with pytest.raises(SiteError, match="paths is empty"):
        iv.path_patch(model, prompt, corrupt, [], **ASKED)
    other = Circuit(graph(), np.array([graph().number("input->logits")]), np.array([np.nan]))
    with pytest.raises(SiteError, match="other blocks or heads"):
        iv.faithfulness(model, scores, prompt, corrupt, circuits=[other], **ASKED)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """Of the likeliest token above the second; what it is given is written over."""
    top = logits.topk(2).values
    value = top[:, 0] - top[:, 1]
    with torch.no_grad():
        logits.fill_(7.0)
    return value


@pytest.mark.parametrize("which", ["margin", "direction"])
def test_functions_and_directions_are_metrics_of_edges_circuits_and_paths(which: Any) -> None:
    case = case_of("llama", torch.float64, "sdpa")
    model, prompt = case.model, case.prompt
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    metric: Any = margin if which == "margin" else iv.Direction(vector, name="along")
    called = "margin" if which == "margin" else "along"
    corrupt = model.prompt([t.replace("capital of", "of capital") for t in case.texts])
    scores = iv.attribute_edges(model, prompt, corrupt, metric=metric)
    assert scores.data.attrs["metric"] == called
    assert scores.data["score"].attrs["units"] == f"as {called} gives it"
    assert "answer" not in scores.data.coords
    verified = iv.verify_edges(model, scores, prompt, corrupt, metric=metric, k=4)
    n = len(scores.mean)
    kept = iv.faithfulness(
        model, scores, prompt, corrupt, metric=metric, circuits=[0, n], n_random=0
    )
    runs = [kept.data[f"{side}_metric"].values for side in ("source", "run")]
    assert np.allclose(kept.data["value"].values, runs, atol=1e-9)
    for own, values in zip((corrupt, prompt), runs, strict=True):
        site = iv.Site("resid_post", model.n_layers - 1, own.at("last"))
        result = iv.run(model, own, reads=[site])
        assert result.logits is not None
        plain = (
            margin(result.logits.double())
            if which == "margin"
            else result.reads[0] @ vector.double()
        )
        assert np.allclose(plain, values, atol=1e-6)
    edge = int(verified.data["checked_edge"][0])
    patched = iv.path_patch(model, prompt, corrupt, [scores.graph.name(edge)], metric=metric)
    assert patched["effect"].attrs["units"] == f"as {called} gives it"
    assert np.allclose(patched["effect"][0], verified.data["checked_effect"][:, 0], atol=1e-9)
    again = scores.circuit(40).names
    assert iv.attribute_edges(model, prompt, corrupt, metric=metric).circuit(40).names == again


def test_scores_of_a_function_are_gone_on_with_by_the_same_function_only() -> None:
    case = case_of("llama")
    model, prompt = case.model, case.prompt
    corrupt = model.prompt([t.replace("capital of", "of capital") for t in case.texts])
    token = 3

    def own(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, token]

    scores = iv.attribute_edges(model, prompt, corrupt, metric=own)
    with pytest.raises(ResultsError, match=r"no metric was given.*iv\.attribute_edges"):
        iv.verify_edges(model, scores, prompt, corrupt)
    with pytest.raises(ResultsError, match="'margin' was given"):
        iv.faithfulness(model, scores, prompt, corrupt, metric=margin)
    token = 4
    with pytest.raises(ResultsError, match="foils or metric"):
        iv.faithfulness(model, scores, prompt, corrupt, metric=own)
    with pytest.raises(PromptError, match="cannot be called 'clean_logprob'"):
        iv.attribute_edges(
            model, prompt, corrupt, metric=iv.Direction(torch.ones(model.d_model), name=CLEAN)
        )
    with pytest.raises(PromptError, match="has no gradient"):
        iv.path_patch(model, prompt, corrupt, ["input->logits"], metric=lambda x: x.argmax(-1))
    with pytest.raises(PromptError, match="is of an answer"):
        iv.attribute_edges(model, prompt, corrupt)


def test_pictures_that_differ_beside_the_stream_are_refused() -> None:
    case = case_of("mllama")
    asked: dict[str, Any] = {**ASKED, "roles": ["last"]}
    with pytest.raises(SiteError, match="flows along no edge"):
        iv.attribute_edges(case.model, case.prompt, case.prompt.select([1, 0]), **asked)
    scores = iv.attribute_edges(case.model, case.prompt, 0.0, **asked)
    assert "L1.attn" in {str(node) for node in scores.graph.senders}
