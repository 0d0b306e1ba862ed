"""Studies of the paper: rows, columns and steps."""

import pytest
from tests.fakes.chexpert import write_fake_chexpert

from cleft.config import load_settings
from cleft.data.tables.csv import read_table
from cleft.errors import ConfigError
from cleft.studies.plans import PLANS, column, paper_plan
from cleft.studies.run_step import run_step
from cleft.studies.steps import StudyOptions, plan_steps, row_settings

NAMES = sorted(PLANS)


@pytest.mark.parametrize("scale", ["paper", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_valid_settings(name, scale):
    plan = paper_plan(name, scale)
    assert len({row.key for row in plan.rows}) == len(plan.rows)
    for row in plan.rows:
        row_settings(row, StudyOptions(data={}))


def test_table_1_has_eleven_rows_and_six_columns():
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


def test_tiny_table_1_has_every_method_matched_and_as_published():
    rows = {row.key: row for row in paper_plan("table1", "tiny").rows}
    ours = row_settings(rows["cleft-lora"], StudyOptions(data={}))
    methods = ("clip", "convirt", "gloria", "mgca", "mrm", "medclip")
    matched = {name: row_settings(rows[f"matched-{name}"], StudyOptions(data={})) for name in methods}
    published = {row.preset: row for row in rows.values() if row.heading.startswith("as published")}
    assert list(published) == [f"tiny-baseline-{name}" for name in methods]
    assert len([row for row in rows.values() if row.heading.startswith("matched")]) + len(published) == len(rows) == 17
    for name, settings in matched.items():
        own = row_settings(published[f"tiny-baseline-{name}"], StudyOptions(data={}))
        assert settings.method == own.method == name
        assert (settings.images, settings.optim, settings.train) == (ours.images, ours.optim, ours.train)
        assert settings.image == (own.image if name == "mrm" else ours.image)
        assert (settings.text, settings.loss, settings.data) == (own.text, own.loss, own.data)
        for each in (settings, own):  # the same training and test images
            assert (each.data.split, each.data.val_fraction, each.data.test_fraction) == (
                ours.data.split,
                ours.data.val_fraction,
                ours.data.test_fraction,
            )
            assert (each.classify, each.classes, each.images.size) == (ours.classify, ours.classes, ours.images.size)


def test_overrides_apply_to_matched_rows(tmp_path):
    row = next(row for row in paper_plan("table1", "tiny").rows if row.key == "matched-clip")
    settings = row_settings(
        row, StudyOptions(data={}, overrides=("--optim.steps=200", "--image.pooling=cls"), runs=tmp_path)
    )
    assert (settings.optim.steps, settings.image.pooling) == (200, "cls")


def test_masked_rows_share_a_caption_lm(tmp_path):
    data = {"chexpert": write_fake_chexpert(tmp_path / "data"), "rsna": tmp_path}
    work = plan_steps([paper_plan("table1", "tiny")], StudyOptions(data=data, runs=tmp_path / "runs", seeds=1))
    models = [name for name, step in work.steps.items() if step.kind == "caption-lm"]
    assert len(models) == 2  # a causal one for CLEFT, a masked one for everybody else
    begun = {name: step.settings.text.model for name, step in work.steps.items() if step.kind == "pretrain"}
    masked = {model for name, model in begun.items() if "cleft" not in name and "mrm" not in name and model}
    assert len(masked - {load_settings("tiny-scale").text.model}) == 1
    assert begun["mrm-vit/seed-0/stage-one"] is begun["matched-mrm/seed-0/stage-one"] is None


def test_studies_of_the_paper_share_steps(tmp_path):
    data = {name: tmp_path for name in ("chexpert", "rsna", "embed")}
    plans = [paper_plan(name, "paper") for name in PLANS]
    work = plan_steps(plans, StudyOptions(data=data, seeds=1, runs=tmp_path / "runs"))
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


def test_protocol_override_is_used(tmp_path):
    given = StudyOptions(
        data={"chexpert": tmp_path}, overrides=("--classify.protocol=standard",), seeds=1, runs=tmp_path
    )
    work = plan_steps([paper_plan("tableS1", "paper")], given)
    assert work.steps["cleft-lora/seed-0/fine-tune-chexpert-1"].settings.classify.protocol == "standard"


def test_unavailable_cells_have_reasons(tmp_path):
    work = plan_steps([paper_plan("table1", "paper")], StudyOptions(data={}))
    assert work.unavailable["table1", "mrm-vit", "chexpert/zero-shot"] == ("impossible", "no text encoder")
    work = plan_steps([paper_plan("table1", "paper")], StudyOptions(data={"rsna": tmp_path}, runs=tmp_path))
    assert ("table1", "random-vit", "rsna/fine-tune") in work.cells  # nothing is learned before
    assert work.unavailable["table1", "mrm-vit", "rsna/fine-tune"][0] == "missing"
    state, reason = work.unavailable["table1", "cleft-lora", "rsna/zero-shot"]
    assert (state, reason) == ("missing", "no data for chexpert; give --data chexpert=<folder>")


def test_unavailable_weights_are_reported(tmp_path):
    lacking = {"stanford-crfm/BioMedLM": "it is not here"}
    work = plan_steps(
        [paper_plan("table3", "paper")], StudyOptions(data={"chexpert": tmp_path, "rsna": tmp_path}), lacking
    )
    assert work.unavailable["table3", "full-lm", "rsna/zero-shot"] == ("missing", "it is not here")


def test_rows_with_other_settings_do_not_share_a_run(tmp_path):
    plans = [paper_plan("table1", "paper"), paper_plan("table1", "tiny")]
    with pytest.raises(ConfigError, match="is also a run of another row with other settings; rename the row"):
        plan_steps(plans, StudyOptions(data={"chexpert": tmp_path, "rsna": tmp_path}, runs=tmp_path))


def test_column_label_has_the_share_of_patients():
    assert column("chexpert/linear-probe/0.01").label == "CheXpert-5x200, linear probe, 1 %"
    assert column("chexpert/linear-probe").fraction == 1


def test_test_patients_of_other_datasets_are_excluded(shared, tmp_path):
    data = {name: shared / f"data/{name}-mini" for name in ("chexpert", "rsna")}
    words = ("--data.patient_dataset=nih", f"--data.cache={tmp_path / 'cache'}")
    plans = [paper_plan(name, "tiny") for name in ("table1", "table3")]
    work = plan_steps(plans, StudyOptions(data=data, overrides=words, seeds=1, runs=tmp_path / "runs"))
    [apart] = [step for step in work.steps.values() if step.kind == "exclusion-list"]
    table = run_step(apart)
    assert len(read_table(table)[0].columns["patient"].texts()) == 46
    assert oct(table.stat().st_mode & 0o777) == "0o600"
    one = work.steps["cleft-lora/seed-0/stage-one"]
    assert one.settings.data.exclude_patients == table
    assert apart.name in one.needs


def test_no_patients_are_excluded_between_unrelated_datasets(tmp_path):
    data = {"chexpert": write_fake_chexpert(tmp_path / "data"), "rsna": tmp_path}
    work = plan_steps([paper_plan("table3", "tiny")], StudyOptions(data=data, runs=tmp_path / "runs"))
    assert not [step for step in work.steps.values() if step.kind == "exclusion-list"]


def test_new_settings_leave_step_names_unchanged(tmp_path):
    data = {"chexpert": write_fake_chexpert(tmp_path / "data")}
    names = [
        next(step.name for step in plan_steps([paper_plan("table3", "tiny")], given).steps.values() if step.needs == ())
        for given in (
            StudyOptions(data=data, runs=tmp_path),
            StudyOptions(data=data, runs=tmp_path, overrides=("--data.test_fraction=0.3",)),
        )
    ]
    assert names[0] == "base-lm-chexpert-568c7d"  # only the preset may change it: studies are resumed by this name
    assert names[0] != names[1]


def test_renamed_settings_leave_step_names_unchanged(tmp_path):
    plan = paper_plan("table1", "tiny")
    options = StudyOptions(data={"chexpert": tmp_path}, overrides=("--data.patient_dataset=nih",), runs=tmp_path)
    names = [name for name, step in plan_steps([plan], options).steps.items() if step.kind == "caption-lm"]
    assert names[0] == "base-lm-chexpert-b0af40"  # as written when the setting was data.people
