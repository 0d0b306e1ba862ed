"""What the names of protocols stand for, and that no setting is taken in silence."""

import pytest

from cleft.config import ClassifyConfig
from cleft.errors import ConfigError
from cleft.training.protocols import follow_protocol, is_exact, optim_of, without_idle


@pytest.mark.parametrize("mode", ["linear-probe", "fine-tune"])
def test_the_paper_is_followed_to_the_number(mode):
    config = follow_protocol(ClassifyConfig(mode=mode, protocol="paper"))
    optim = optim_of(config)
    assert (config.batch_size, optim.name, optim.lr, optim.weight_decay, optim.steps) == (36, "adamw", 5e-4, 1e-3, 8000)
    assert (optim.warmup_steps, config.choose) == (800, "last")
    assert config.augment is (mode == "fine-tune")


def test_only_the_usual_probe_is_exact():
    modes = [
        ClassifyConfig(mode=mode, protocol=name)
        for mode in ("linear-probe", "fine-tune")
        for name in ("usual", "paper")
    ]
    assert [is_exact(config) for config in modes] == [True, False, False, False]
    assert follow_protocol(modes[0]) == ClassifyConfig(choose="loss")


def test_what_was_given_stays():
    config = follow_protocol(ClassifyConfig(mode="fine-tune", steps=50, lr=0.1, augment=False, choose="auc"))
    assert (config.steps, config.warmup_steps, config.lr, config.augment, config.choose) == (50, 5, 0.1, False, "auc")
    assert follow_protocol(config) == config


def test_steps_of_a_preset_do_not_stand_in_the_way_of_a_solved_probe():
    of_a_preset = ClassifyConfig(steps=200, warmup_steps=20, layer_decay=0.5, val_every=20)
    assert without_idle(of_a_preset) == ClassifyConfig(val_every=20)
    assert without_idle(of_a_preset, {"layer_decay"}) == ClassifyConfig(layer_decay=0.5, val_every=20)
    in_steps = ClassifyConfig(protocol="paper", steps=200, warmup_steps=20, val_every=20)
    assert without_idle(ClassifyConfig(**{**vars(in_steps), "layer_decay": 0.5})) == in_steps


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"steps": 9}, r"classify\.steps=9 does nothing with classify\.mode=linear-probe, classify\.protocol=usual"),
        ({"augment": True}, r"classify\.augment=True does nothing"),
        ({"choose": "last"}, "there are no steps"),
        ({"protocol": "paper", "layer_decay": 0.5}, r"classify\.layer_decay=0\.5 does nothing"),
        ({"protocol": "paper", "steps": 5, "warmup_steps": 5}, "leaves no step to decay in"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        follow_protocol(ClassifyConfig(**given))


@pytest.mark.parametrize(
    "given", [{"fraction": 0}, {"fraction": 1.5}, {"steps": 0}, {"lr": 0}, {"layer_decay": 2}, {"batch_size": 0}]
)
def test_a_value_out_of_range_is_refused(given):
    name = next(iter(given))
    with pytest.raises(ConfigError, match=rf"classify\.{name}="):
        ClassifyConfig(**given)
