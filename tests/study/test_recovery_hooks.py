"""Every arm of the recovery against plain PyTorch hooks and a forward pass for each token."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pytest
import torch
from raw_hooks import Edit, raw_run

from interventions import Prompt
from twohop.ask.on_server import Progress
from twohop.ask.places import places
from twohop.ask.questions import Questions
from twohop.ask.study import text_prompt
from twohop.items.items import Item, Template
from twohop.protocol import Protocol
from twohop.report.summary import at_chosen, recovered
from twohop.running.pair_run import Settings
from twohop.running.study import study_of
from twohop.stages.recovery.arms import ALL_ARMS, ARMS, FOLLOW
from twohop.stages.recovery.back_patching import ARMS_OF_IT, SOURCES, groups_of
from twohop.stages.recovery.elsewhere import place_arms, span_arms
from twohop.stages.recovery.recovery import asked_of, recovery
from twohop.stages.recovery.transplants import other_question
from twohop.stages.recovery.values import matched_noise
from twohop.stages.run import run_stages

LAST_BLOCK, LAST_MLP = 1, 2
IN_PLACE = {arm.name for arm in ALL_ARMS if arm.in_place_of}


class Plain:
    """A study's recovery, and the same by other means."""

    def __init__(self, key: str) -> None:
        protocol = replace(
            Protocol.preset("quick"),
            **{"question_places": 3, "back_parts": 2, "back_items": 6},
            **{"lost_items": 9, "kept_items": 5},
        )
        study = study_of(key, Settings(limit=8, protocol=protocol))
        self.gates = run_stages(["recall"], study)["recall"]
        self.expected: list[int] = []
        self.ticks: list[int] = []
        told = Progress(self.expected.append, self.ticks.append)
        self.study = replace(study, progress=told)
        self.result = recovery(self.study, self.gates, last_block=LAST_BLOCK, last_mlp=LAST_MLP)
        self.study = study
        self.asked = asked_of(self.study, self.gates)

    @property
    def questions(self) -> Questions:
        return self.asked.questions

    @cached_property
    def values(self) -> dict[str, torch.Tensor]:
        """Block outputs and MLP outputs of every item, [block, item, d_model], by hooks."""
        items = self.questions.items
        others = self.questions.others.items
        templates = self.study.benchmark.templates
        asked = [templates[item.relation] for item in items]
        other = [
            templates[other_question(self.study.benchmark, item.relation) or ""] for item in items
        ]
        naming = [self.study.benchmark.naming] * len(items)
        own = self.named(items, asked)
        wrong = self.named(others, asked)
        return {
            "own": own[0],
            "own_mlp": own[1],
            "wrong": wrong[0],
            "wrong_mlp": wrong[1],
            "question": self.named(items, other)[0],
            "naming": self.named(items, naming)[0],
        }

    def named(
        self, items: Sequence[Item], templates: Sequence[Template]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model, columns = self.study.backbone, []
        reads = [("resid_post", block) for block in range(LAST_BLOCK + 1)]
        reads += [("mlp_out", block) for block in range(LAST_MLP + 1)]
        for item, template in zip(items, templates, strict=True):
            prompt = text_prompt(model, template, [item.entity], share_prefix=False)
            at = int(prompt.at("entity", -1).index)
            columns.append(
                torch.stack(
                    [value[0, at] for value in raw_run(model, prompt.inputs, reads=reads)[1]]
                )
            )
        stacked = torch.stack(columns, dim=1)
        return stacked[: LAST_BLOCK + 1], stacked[LAST_BLOCK + 1 :]

    def mean_of_others(self, values: torch.Tensor, row: int) -> torch.Tensor:
        own = self.questions.items[row].entity.code
        rest = [i for i, item in enumerate(self.questions.items) if item.entity.code != own]
        return values[:, rest].mean(1)

    def prompt(self, row: int, *, about: Item | None = None) -> Prompt:
        questions = self.questions
        if about is not None:
            questions = replace(questions, items=[about] * len(questions))
        return questions.shown([row], marked=True, share_prefix=False)

    def said(self, prompt: Prompt, edits: Sequence[tuple[str, int, Edit]] = ()) -> str:
        """Greedy text, each token by a forward pass over all before it."""
        model, stop = self.study.vlm, self.study.benchmark.stop
        inputs, text = dict(prompt.inputs), ""
        ids: list[int] = []
        for _ in range(self.study.max_new_tokens):
            logits, _ = raw_run(model, inputs, edits=edits)
            token = int(logits[0, -1].argmax())
            ids.append(token)
            text = model.tokenizer.decode(ids)
            if token in model.end_ids or stop.strip() in text.split():
                break
            one_more = torch.tensor([[token]])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], one_more], dim=1)
            inputs["attention_mask"] = torch.cat(
                [inputs["attention_mask"], torch.ones_like(one_more)], dim=1
            )
            position = inputs["position_ids"]
            inputs["position_ids"] = torch.cat([position, position[..., -1:] + 1], dim=-1)
        return text.split(stop.strip())[0].strip()

    def with_values(
        self, row: int, values: torch.Tensor, tokens: Sequence[int], component: str
    ) -> str:
        blocks = [self.study.pair.layer_map[block] for block in range(len(values))]
        edits = [
            (component, block, _put(tokens, value))
            for block, value in zip(blocks, values, strict=True)
        ]
        return self.said(self.prompt(row), edits)

    def image(self, row: int) -> list[int]:
        return self.prompt(row).at("image").index[0].tolist()

    def right(self, row: int, text: str) -> bool:
        questions = self.questions.only([row])
        return bool(questions.score([text]).right[0])


