"""The paper's tables have the paper's shape, and every row has settings."""

import pytest
from tests.fakes.chexpert import write_fake_chexpert

from cleft.config import load_settings
from cleft.data.tables.csv import read_table
from cleft.errors import ConfigError
from cleft.studies.plans import PLANS, column, paper_plan
from cleft.studies.run_step import do
from cleft.studies.steps import Given, lay_out, row_settings

NAMES = sorted(PLANS)


@pytest.mark.parametrize("scale", ["paper", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_settings(name, scale):
    plan = paper_plan(name, scale)
    assert len({row.key for row in plan.rows}) == len(plan.rows)
    for row in plan.rows:
        row_settings(row, Given(data={}))


def test_table_1_has_eleven_rows_and_six_questions():
    plan = paper_plan("table1", "paper")
    assert [row.label for row in plan.rows] == [
        "Random-ViT",
        "ImageNet-ViT",
        "CLIP-ViT",
        "ConVIRT-R50",
        "GLoRIA-R50",
        "MGCA-ViT",
        "MRM-ViT",
        "MedCLIP-Swin",
        "CLEFT-Prefix",
        "CLEFT-IA3",
        "CLEFT-LoRA",
    ]
    assert [each.key for each in plan.columns] == [
        f"{subject}/{task}" for subject in ("chexpert", "rsna") for task in ("zero-shot", "linear-probe", "fine-tune")
    ]
    assert plan.columns[0].metrics == ("accuracy",)
    assert plan.columns[1].metrics == ("accuracy", "auc")


def test_the_tiny_table_1_has_every_method_twice_under_two_headings():
    rows = {row.key: row for row in paper_plan("table1", "tiny").rows}
    ours = row_settings(rows["cleft-lora"], Given(data={}))
    methods = ("clip", "convirt", "gloria", "mgca", "mrm", "medclip")
    matched = {name: row_settings(rows[f"matched-{name}"], Given(data={})) for name in methods}
    published = {row.preset: row for row in rows.values() if row.heading.startswith("as published")}
    assert list(published) == [f"tiny-baseline-{name}" for name in methods]
    assert len([row for row in rows.values() if row.heading.startswith("matched")]) + len(published) == len(rows) == 17
    for name, settings in matched.items():
        own = row_settings(published[f"tiny-baseline-{name}"], Given(data={}))
        assert settings.method == own.method == name
        assert (settings.images, settings.optim, settings.train) == (ours.images, ours.optim, ours.train)
        assert settings.image == (own.image if name == "mrm" else ours.image)
        assert (settings.text, settings.loss, settings.data) == (own.text, own.loss, own.data)
        for each in (settings, own):  # the same images are learned from and asked about
            assert (each.data.split, each.data.val_fraction, each.data.test_fraction) == (
                ours.data.split,
                ours.data.val_fraction,
                ours.data.test_fraction,
            )
            assert (each.classify, each.classes, each.images.size) == (ours.classify, ours.classes, ours.images.size)


def test_what_is_typed_for_all_rows_holds_for_matched_ones(tmp_path):
    row = next(row for row in paper_plan("table1", "tiny").rows if row.key == "matched-clip")
    settings = row_settings(row, Given(data={}, words=("--optim.steps=200", "--image.pooling=cls"), runs=tmp_path))
    assert (settings.optim.steps, settings.image.pooling) == (200, "cls")


def test_rows_with_a_masked_model_begin_from_one_that_knows_what_they_read(tmp_path):
    data = {"chexpert": write_fake_chexpert(tmp_path / "data"), "rsna": tmp_path}
    work = lay_out([paper_plan("table1", "tiny")], Given(data=data, runs=tmp_path / "runs", seeds=1))
    models = [name for name, step in work.steps.items() if step.kind == "language-model"]
    assert len(models) == 2  # a causal one for CLEFT, a masked one for everybody else
    begun = {name: step.settings.text.model for name, step in work.steps.items() if step.kind == "pretrain"}
    masked = {model for name, model in begun.items() if "cleft" not in name and "mrm" not in name and model}
    assert len(masked - {load_settings("tiny-scale").text.model}) == 1
    assert begun["mrm-vit/seed-0/stage-one"] is begun["matched-mrm/seed-0/stage-one"] is None


def test_the_whole_paper_shares_what_it_can(tmp_path):
    data = {name: tmp_path for name in ("chexpert", "rsna", "embed")}
    plans = [paper_plan(name, "paper") for name in PLANS]
    work = lay_out(plans, Given(data=data, seeds=1, runs=tmp_path / "runs"))
    ours = [name for name, step in work.steps.items() if step.kind == "pretrain" and "cleft" in name]
    assert sorted(ours) == [
        f"{row}/seed-0/stage-one" for row in ("cleft-ia3", "cleft-lora", "cleft-prefix", "embed-cleft-lora")
    ]
    contexts = [name for name, step in work.steps.items() if step.kind == "context" and "length" in name]
    assert [name.split("/")[0] for name in contexts] == ["length-5", "length-10", "length-20", "length-40", "length-50"]
    assert work.cells["figure3", "length-30", "rsna/zero-shot"] == ("cleft-lora/seed-0/context/rsna",)
    assert work.cells["table3", "no-context", "rsna/zero-shot"] == ("cleft-lora/seed-0/stage-one/rsna",)
    assert work.steps["embed-cleft-lora/seed-0/context-density-4"].settings.classes == ("density-4",)
    head = work.steps["cleft-lora/seed-0/fine-tune-rsna-0.1"].settings.classify
    assert (head.protocol, head.mode, head.fraction) == ("paper", "fine-tune", 0.1)


def test_a_typed_protocol_has_the_last_word(tmp_path):
    given = Given(data={"chexpert": tmp_path}, words=("--classify.protocol=standard",), seeds=1, runs=tmp_path)
    work = lay_out([paper_plan("tableS1", "paper")], given)
    assert work.steps["cleft-lora/seed-0/fine-tune-chexpert-1"].settings.classify.protocol == "standard"


def test_what_a_row_cannot_answer_or_has_no_data_for_is_told(tmp_path):
    work = lay_out([paper_plan("table1", "paper")], Given(data={}))
    assert work.lacking["table1", "mrm-vit", "chexpert/zero-shot"] == ("impossible", "it reads no sentences")
    work = lay_out([paper_plan("table1", "paper")], Given(data={"rsna": tmp_path}, runs=tmp_path))
    assert ("table1", "random-vit", "rsna/fine-tune") in work.cells  # nothing is learned before
    assert work.lacking["table1", "mrm-vit", "rsna/fine-tune"][0] == "missing"
    state, reason = work.lacking["table1", "cleft-lora", "rsna/zero-shot"]
    assert (state, reason) == ("missing", "the data set chexpert was not given: --data chexpert=<folder>")


def test_weights_that_cannot_be_had_are_told(tmp_path):
    lacking = {"stanford-crfm/BioMedLM": "it is not here"}
    work = lay_out([paper_plan("table3", "paper")], Given(data={"chexpert": tmp_path, "rsna": tmp_path}), lacking)
    assert work.lacking["table3", "full-lm", "rsna/zero-shot"] == ("missing", "it is not here")


def test_two_rows_never_share_a_run_of_different_settings(tmp_path):
    plans = [paper_plan("table1", "paper"), paper_plan("table1", "tiny")]
    with pytest.raises(ConfigError, match="is a run of another row with other settings; rename the row"):
        lay_out(plans, Given(data={"chexpert": tmp_path, "rsna": tmp_path}, runs=tmp_path))


def test_a_share_of_the_patients_is_part_of_a_heading():
    assert column("chexpert/linear-probe/0.01").label == "CheXpert-5x200, linear probe, 1 %"
    assert column("chexpert/linear-probe").fraction == 1


def test_patients_of_another_test_stay_out_where_both_show_the_same_people(shared, tmp_path):
    data = {name: shared / f"data/{name}-mini" for name in ("chexpert", "rsna")}
    words = ("--data.patient_dataset=nih", f"--data.cache={tmp_path / 'cache'}")
    plans = [paper_plan(name, "tiny") for name in ("table1", "table3")]
    work = lay_out(plans, Given(data=data, words=words, seeds=1, runs=tmp_path / "runs"))
    [apart] = [step for step in work.steps.values() if step.kind == "apart"]
    table = do(apart)
    assert len(read_table(table)[0].columns["patient"].texts()) == 46
    assert oct(table.stat().st_mode & 0o777) == "0o600"
    one = work.steps["cleft-lora/seed-0/stage-one"]
    assert one.settings.data.exclude_patients == table
    assert apart.name in one.needs


def test_nobody_is_kept_apart_where_nothing_says_whose_patients_they_are(tmp_path):
    data = {"chexpert": write_fake_chexpert(tmp_path / "data"), "rsna": tmp_path}
    work = lay_out([paper_plan("table3", "tiny")], Given(data=data, runs=tmp_path / "runs"))
    assert not [step for step in work.steps.values() if step.kind == "apart"]


def test_a_new_setting_gives_no_other_name_to_what_rows_share(tmp_path):
    data = {"chexpert": write_fake_chexpert(tmp_path / "data")}
    names = [
        next(step.name for step in lay_out([paper_plan("table3", "tiny")], given).steps.values() if step.needs == ())
        for given in (
            Given(data=data, runs=tmp_path),
            Given(data=data, runs=tmp_path, words=("--data.test_fraction=0.3",)),
        )
    ]
    assert names[0] == "base-lm-chexpert-568c7d"  # it may change with the preset alone, for studies go on by it
    assert names[0] != names[1]
