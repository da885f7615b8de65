"""Items of a file in a study: prompts in the declared format, pictures, and the command line."""

# ruff: noqa: F811 - `rows` is a fixture of test_data

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import xarray as xr
from families import model_of
from floors import FLOOR32
from original_llava import write_model
from PIL import Image
from test_data import Row, drawn, jsonl, rows  # noqa: F401

import interventions as iv
from interventions.errors import PromptError
from interventions.results import read_tree
from twohop.ask.study import Study, image_prompt, pictured, text_array, text_prompt
from twohop.cli import main
from twohop.flags import benchmark as flags
from twohop.flags import templates
from twohop.items.benchmark import Views, check_views, data_benchmark
from twohop.items.datamap import DataMap, Wording, read_map
from twohop.items.digest import asked_parts
from twohop.items.formats import (
    CHAT,
    COMPLETION,
    QA,
    PromptFormat,
    Writer,
    chat_template_of,
    end_of_turn,
)
from twohop.items.items import Benchmark, Template
from twohop.items.pictures import Picture, picture_of
from twohop.items.reading import DataError
from twohop.items.validation import check
from twohop.micro import benchmark as micro
from twohop.micro import micro_folder
from twohop.pairs import PAIRS, find_pair, model_name, own_pair, with_data
from twohop.stages.resolution.picture_maps import MEASURES

CAPITAL = Wording("What is the capital of {entity}?")
SHOWN = Wording("What is the capital of {entity}?", "Which capital has this country?")


def same_prompts(one: Template, other: Template) -> None:
    assert one.fill("France") == other.fill("France")
    assert one.span("France") == other.span("France")
    assert one.show("<image>") == other.show("<image>")


def test_the_flags_prompts_are_a_format_with_examples() -> None:
    built_in = flags.benchmark()
    writer = Writer(QA)

    def wording(text: str, examples: Any) -> Wording:
        asked = text.removeprefix("Question: ").removesuffix("\nAnswer:")
        return Wording(asked, examples=tuple(examples))

    naming = wording(templates.NAMING.question, [(x, x) for x in ("Scotland", "Puerto Rico")])
    assert writer.template(naming) == built_in.naming
    for relation, template in built_in.templates.items():
        told = wording(templates._ASKED[relation], templates._EXAMPLES[relation])  # pyright: ignore
        assert writer.template(told) == template
        for name in ("France", "the flag of Chad"):
            same_prompts(writer.chain(naming, told, name), built_in.chain(relation, name))


def test_the_micro_prompts_are_a_format_too() -> None:
    built_in = micro.benchmark()
    writer = Writer(PromptFormat("completion", stop=" ."))
    naming = Wording("Question : Which country is {entity} ? Answer :")
    same_prompts(writer.template(naming), built_in.naming)
    told = Wording("Question : What is the capital of {entity} ? Answer :")
    same_prompts(writer.template(told), built_in.templates["capital"])
    same_prompts(writer.chain(naming, told, "Dravia"), built_in.chain("capital", "Dravia"))


def test_a_picture_without_a_place_comes_first() -> None:
    asked = Writer(QA).template(SHOWN)
    assert asked.show("<image>") == ("<image>\nQuestion: Which capital has this country?\nAnswer:")
    inline = Wording(CAPITAL.text, "In {image} you see what, and its capital?")
    assert Writer(COMPLETION).template(inline).show("<image>").startswith("In <image> you see")
    few = Writer(QA).template(Wording(SHOWN.text, SHOWN.image, (("Wales", "Cardiff"),)))
    assert few.prefix == "Question: What is the capital of Wales?\nAnswer: Cardiff\n\n"
    assert few.show("<image>").startswith(f"{few.prefix}<image>\nQuestion: Which")