def _put(tokens: Sequence[int], value: torch.Tensor) -> Edit:
    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        if changed.shape[1] > max(tokens):
            changed[0, list(tokens)] = value
        return changed

    return edit


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain("micro-late")


def outcome(plain: Plain, arm: str, row: int) -> tuple[float, str]:
    """Whether an item is right under an arm, and what was said, by its row among all."""
    n = plain.asked.n_lost
    if row < n:
        here = plain.result.sel(arm=arm).isel(tried=row)
        return float(here["recovered"]), str(here["said"].values)
    return float(plain.result["still_right"].sel(arm=arm).isel(kept=row - n)), ""


def rows_of(plain: Plain) -> list[int]:
    """A lost item of each half, and a kept one."""
    n, half = plain.asked.n_lost, plain.asked.half
    return [*(int(np.flatnonzero(half[:n] == part)[0]) for part in (0, 1)), n]


def expect(plain: Plain, arm: str, row: int, text: str) -> None:
    right, said = outcome(plain, arm, row)
    assert right == float(plain.right(row, text)), (arm, text, said)
    assert said in ("", text)


def test_all_image_tokens_and_what_is_read_elsewhere(plain: Plain) -> None:
    values = plain.values
    noise = matched_noise(values["own"], seed=plain.study.seed)
    for row in rows_of(plain):
        image = plain.image(row)
        written = {
            "transplant_all_image": values["own"][:, row],
            "whole_other_question": values["question"][:, row],
            "whole_naming_prompt": values["naming"][:, row],
            "wrong_entity": values["wrong"][:, row],
            "mean_entity": plain.mean_of_others(values["own"], row),
            "norm_matched": noise[:, row],
        }
        for arm, value in written.items():
            expect(plain, arm, row, plain.with_values(row, value, image, "resid_post"))
        last = plain.with_values(row, values["own"][:, row], image[-1:], "resid_post")
        expect(plain, "transplant_last_image", row, last)
        mlp = plain.with_values(row, values["own_mlp"][:, row], image, "mlp_out")
        expect(plain, "transplant_all_image_mlp", row, mlp)


def test_the_chosen_place_and_all_of_them(plain: Plain) -> None:
    candidates, labels = places(plain.study), plain.result["place"].values.tolist()
    assert labels == [str(place) for place in candidates]
    for row in rows_of(plain):
        value = plain.values["own"][:, row]
        tokens = [int(place.positions(plain.prompt(row)).index) for place in candidates]
        texts = {token: plain.with_values(row, value, [token], "resid_post") for token in {*tokens}}
        part = int(plain.asked.half[row])
        chosen = int(plain.result["chosen_place_index"][part])
        expect(plain, "place_resid", row, texts[tokens[chosen]])
        shares = [plain.right(row, text) for text in texts.values()]
        assert outcome(plain, "place_random", row)[0] == pytest.approx(np.mean(shares))


def test_the_span_its_controls_and_every_other_span(plain: Plain) -> None:
    candidates, values = places(plain.study), plain.values
    noise = matched_noise(values["own_mlp"], seed=plain.study.seed)
    for row in rows_of(plain):
        tokens = [int(place.positions(plain.prompt(row)).index) for place in candidates]
        ends = plain.result["chosen_span_ends"][int(plain.asked.half[row])].values
        first, last = sorted(tokens[end] for end in ends)
        span = [*range(first, last + 1)]
        written = {
            "span_mlp": values["own_mlp"][:, row],
            "span_wrong_entity": values["wrong_mlp"][:, row],
            "span_mean_entity": plain.mean_of_others(values["own_mlp"], row),
            "span_norm_matched": noise[:, row],
        }
        for arm, value in written.items():
            expect(plain, arm, row, plain.with_values(row, value, span, "mlp_out"))
        # As many tokens, wherever candidates reach; fewer than draws, so each once.
        starts = range(min(tokens), max(tokens) - len(span) + 2)
        assert 1 < len(starts) <= plain.study.protocol.random_seeds
        shares = [
            plain.right(
                row,
                plain.with_values(
                    row, written["span_mlp"], range(start, start + len(span)), "mlp_out"
                ),
            )
            for start in starts
        ]
        assert outcome(plain, "span_random", row)[0] == pytest.approx(np.mean(shares))


