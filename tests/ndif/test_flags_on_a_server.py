"""The embedded pair, of 135 million parameters, on two deployments of a server."""

import interventions as iv
from twohop.pairs import find_pair

PAIR = find_pair("flags-naming")


def test_a_transplant_gives_a_fact_back(path: str) -> None:
    question, flag = PAIR.benchmark().templates["capital"], PAIR.benchmark().view("FR", 0)
    here = [iv.load(place) for place in PAIR.places().values()]
    there = [iv.load(place, remote=True) for place in PAIR.places(remote=True).values()]
    said, values = [], []
    for vlm, llm in (here, there):
        named = llm.prompt(question.fill("France"), spans={"entity": question.span("France")})
        shown = vlm.prompt(question.show(vlm.image_token or ""), images=flag)
        patches = iv.transplant(
            iv.pair(vlm, llm),
            named,
            component="resid_post",
            layers=slice(0, 5),
            read_at=named.at("entity", -1),
            write_at=shown.at("image"),
            how="last-to-all",
        )
        plain, patched = (
            iv.complete(vlm, shown, patches=some, candidates=["Paris", "Rome"], max_new_tokens=3)
            for some in ((), patches)
        )
        assert "Paris" not in plain.texts[0]
        assert "Paris" in patched.texts[0]
        said.append((plain.texts, patched.texts, patched.choices))
        values.append((patches[0].value, patched.logprobs[0]))
    assert said[0] == said[1]
    (value, logprob), (theirs, other) = values
    assert float((value - theirs).abs().max()) < 1e-5 * float(value.abs().max())
    assert abs(logprob - other) < 1e-4