@pytest.mark.parametrize("family", tiny.VLMS)
@pytest.mark.parametrize("wording", [CAPITAL, SHOWN], ids=["in place", "in front"])
def test_a_chat_is_what_the_processor_writes(family: str, wording: Wording) -> None:
    vlm = model_of(family)
    writer = Writer(CHAT, chat_template_of(vlm.processor, name=family))
    wording = Wording(wording.text, wording.image, (("Wales", "Cardiff"),))
    asked = writer.template(wording)

    def said(role: str, *parts: str) -> Row:
        content = [
            {"type": "image"} if one == "" else {"type": "text", "text": one} for one in parts
        ]
        return {"role": role, "content": content}

    before = [
        said("user", CAPITAL.text.replace("{entity}", "Wales")),
        said("assistant", "Cardiff"),
    ]
    text = CAPITAL.text.replace("{entity}", "France")
    prompt = vlm.prompt(asked.fill("France"), spans={"entity": asked.span("France")})
    expected = vlm.prompt([[*before, said("user", text)]])
    assert prompt.inputs["input_ids"].tolist() == expected.inputs["input_ids"].tolist()
    ids = prompt.inputs["input_ids"][0][prompt.roles[0]["entity"]]
    assert str(vlm.tokenizer.decode(ids)).strip() == "France"

    picture = tiny.picture((40, 30))
    shown = vlm.prompt(asked.show(vlm.image_token or ""), images=picture)
    if wording.image is not None:
        turn = said("user", "", wording.image)
    else:
        turn = said("user", CAPITAL.text.replace("{entity}", vlm.image_token or ""))
    theirs = vlm.prompt([[*before, turn]], images=[[picture]])
    assert shown.inputs["input_ids"].tolist() == theirs.inputs["input_ids"].tolist()
    chain = writer.chain(wording, wording, "Peru").show(vlm.image_token or "")
    assert vlm.prompt(chain, images=picture).texts[0].count("Peru") == 2


def test_a_chat_needs_a_chat_template() -> None:
    vlm = model_of("llava")
    processor: Any = type("Bare", (), {"chat_template": None, "tokenizer": vlm.tokenizer})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm.tokenizer, "chat_template", None)
        with pytest.raises(PromptError, match="has no chat template"):
            chat_template_of(processor, name="bare")
    with pytest.raises(PromptError, match="needs the VLM's chat template"):
        Writer(CHAT).template(CAPITAL)
    with pytest.raises(PromptError, match="0 places for the entity"):
        Writer(CHAT, lambda _: "deaf").template(CAPITAL)


@pytest.fixture
def views(tmp_path: Path) -> dict[str, tuple[Picture, ...]]:
    made = [picture_of(drawn(tmp_path / f"{c}.png", c), tmp_path) for c in ("red", "blue")]
    return {"two": tuple(made), "one": tuple(made[:1])}


def test_pictures_by_number(views: dict[str, tuple[Picture, ...]]) -> None:
    own = Views(views)
    assert own("two", 1).getpixel((12, 9)) == (0, 0, 255)
    with pytest.raises(DataError, match=r"picture 3 of 'two' was asked for, and there are 2"):
        own("two", 2)
    made = Views(views, alter=True)
    red, _, blue = made("two", 2).resize((1, 1)).getpixel((0, 0))  # pyright: ignore
    assert blue > 150 > red, "a copy of the picture that is not asked about"
    assert made("one", 3).tobytes() == made("one", 3).tobytes()


def test_too_few_pictures_are_said_before_anything_runs(tmp_path: Path, rows: list[Row]) -> None:
    checked = check(jsonl(tmp_path / "items.jsonl", rows))
    with pytest.raises(DataError, match="3 of 3 entities have fewer, such as 'france' with 1"):
        check_views(checked, needed=4)
    with pytest.raises(DataError, match="stage `resolution`"):
        with_data(PAIRS["micro-naming"], checked)
    made = with_data(PAIRS["micro-naming"], checked, alter_views=True)
    assert made.key == "micro-naming-items"
    assert "upper bound" in made.benchmark().notes


def test_results_belong_to_their_pictures_and_wordings(tmp_path: Path, rows: list[Row]) -> None:
    def found(**changes: Any) -> str:
        checked = check([{**row, "image": tmp_path / row["image"], **changes} for row in rows])
        return str(asked_parts(data_benchmark(checked, Writer(QA))))

    before = found()
    assert before == found()
    asked = found(image_question="Which capital has it?")
    drawn(tmp_path / "Peru.png", "black")
    assert len({before, asked, found()}) == 3


