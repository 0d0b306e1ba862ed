"""An evaluation survives its file, and nothing else is taken for one."""

import dataclasses
import json

import pytest

from cleft.errors import DataError
from cleft.results import Evaluation, Result, from_json, holm, resamples_for, to_json

EVALUATION = Evaluation(
    task="zero-shot",
    dataset="chexpert",
    split="test",
    split_recipe="patients",
    split_digest="0" * 16,
    ids_digest="1" * 16,
    checkpoint="2" * 16,
    scoring="multi-class",
    prompts="context",
    classes=("Edema", "Pneumonia"),
    class_prompts=("edema", "pneumonia"),
    results=(Result(metric="accuracy", value=0.5, interval=(0.4, 0.6), images=40, patients=30),),
    baselines=(Result(metric="ap-view/accuracy", value=None, reason="no view"),),
    confusion=((1, 2), (3, 4)),
    roc={"Edema": ((0.0, 0.0), (1.0, 1.0))},
    examples=({"image": "", "truth": "Edema", "answers": (("Edema", 0.9),)},),
)


def tree(**changes):
    return {**json.loads(to_json(EVALUATION)), **changes}


def read(tree):
    return from_json(json.dumps(tree), Evaluation, where="zero-shot.json")


def test_evaluation_round_trips():
    back = from_json(to_json(EVALUATION), Evaluation, where="zero-shot.json")
    assert dataclasses.replace(back, examples=()) == dataclasses.replace(EVALUATION, examples=())
    assert back.examples[0]["truth"] == "Edema"


def test_whole_number_is_read_as_float():
    assert read(tree(results=[{"metric": "accuracy", "value": 1}])).results[0].value == 1.0


@pytest.mark.parametrize("schema", [0, 2, "1", None, True])
def test_another_schema_is_refused(schema):
    with pytest.raises(DataError, match=r"zero-shot.json has schema .*, this version reads 1"):
        read(tree(schema=schema))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"seed": "0"}, "seed"),
        ({"seed": True}, "seed"),
        ({"synthetic": 1}, "synthetic"),
        ({"results": [{"metric": "accuracy", "value": "0.5"}]}, r"results\[0\]: value"),
        ({"results": [{"metric": "accuracy", "value": 0.5, "interval": [0.1]}]}, "interval"),
        ({"results": [3]}, r"results\[0\]"),
        ({"classes": "Edema"}, "classes"),
        ({"confusion": [[1, 2.5], [3, 4]]}, r"confusion\[0\]\[1\]"),
        ({"roc": []}, "roc"),
        ({"roc": {"Edema": [[0, 0, 0]]}}, "Edema"),
    ],
)
def test_value_of_another_type_is_refused_with_its_place(changes, place):
    with pytest.raises(DataError, match=place):
        read(tree(**changes))


def test_missing_and_unknown_fields_are_named():
    damaged = tree(coluor="red")
    del damaged["checkpoint"]
    with pytest.raises(DataError, match=r"missing fields \['checkpoint'\], unknown fields \['coluor'\]"):
        read(damaged)


@pytest.mark.parametrize("text", ["", "{", "[1]", "nul", '{"schema": 1, "seed": NaN}', "[" * 100_000])
def test_other_json_is_refused(text):
    with pytest.raises(DataError, match=r"zero-shot.json"):
        from_json(text, Evaluation, where="zero-shot.json")


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(dataclasses.replace(EVALUATION, results=(Result(metric="auc", value=float("nan")),)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renamed:
    template: str = dataclasses.field(metadata={"formerly": "opening"})
    protocol: str = dataclasses.field(default="", metadata={"old_values": {"usual": "standard"}})
    share: float = dataclasses.field(default=1.0, metadata={"formerly": ("part", "fraction")})


@pytest.mark.parametrize("name", ["share", "part", "fraction"])
def test_a_field_is_read_under_its_former_names_and_written_under_its_own(name):
    read = from_json(json.dumps({"schema": 1, "opening": "an image", name: 0.5}), Renamed, where="x.json")
    assert read == Renamed(template="an image", share=0.5)
    assert json.loads(to_json(read)) == {"schema": 1, "template": "an image", "protocol": "", "share": 0.5}


def test_a_renamed_value_is_read_by_its_former_name():
    text = json.dumps({"schema": 1, "template": "a", "protocol": "usual"})
    assert from_json(text, Renamed, where="x.json").protocol == "standard"


def test_the_same_field_under_two_names_is_refused():
    with pytest.raises(DataError, match="twice"):
        from_json(json.dumps({"schema": 1, "opening": "a", "template": "b"}), Renamed, where="x.json")


def test_holm_on_an_example_by_hand():
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, and none below one before it
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert found.p_values == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert found.family == 4


def test_holm_ignores_missing_p_values():
    found = holm([None, 0.02, None, 0.03])
    assert found.p_values == [None, pytest.approx(0.04), None, pytest.approx(0.04)]
    assert found.family == 2
    assert holm([]).p_values == []
    assert holm([None]) == ([None], 0)


def test_holm_bounds_p_values_and_keeps_ties():
    assert holm([0.6, 0.6, 0.9]).p_values == [1.0, 1.0, 1.0]
    assert holm([0.01, 0.01, 0.01]).p_values == pytest.approx([0.03, 0.03, 0.03])


def test_holm_multiplies_the_smallest_by_the_family_size():
    found = holm([0.028, 0.949, 0.398, 0.338, 0.767, 0.388, 0.306, 0.234, 0.653, 0.501, 0.194, 0.296])
    assert found.p_values[0] == pytest.approx(0.336)
    assert min(p for p in found.p_values if p is not None) > 0.05


@pytest.mark.parametrize("family", [1, 12, 25, 26, 168, 1000])
def test_resamples_allow_significance_after_correction(family):
    resamples = resamples_for(family)
    assert 2 / (resamples + 1) * family <= 0.05
    assert resamples >= 1000