def test_of_many_spans_so_many_are_drawn(plain: Plain) -> None:
    """One draw for each item: right or not, and of the same number of tokens."""
    few = replace(plain.study.protocol, random_seeds=1)
    questions = plain.questions.only(range(plain.asked.n_lost))
    questions = replace(questions, study=replace(plain.study, protocol=few))
    n = len(questions)
    arms, _ = span_arms(
        questions, {"span_mlp": plain.values["own_mlp"][:, :n]}, plain.asked.half[:n], n
    )
    assert {*arms["span_random"].right} <= {0.0, 1.0}
    here = plain.result["recovered"].sel(arm="span_mlp").values
    np.testing.assert_array_equal(arms["span_mlp"].right, here)


def test_back_patching_in_its_grid_and_at_the_chosen_cell(plain: Plain) -> None:
    groups, study, result = groups_of(plain.study), plain.study, plain.result
    assert {*result["back_place"].values} == {*groups}

    def said(row: int, cell: int, source: str) -> str:
        prompt = plain.prompt(row)
        later, earlier = (int(result[name][cell]) for name in ("later", "earlier"))
        tokens = groups[str(result["back_place"].values[cell])](prompt).index[0].tolist()

        def states(shown: Prompt) -> tuple[torch.Tensor, ...]:
            reads = [("resid_pre", layer) for layer in (later, earlier)]
            return tuple(raw_run(study.vlm, dict(shown.inputs), reads=reads)[1])

        after, before = states(prompt)
        value = after
        if source != "own":
            theirs = plain.questions.others.items[row]
            their_after, their_before = states(plain.prompt(row, about=theirs))
            value = their_after if source == "null" else before + (their_after - their_before)
        return plain.said(prompt, [("resid_pre", earlier, _put(tokens, value[0, tokens]))])

    for row in rows_of(plain):
        cell = int(result["chosen_cell"][int(plain.asked.half[row])])
        for arm, source in zip(ARMS_OF_IT, SOURCES, strict=True):
            expect(plain, arm, row, said(row, cell, source))
    searched = result["searched"].values.tolist()
    tried = result["tried"].values.tolist()
    for column in (0, 4):
        row = tried.index(searched[column])
        answer = plain.questions.items[row].answers[0]
        for cell in range(0, result.sizes["cell"], 7):
            for name in SOURCES:
                assert bool(result[name][cell, column]) == (said(row, cell, name) == answer)


def test_the_grid_is_searched_on_as_many_of_each_half(plain: Plain) -> None:
    result = plain.result
    assert result.sizes["searched"] == plain.study.protocol.back_items < result.sizes["tried"]
    assert half_of_searched(plain).tolist().count(0) == 3
    entities = result["tried_entity"].sel(tried=result["searched"].values).values
    assert entities.tolist() == result["searched_entity"].values.tolist()


def test_a_null_that_is_searched_too_is_of_the_cell_at_which_others_do_best(plain: Plain) -> None:
    result, half = plain.result, half_of_searched(plain)
    expected = [
        float(result["null"][int(result["chosen_cell_null"][part]), column])
        for column, part in enumerate(half)
    ]
    np.testing.assert_array_equal(at_chosen(result, "null", "chosen_cell_null"), expected)
    assert result["has_null"].values.all()
    assert recovered(result)["back_patching_null_searched"].value == np.mean(expected)
    own = [
        float(result["own"][int(result["chosen_cell"][part]), column])
        for column, part in enumerate(half)
    ]
    assert recovered(result)["back_patching_canonical"].value == np.mean(own)


def half_of_searched(plain: Plain) -> np.ndarray:
    return plain.result["half"].sel(tried=plain.result["searched"].values).values


def test_chains_say_a_name_and_then_ask(plain: Plain) -> None:
    benchmark, vlm = plain.study.benchmark, plain.study.vlm
    assert benchmark.unnamed_chain
    assert benchmark.one_turn
    named = dict(
        zip(
            plain.gates["item"].values,
            plain.gates["text"].sel(gate="recognised").values,
            strict=True,
        )
    )

    def said(item: Item, template: Template) -> str:
        picture = benchmark.view(item.entity.code, 0)
        return plain.said(vlm.prompt([template.show(vlm.image_token or "")], images=[picture]))

    for row in rows_of(plain):
        item, rival = plain.questions.items[row], plain.questions.others.items[row]
        own, relation = str(named[item.id]), item.relation
        written = said(item, benchmark.one_turn(relation))
        expected = {
            "cot_named": benchmark.chain(relation, own),
            "cot_gold": benchmark.chain(relation, item.entity.name),
            "cot_wrong": benchmark.chain(relation, rival.entity.name),
            "cot_unnamed": benchmark.unnamed_chain(relation, own),
            "cot_own": benchmark.unnamed_chain(relation, written),
        }
        for arm, template in expected.items():
            expect(plain, arm, row, said(item, template))