def test_a_format_is_chosen_declared_and_overruled(tmp_path: Path, rows: list[Row]) -> None:
    checked = check(jsonl(tmp_path / "items.jsonl", rows), DataMap(format="qa", stop="!"))
    pair = own_pair(micro_folder("micro-naming"), micro_folder("micro-backbone"))
    assert pair.format is None

    def asked(one: Any, **more: Any) -> Benchmark:
        return with_data(pair, one, alter_views=True, **more).benchmark()

    assert asked(checked).templates["capital"].question.startswith("Question: What")
    assert asked(checked).stop == "!"
    bare = asked(checked, format="completion").templates["capital"]
    assert bare.question == "What is the capital of {entity}?"
    plain = check(tmp_path / "items.jsonl")
    assert asked(plain).templates["capital"].question.startswith("Question: What")
    for key, format in {"micro-late": COMPLETION, "flags-naming": QA}.items():
        assert with_data(PAIRS[key], plain, alter_views=True).format == format
    published = find_pair("llava-1.5-7b", has_data=True)
    assert (published.format, published.vlm()) == (CHAT, "llava-hf/llava-1.5-7b-hf")


def test_wordings_of_one_relation_share_their_answers(tmp_path: Path, rows: list[Row]) -> None:
    rows[1]["question"] = "Peru is governed from"
    checked = check(jsonl(tmp_path / "items.jsonl", rows))
    made = data_benchmark(checked, Writer(COMPLETION))
    assert made.relations == ("capital", "capital (2)")
    everything = ["Accra", "Lima", "Paris"]
    assert made.answer_set("capital") == made.answer_set("capital (2)") == everything
    assert made.limited(2).answer_set("capital") == everything


def exported(folder: Path, benchmark: Benchmark) -> Path:
    """The micro world as a file with images."""
    made = []
    for item in benchmark.items:
        names = [f"{item.entity.code}-{view}.png" for view in range(4)]
        for view, name in enumerate(names):
            benchmark.view(item.entity.code, view).save(folder / name)
        question = benchmark.templates[item.relation].fill(item.entity.name)
        made.append(
            {
                "id": item.id,
                "entity_id": item.entity.code,
                "entity": item.entity.name,
                "image": names,
                "relation": item.relation,
                "question": question,
                "answers": list(item.answers),
            }
        )
    (folder / "map.toml").write_text(
        'format = "completion"\nstop = " ."\n'
        'naming = "Question : Which country is {entity} ? Answer :"\n'
    )
    return jsonl(folder / "world.jsonl", made)


def test_a_study_of_a_file_is_that_of_the_same_items_built_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], studied: Callable[..., Path]
) -> None:
    data = exported(tmp_path, micro.benchmark())
    out, vlm = tmp_path / "runs", micro_folder("micro-naming")
    command = ["study", "--vlm", str(vlm), "--backbone", str(micro_folder("micro-backbone"))]
    command += ["--data", str(data), "--map", str(tmp_path / "map.toml"), "--out", str(out)]
    assert main([*command, "--limit", "6", "--preset", "quick"]) == 0
    assert "72 of 72 rows are usable" in capsys.readouterr().err
    ours = read_tree(out / f"{vlm.name}-world")
    theirs = read_tree(studied("micro-naming", limit=6) / "micro-naming")
    for stage in theirs.children:
        one, other = ours[stage].to_dataset(), theirs[stage].to_dataset()
        if stage == "recovery":  # these choose positions in the question, which begins elsewhere
            theirs_alone = [
                name for name in one["arm"].values if name.startswith(("place", "span"))
            ]
            one, other = (
                x.drop_sel(arm=theirs_alone, follow_arm="span_wrong_entity")
                .drop_dims("place")
                .drop_vars([name for name in x.variables if str(name).startswith("chosen_")])
                for x in (one, other)
            )
        if stage == "resolution":  # so do places in the question
            asked = [role for role in one["role"].values if str(role).startswith("question token")]
            one, other = (x.drop_sel(role=asked) for x in (one, other))
            lenses = ["lens_entity", "lens_answer", "picture_lens"]
            lenses += [f"picture_{measure}" for measure in MEASURES]
            for lens in lenses:  # read beside other tokens: rounded so
                xr.testing.assert_allclose(one[lens], other[lens], rtol=0, atol=100 * FLOOR32)
            one, other = (x.drop_vars(lenses) for x in (one, other))
        xr.testing.assert_equal(one, other)
    about = json.loads((out / f"{vlm.name}-world" / "settings.json").read_text())
    assert about["vlm"] == str(vlm.resolve())
    page = (out / f"{vlm.name}-world" / "report.html").read_text()
    assert "Items from world: 72 of 72 rows are used" in page


