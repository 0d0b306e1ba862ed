"""Settings through the front door: presets, differences between them, overrides, and every way to get one wrong."""

import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.cli.options import settings_help
from cleft.config import (
    DataConfig,
    Settings,
    build_settings,
    declared_settings,
    dump_settings,
    flat_settings,
    load_run_settings,
    load_settings,
    merge_overrides,
    plain_settings,
    preset_names,
)
from cleft.config.loading import PRESETS
from cleft.errors import ConfigError


def write(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def every_key(kind=Settings, prefix=""):
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from every_key(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS = sorted(every_key())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_round_trips(preset, tmp_path):
    loaded = load_settings(preset)
    assert load_settings(write(tmp_path, dump_settings(loaded))) == loaded


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_states_its_purpose_command_cost_and_result(preset):
    head = [line for line in (PRESETS / f"{preset}.yaml").read_text().splitlines() if line.startswith("#")]
    assert head[0].startswith("# ")
    assert any(re.match(rf"#   cleft (pretrain {preset}|reproduce table\d --scale tiny) ", line) for line in head)
    assert {"Cost", "Expected"} <= {line[2:].partition(":")[0] for line in head}


def test_cleft_paper_has_the_hyperparameters_of_the_paper():
    paper = load_settings("cleft-paper")
    assert (paper.optim.lr, paper.optim.weight_decay, paper.optim.steps, paper.optim.warmup_steps) == (
        4e-5,
        0.2,
        40_000,
        4_000,
    )
    assert (paper.text.rank, paper.text.alpha, paper.text.dropout, paper.loss.embed_dim) == (8, 32, 0.1, 512)
    assert (paper.context.length, paper.context.batch_size, paper.context.optim.steps) == (30, 36, 4_000)


def test_overrides_take_precedence_over_presets(tmp_path):
    mine = write(tmp_path, "extends: cleft-paper\ntext: {rank: 16}\n")
    loaded = load_settings(mine, ["--text.alpha", "64", "--data.root=/data/chest x-rays"])
    assert (loaded.text.rank, loaded.text.alpha, loaded.text.dropout) == (16, 64, 0.1)
    assert str(loaded.data.root) == "/data/chest x-rays"


def test_scratch_of_another_model_type_replaces_the_mapping(tmp_path):
    mine = write(tmp_path, "extends: tiny\ntext: {scratch: {model_type: llama, hidden_size: 16}}\n")
    assert load_settings(mine).text.scratch == {"model_type": "llama", "hidden_size": 16}


def test_one_option_of_scratch_keeps_the_others(tmp_path):
    loaded = load_settings("tiny", ["--text.scratch.n_layer", "3"])
    assert loaded.text.scratch is not None
    assert (loaded.text.scratch["n_layer"], loaded.text.scratch["n_embd"]) == (3, 16)


def test_lists_have_three_spellings(tmp_path):
    expected = ("Edema", "No Finding")
    assert load_settings("tiny", ["--classes", "Edema,No Finding"]).classes == expected
    assert load_settings("tiny", ["--classes", "[Edema, No Finding]"]).classes == expected
    assert load_settings(write(tmp_path, "extends: tiny\nclasses: [Edema, No Finding]\n")).classes == expected


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        ("text.train_embeddings", "false", False),
        ("text.train_embeddings", "Yes", True),
        ("classify.augment", "off", False),
        ("classify.augment", "null", None),
        ("optim.lr", "1e-4", 1e-4),
        ("optim.lr", "3", 3.0),
        ("optim.clip_norm", ".5", 0.5),
        ("optim.clip_norm", "null", None),
        ("optim.steps", "1_000", 1000),
        ("train.devices", "3", 3),
        ("train.devices", "auto", "auto"),
        ("optim.betas", "0.9,1e-1", (0.9, 0.1)),
        ("optim.betas", "[0.9, 0.95]", (0.9, 0.95)),
        ("text.pooled_layers", "1,2,-1", (1, 2, -1)),
        ("text.lora_targets", "q_proj, v_proj", ("q_proj", "v_proj")),
        ("data.caption_templates", '"{}, a film",{}', ("{}, a film", "{}")),
        ("data.table", "null", None),
        ("data.table", "'my table.csv'", "'my table.csv'"),
        ("data.table", "12", "12"),
        ("data.cache", "a b/c", Path("a b/c")),
        ("image.scratch", '{"model_type": "vit", "hidden_size": 64}', {"model_type": "vit", "hidden_size": 64}),
        (
            "image.scratch",
            "{model_type: vit, a: [1, 2], b: null, c: true, d: 1e-3, e: x}",
            {"model_type": "vit", "a": [1, 2], "b": None, "c": True, "d": 1e-3, "e": "x"},
        ),
    ],
)
def test_every_kind_of_value_is_read_as_its_type(key, typed, value):
    settings = load_settings("tiny", [f"--{key}={typed}"])
    for name in key.split("."):
        settings = getattr(settings, name)
    assert settings == value
    assert type(settings) is type(value)


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        ("optim.steps", "1e3"),
        ("optim.steps", "4.0"),
        ("optim.lr", "nan"),
        ("optim.clip_norm", "inf"),
        ("text.train_embeddings", "1"),
        ("optim.betas", "0.9"),
        ("text.pooled_layers", "1.5"),
        ("image.scratch", "vit"),
        ("image.scratch", "{model_type: vit"),
        ("train.devices", "many"),
    ],
)
def test_a_value_of_another_type_is_refused(key, typed):
    with pytest.raises(ConfigError, match=rf"{key}='.*' (must be|is not)"):
        load_settings("tiny", [f"--{key}={typed}"])