def test_every_arm_is_tried_on_the_same_items_and_has_its_harm(plain: Plain) -> None:
    result = plain.result
    assert result["arm"].values.tolist() == [*ARMS]
    assert result.sizes["tried"] == 9 if plain.asked.n_lost == 9 else result.sizes["tried"] > 4
    assert result.sizes["kept"] > 0
    for arm in {*ARMS} - IN_PLACE:
        for name in ("recovered", "still_right"):
            assert np.isfinite(result[name].sel(arm=arm)).all(), (arm, name)
    for arm in IN_PLACE:
        assert np.isnan(result["recovered"].sel(arm=arm)).all()
    assert result["follow_arm"].values.tolist() == [*FOLLOW]
    assert result.attrs["n_lost"] == result.sizes["lost"] >= result.sizes["tried"]
    assert result.attrs["n_kept"] >= result.sizes["kept"]
    whole = result["recovered"].sel(arm=result.attrs["whole_arm"]).values
    assert result["whole"].sel(lost=result["tried"].values).values.tolist() == whole.tolist()
    assert 0 < result["whole"].mean() <= 1


def test_of_some_lost_items_the_rest_has_the_whole_transplant_alone(plain: Plain) -> None:
    result = plain.result
    tried = result["tried"].values
    rest = next(item for item in plain.asked.every_lost if item.id not in tried)
    questions = Questions(plain.study, [rest])
    value = plain.named([rest], [plain.study.benchmark.templates[rest.relation]])[0]
    prompt = questions.shown([0], share_prefix=False)
    image = prompt.at("image").index[0].tolist()
    edits: list[tuple[str, int, Edit]] = [
        ("resid_post", plain.study.pair.layer_map[block], _put(image, value[block, 0]))
        for block in range(len(value))
    ]
    text = plain.said(prompt, edits)
    assert bool(result["whole"].sel(lost=rest.id)) == bool(questions.score([text]).right[0])


def test_the_bar_ends_where_it_says(plain: Plain) -> None:
    assert sum(plain.ticks) == sum(plain.expected) > 0


def test_every_choice_is_made_on_the_other_half(plain: Plain) -> None:
    result = plain.result
    half = result["half"].values
    assert {*half} == {0, 1}
    for part in (0, 1):
        elsewhere = half != part
        gain = result["place_gain"].values[:, elsewhere].mean(1)
        assert int(result["chosen_place_index"][part]) == gain.argmax()
        searched = half_of_searched(plain) != part
        own, null, change = (result[name].values[:, searched].mean(1) for name in SOURCES)
        assert int(result["chosen_cell"][part]) == (own - np.maximum(null, change)).argmax()
        assert int(result["chosen_cell_null"][part]) == null.argmax()


def test_what_is_scored_has_no_say_in_the_choice(plain: Plain) -> None:
    """Other answers to the items of half 0 change what is chosen for half 1 alone."""
    asked, questions = plain.asked, plain.questions
    n, half = asked.n_lost, asked.half
    pairs = zip(questions.items, questions.others.items, half, strict=True)
    items = [
        replace(item, answers=other.answers) if part == 0 else item for item, other, part in pairs
    ]
    poisoned = replace(questions, items=items)
    own, own_mlp = plain.values["own"], plain.values["own_mlp"]
    _, place = place_arms(poisoned, own, half, n)
    written = {"span_mlp": own_mlp, "span_wrong_entity": own_mlp}
    _, span = span_arms(poisoned, written, half, n)
    before = plain.result
    assert place.which[0] == before["chosen_place_index"][0]
    assert span.which[0].tolist() == before["chosen_span_ends"][0].values.tolist()
    for scores, name in ((place.scores, "place_gain"), (span.scores, "span_score")):
        theirs, ours = half[:n] == 1, half[:n] == 0
        np.testing.assert_allclose(scores[:, theirs], before[name].values[:, theirs], atol=1e-3)
        assert not np.allclose(scores[:, ours], before[name].values[:, ours], atol=1e-1)


def test_an_entity_is_in_one_half(plain: Plain) -> None:
    result = plain.result
    halves: dict[str, set[int]] = {}
    for dim in ("tried", "kept"):
        half = result["half" if dim == "tried" else "kept_half"].values
        for entity, part in zip(result[f"{dim}_entity"].values, half, strict=True):
            halves.setdefault(entity, set()).add(int(part))
    assert all(len(parts) == 1 for parts in halves.values())