def test_a_checkpoint_in_llavas_original_layout_is_studied_as_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaVA-MORE's: its processor is made around the tokenizer, to ask as to load."""
    stock = iv.load(micro_folder("micro-naming"))
    processor: Any = stock.processor
    config = stock.module.config
    write_model(
        tmp_path / "more",
        stock.module,
        processor.image_processor,
        stock.tokenizer,
        mm_vision_select_layer=config.vision_feature_layer,
    )
    data = exported(tmp_path, micro.benchmark())
    run = ["--backbone", str(micro_folder("micro-backbone")), "--data", str(data), "--limit", "6"]
    run += ["--stage", "recall", "--preset", "quick"]
    maps = {"told": ["--map", str(tmp_path / "map.toml")], "chosen": []}
    for how, options in maps.items():
        gates = []
        for vlm in (micro_folder("micro-naming"), tmp_path / "more"):
            out = tmp_path / how / vlm.name
            assert main(["study", "--vlm", str(vlm), *run, *options, "--out", str(out)]) == 0
            capsys.readouterr()
            folder = next(path for path in out.iterdir() if path.name.startswith(vlm.name))
            gates.append(read_tree(folder)["recall"].to_dataset())
        stored, converted = gates
        xr.testing.assert_equal(stored, converted)
        if how == "told":
            assert converted["right"].sel(gate="recognised").values.any()


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    made = {}
    for name in ("one", "two"):
        folder = shutil.copytree(micro_folder("micro-naming"), tmp_path / name / "model")
        made[name] = own_pair(folder, "someone/backbone")
    one, two = (made[name].vlm() for name in ("one", "two"))
    assert made["one"].key == made["two"].key == "model"
    assert model_name(one) != model_name(two)
    assert model_name(made["one"].backbone()) == "someone/backbone"