def test_optional_lists_have_the_same_spellings():
    for words in ("CC,MLO", "[CC, MLO]", "CC, MLO"):
        assert load_settings("tiny", ["--data.views", words]).data.views == ("CC", "MLO")
    assert load_settings("tiny", ["--data.views", "AP"]).data.views == ("AP",)
    assert load_settings("tiny", ["--data.views", "null"]).data.views is None


def test_yaml_scalars_are_not_reinterpreted(tmp_path):
    assert load_settings(write(tmp_path, "extends: tiny\ndata: {table: no}\n")).data.table == "no"
    assert load_settings(write(tmp_path, "extends: tiny\noptim: {lr: 4e-5}\n")).optim.lr == 4e-5


@pytest.mark.parametrize("value", ["010", "12:30", "0x1f", "many"])
def test_ambiguous_numbers_are_refused(value):
    with pytest.raises(ConfigError, match=r"--text\.rank='.*' is not a number"):
        load_settings("tiny", ["--text.rank", value])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("- a\n", "no mapping"),
        ("text: {rank: 2}\ntext: {rank: 3}\n", r"line 2: text is repeated"),
        ("seed: !!python/object/apply:os.system ['true']\n", "is not allowed"),
        ("seed: &a 1\noptim: {steps: *a}\n", "no aliases"),
        ("text: [\n", "not valid YAML"),
        ("optim:\n  stepps: 3\n", r"line 2: unknown setting optim\.stepps; did you mean optim\.steps\?"),
        ("rank: 3\n", r"unknown setting rank; did you mean text\.rank\?"),
        ("text: 3\n", "is a group"),
        ("extends: nowhere\n", "no preset 'nowhere'"),
        ("extends: mine\n", "extends itself"),
        ("extends: [tiny]\n", "name one preset"),
    ],
)
def test_invalid_files_are_refused_with_line(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_settings(write(tmp_path, text))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--text.rnk", "4"], r"unknown setting --text\.rnk; did you mean text\.rank\?"),
        (["--text.adapt", "lorra"], r"text\.adapt='lorra' must be lora, .* or frozen; did you mean 'lora'\?"),
        (["--text.rank"], "no value"),
        (["--classes", ""], "--classes is empty; give a value"),
        (["--data.views= "], r"--data\.views is empty"),
        (["text.rank=4"], "unexpected word"),
        (["--text.rank", "0"], r"text\.rank=0 must be between 1"),
        (["--optim.warmup_steps", "20"], "leaves no step to decay in"),
        (["--train.batch_size", "1"], "at least 2 pairs; set it to 2 or more"),
        (["--text.train_embeddings", "maybe"], "train_embeddings='maybe' must be"),
        (["--images.mean", "0.5"], "images.mean"),
        (["--text.prefix_length", "10"], "does nothing here: text.adapt is 'lora'"),
        (["--text.adapt", "full", "--text.rank", "4"], "does nothing here"),
        (["--loss.hidden_dim", "8"], "does nothing here: loss.projection is 'linear'"),
        (["--text.model", "gpt2"], "give exactly one"),
        (["--text", "4"], "is a group"),
        (["--method", "image-only", "--optim.lr", "0.1"], r"--optim.lr does nothing here: method is 'image-only'"),
        (["--method", "image-only", "--text.scratch.n_layer", "3"], "does nothing here"),
        (["--images.size", "500"], "must be between"),
        (["--data.split", "patient"], r"data\.split='patient' must be patients, .*; did you mean 'patients'\?"),
        (["--optim.clip_norm", "much"], "clip_norm='much' must be a number or null"),
    ],
)
def test_invalid_overrides_are_refused_with_a_suggestion(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_settings("tiny", words)


@pytest.mark.parametrize("words", [["--gloria.local_weight", "2"], ["--method", "mgca", "--loss.name", "sigmoid"]])
def test_a_setting_of_another_method_is_refused(words):
    with pytest.raises(ConfigError, match="does nothing here: method is"):
        load_settings("tiny", words)


def test_partial_group_keeps_its_defaults(tmp_path):
    optim = load_settings(write(tmp_path, "context: {optim: {lr: 0.5}}\n")).context.optim
    assert optim == dataclasses.replace(Settings().context.optim, lr=0.5)


def test_setting_used_by_one_of_two_others_is_accepted():
    words = ["--loss.hidden_dim", "8", "--loss.text_projection", "mlp-gelu"]
    assert load_settings("tiny", words).loss.hidden_dim == 8


def test_unknown_preset_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'cleft-paper'"):
        load_settings("cleft-papr")


RENAMED = [each for each in declared_settings().values() if each.formerly is not None or each.old_values]


def tree_of(key, value):
    """Returns nested groups with one setting, as YAML."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return json.dumps(value)


@pytest.mark.parametrize("declared", RENAMED, ids=lambda declared: declared.key)
def test_former_names_are_read_in_old_runs_and_refused_elsewhere(declared, tmp_path):
    former = declared.formerly or declared.key
    for old, new in (declared.old_values or {"x": None}).items():
        text = tree_of(former, plain_value(declared.default) if new is None else old)
        loaded = load_settings(write(tmp_path, text, "config.yaml"))
        assert flat_settings(loaded)[declared.key] == (declared.default if new is None else new)
        with pytest.raises(ConfigError, match="is now called"):
            load_settings(write(tmp_path, text))
        with pytest.raises(ConfigError, match="is now called"):
            load_settings("tiny", [f"--{former}", old])


def plain_value(value):
    return list(value) if isinstance(value, tuple) else value


@settings(max_examples=60, derandomize=True, deadline=None)
@given(key=st.sampled_from(KEYS), where=st.integers(0, 40), letter=st.sampled_from("qxz_"))
def test_any_misspelled_setting_is_refused(key, where, letter):
    cut = key.rpartition(".")[0]
    leaf = key.rpartition(".")[2]
    wrong = leaf[: where % len(leaf)] + letter + leaf[where % len(leaf) + 1 :]
    misspelled = f"{cut}.{wrong}" if cut else wrong
    if misspelled in KEYS:
        return
    with pytest.raises(ConfigError, match="unknown setting"):
        load_settings("tiny", [f"--{misspelled}", "1"])


def test_overrides_apply_to_saved_settings():
    merged = merge_overrides(load_settings("tiny"), ["--data.root", "/data", "--context.optim.steps", "7"])
    assert (str(merged.data.root), merged.context.optim.steps, merged.text.rank) == ("/data", 7, 2)


def test_help_lists_every_setting():
    text = settings_help()
    assert all(f"--{key} " in text for key in KEYS)


def test_fraction_above_one_is_refused():
    with pytest.raises(ConfigError, match=r"data\.max_invalid=2"):
        DataConfig(max_invalid=2)


def test_run_named_like_a_preset_keeps_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()
    Path("small/config.yaml").write_text(dump_settings(load_settings("tiny", ["--seed", "7"])))
    assert load_run_settings(Path("small"), ["--optim.lr", "0.5"]).seed == 7
    with pytest.raises(ConfigError, match=r"demo is not a run folder: it holds no config\.yaml"):
        load_run_settings(Path("demo"))


def test_settings_of_a_run_hide_folders_and_round_trip(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [
        "--data.root",
        "/data/jane/x",
        "--data.cache=~/cache",
        "--text.model",
        "/models/jane/lm",
        "--text.scratch=null",
    ]
    settings = load_settings(
        "tiny", [*words, "--class_names", "../jane/words.yaml", "--data.exclude_patients", "lists/out.csv"]
    )
    assert str(settings.data.cache) == f"{tmp_path}/cache"
    text = dump_settings(settings)
    assert "jane" not in text
    assert str(tmp_path) not in text
    assert "lists/out.csv" in text
    assert load_settings(write(tmp_path, text)) == settings
    assert build_settings(json.loads(json.dumps(plain_settings(settings))), where="x") == settings


def test_tilde_is_expanded_in_files_and_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("root", "split_file", "test_list", "exclude_patients", "cache")
    file = write(tmp_path, "extends: tiny\ndata:\n" + "".join(f"  {name}: ~/{name}\n" for name in names))
    typed = load_settings("tiny", [f"--data.{name}=~/{name}" for name in names])
    for name in names:
        assert getattr(load_settings(file).data, name) == getattr(typed.data, name) == tmp_path / name
    with pytest.raises(ConfigError, match="no home folder is known"):
        load_settings("tiny", ["--data.root", "~nosuchuser/data"])


def test_truncated_settings_of_a_run_are_refused(tmp_path):
    path = tmp_path / "config.yaml"
    lines = dump_settings(load_settings("tiny")).splitlines(keepends=True)
    for last in (*range(2, len(lines), 9), len(lines) - 1):
        path.write_text("".join(lines[:last]))
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            load_settings(path)
    path.write_text("".join(lines))
    assert load_settings(path) == load_settings("tiny")
