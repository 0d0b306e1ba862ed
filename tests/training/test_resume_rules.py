"""Every setting says what its change does to a run that has begun."""

from dataclasses import replace
from pathlib import Path

from cleft.config import DataConfig, Settings
from cleft.training.resume_rules import ROLES, Role, changes, file_changes, flat, role


def test_a10_every_setting_has_exactly_one_role():
    keys = list(flat(Settings()))
    assert {key: role(key) for key in keys}
    for name in ROLES:
        assert any(key == name or key.startswith(f"{name}.") for key in keys), f"{name} names no setting"


def test_a10_a_learning_rate_decides_and_workers_do_not():
    assert role("optim.lr") is Role.DECIDES_PRETRAIN
    assert role("context.optim.lr") is Role.DECIDES_CONTEXT
    assert role("data.workers") is Role.HARMLESS
    assert role("text.packing") is Role.ROUNDS
    assert role("text.rank") is Role.DECIDES_PRETRAIN


def test_a10_a_change_is_told_with_old_and_new():
    old = Settings()
    new = replace(old, seed=1, train=replace(old.train, precision="bf16-mixed", log_every=3))
    deciding, rounding = changes(old, new, "pretrain")
    assert [str(change) for change in deciding] == ["seed 0 → 1"]
    assert [change.key for change in rounding] == ["train.precision"]


def test_a10_a_recipe_that_was_spelled_out_may_be_left_to_the_dataset():
    spelled = Settings(data=DataConfig(split="patients"))
    assert changes(spelled, Settings(), "pretrain") == ([], [])
    other = Settings(data=DataConfig(split="5x200-paper"))
    assert [str(change) for change in changes(other, Settings(), "pretrain")[0]] == [
        "data.split '5x200-paper' → 'patients'"
    ]


def test_a10_each_stage_minds_its_own_settings():
    old = Settings()
    new = replace(old, loss=replace(old.loss, temperature=0.1), context=replace(old.context, length=3))
    assert [change.key for change in changes(old, new, "pretrain")[0]] == ["loss.temperature"]
    assert [change.key for change in changes(old, new, "context")[0]] == ["context.length"]
    assert changes(old, new, "classify")[0] == []
    other = replace(old, classes=("Edema",), classify=replace(old.classify, fraction=0.1, precision="32-true"))
    assert [change.key for change in changes(old, other, "pretrain")[0]] == []
    assert [change.key for change in changes(old, other, "context")[0]] == ["classes"]
    deciding, rounding = changes(old, other, "classify")
    assert [change.key for change in deciding] == ["classes", "classify.fraction"]
    assert [change.key for change in rounding] == ["classify.precision"]


def test_files_that_only_one_of_the_settings_names_are_changes():
    harmless = {key for key, kind in ROLES.items() if key.startswith("data.") and kind is Role.HARMLESS}
    named = harmless - {f"data.{name}" for name in ("root", "max_bad", "workers", "timeout", "cache", "prepare")}
    assert "data.exclude" in named
    owners = {"mapping": "rsna", "reports": "mimic"}
    for name in (key.removeprefix("data.") for key in named):
        dataset = owners.get(name, "chexpert")
        plain, given, moved = (
            Settings(data=DataConfig(dataset=dataset, **file)) for file in ({}, {name: Path("a")}, {name: Path("b/a")})
        )
        assert [change.key for change in file_changes(plain, given)] == [f"data.{name}"]
        assert [change.key for change in file_changes(given, plain)] == [f"data.{name}"]
        assert file_changes(given, moved) == []