def test_data_check_on_the_command_line(
    tmp_path: Path,
    rows: list[Row],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows[2]["image"] = "[red]gone[/red].png"
    path = str(jsonl(tmp_path / "items.jsonl", rows))
    assert main(["data", "check", path]) == 0
    said = capsys.readouterr().out
    for part in ("2 of 3 rows are usable", "image_missing", "capital", "50 %"):
        assert part in said
    assert main(["data", "check", path, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["reasons"] == {"image_missing": 1}
    assert report["set_aside"][0]["place"] == "line 3"
    assert report["relations"][0]["best_constant"] == 0.5
    for row in rows:
        row["answers"] = []
    jsonl(tmp_path / "items.jsonl", rows)
    assert main(["data", "check", path]) == 1
    assert "0 of 3 rows are usable" in capsys.readouterr().out
    assert main(["data", "check", path, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["usable"] == 0
    assert main(["data", "check", path, "--map", "entity=nmae"]) == 2
    assert "no column 'nmae'" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "no.csv")]) == 2


def test_all_rows_are_named_when_asked(
    tmp_path: Path,
    rows: list[Row],
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = [{**rows[0], "id": str(i), "image": f"{i}.png"} for i in range(9)]
    path = str(jsonl(tmp_path / "items.jsonl", [*rows, *many]))
    assert main(["data", "check", path]) == 0
    assert "and 4 more" in capsys.readouterr().out
    assert main(["data", "check", path, "--all"]) == 0
    assert "line 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no pair was given"),
        (["--vlm", "x"], "Give both, or neither"),
        (["--vlm", "x", "--backbone", "y", "--map", "a=b"], "--map is for the items of a file"),
        (["micro-naming", "--data", "flags", "--map", "a=b"], "--map is for the items of a file"),
        (["micro-naming", "--map", "a=b"], "--map is for the items of a file"),
        (["micro-naming", "--alter-views"], "--alter-views is for the items of a file"),
        (["micro-naming", "--data", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["gemma-3-12b", "--data", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
    ],
)
def test_mistakes_end_in_one_message(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *arguments, "--out", str(tmp_path / "runs")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_own_pair_that_is_no_model_says_so(
    tmp_path: Path,
    rows: list[Row],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = str(jsonl(tmp_path / "items.jsonl", rows))
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["study", "--vlm", str(empty), "--backbone", str(empty), "--data", data]
    assert main([*command, "--alter-views", "--out", str(tmp_path / "runs")]) == 2
    assert "the processor of" in capsys.readouterr().err


def test_the_map_of_a_file_of_pil_images(rows: list[Row]) -> None:
    made = [{**row, "picture": Image.new("RGB", (9, 9), "red")} for row in rows]
    for row in made:
        del row["image"]
    assert check(made, read_map("image=picture")).report.usable == 3


def test_stages_ask_the_pictures_question_of_pictures(tmp_path: Path, rows: list[Row]) -> None:
    for row in rows:
        row["image_question"] = "Which capital has this country?"
    checked = check(jsonl(tmp_path / "items.jsonl", rows))
    benchmark = data_benchmark(checked, Writer(QA))
    vlm = model_of("llava")
    study = Study(vlm=vlm, backbone=model_of("llama"), benchmark=benchmark)
    template, entities = benchmark.templates["capital"], benchmark.entities
    for text in image_prompt(study, template, entities).texts:
        assert text == "<image>\nQuestion: Which capital has this country?\nAnswer:"
    named = text_prompt(study.backbone, template, entities, share_prefix=False)
    assert named.texts[1] == "Question: What is the capital of Peru?\nAnswer:"
    item = benchmark.items[0]
    [chained] = pictured(study, [item], [benchmark.chain(item.relation, "Chad")]).texts
    assert chained.startswith("<image>\nQuestion: What is the name of what this picture shows?")
    assert chained.endswith("Answer: Chad\nQuestion: What is the capital of Chad?\nAnswer:")


def test_the_readme_shows_a_row_and_a_map_that_work(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "twohop" / "items" / "README.md").read_text()
    row = json.loads(text.split("```json\n")[1].split("```")[0])
    (tmp_path / "flags").mkdir()
    drawn(tmp_path / row["image"])
    found = check(jsonl(tmp_path / "items.jsonl", [row]))
    assert found.report.usable == 1
    assert found.wordings["capital"].image == "What is this country's capital?"
    (tmp_path / "map.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    del row["question"], row["image_question"]
    row["name"] = row.pop("entity")
    found = check(jsonl(tmp_path / "items.jsonl", [row]), read_map(tmp_path / "map.toml"))
    made = data_benchmark(found, Writer(QA)).templates["capital"]
    assert made.fill("France").startswith("Question: What is the capital of Scotland?\nAnswer: Ed")
    assert made.show("<image>").endswith("capital of the country in <image>?\nAnswer:")


@pytest.mark.parametrize(
    ("family", "mark"),
    [
        ("qwen2_5_vl", "<|im_end|>"),
        ("mllama", "<|eot_id|>"),
        ("gemma3", "<end_of_turn>"),
        ("llava", None),
    ],
)
def test_the_mark_that_ends_a_turn_is_the_templates(family: str, mark: str | None) -> None:
    assert end_of_turn(model_of(family).processor) == mark


def test_a_zero_byte_that_a_model_says_can_be_stored() -> None:
    assert text_array([["a\0b", "c"]]).tolist() == [["a\ufffdb", "c"]]
