"""Language models of many families: which layers adapters change, widths that differ, key-value heads."""

import pytest
import torch
from tests.fakes.families import CAUSAL_FAMILIES, FAMILIES
from tests.fakes.models import fake_images, fake_settings
from tests.fakes.texts import CAPTIONS, error, gradients, read
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from cleft.config import TextTowerConfig
from cleft.errors import CleftError, ConfigError
from cleft.models.adapters import ADAPTERS, adapt
from cleft.models.checkpoint import load_model, save_model
from cleft.models.language_model import build_language_model
from cleft.models.methods import build_model
from cleft.models.text_tower import TextTower, build_text_tower
from cleft.models.tokenizer import train_tokenizer

NAMES = ["edema", "pleural effusion"]
WITHOUT_PREFIX = {
    *(
        "mamba",
        "fnet",
        "distilbert",
        "albert",
        "deberta",
        "deberta-v2",
        "modernbert",
        "mobilebert",
        "convbert",
        "mpnet",
        "esm",
    ),
}


def tower(family: str, **settings) -> TextTower:
    """A tower in evaluation mode with changed trainable weights."""
    torch.manual_seed(0)
    options = {"rank": 2, "dropout": 0.0, "max_tokens": 16, "prefix_length": 3, **settings}
    built = build_text_tower(TextTowerConfig(model=None, scratch=FAMILIES[family], **options), CAPTIONS)
    with torch.no_grad():
        for weight in built.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return built.eval()


def trained_layers(built: TextTower) -> set[str]:
    """Last parts of the names of the layers that an adapter changes."""
    marks = (".lora_A.", ".ia3_l.")
    names = [name for name, weight in built.named_parameters() if weight.requires_grad]
    return {name.split(mark)[0].rpartition(".")[2] for name in names for mark in marks if mark in name}


def check_exact(built: TextTower) -> None:
    """Checks that all packings give equal features and gradients, and every trainable weight a gradient."""
    weights = [weight for weight in built.parameters() if weight.requires_grad]
    features, padded = built.encode(CAPTIONS), read(built, "padded", CAPTIONS)
    assert features.shape == (len(CAPTIONS), built.width)
    assert error(features, padded) < 2e-5
    if weights:
        assert error(gradients(features, weights), gradients(padded, weights)) < 2e-5
        assert float(gradients(features, weights).norm()) > 0
    context = torch.randn(4, built.lm.embedding_width)
    assert built.encode_after_context(NAMES, context).shape == (2, built.width)


@pytest.mark.parametrize(
    ("family", "lora", "ia3"),
    [
        ("biogpt", {"q_proj", "v_proj"}, {"k_proj", "v_proj", "fc2"}),
        ("olmo2", {"q_proj", "v_proj"}, {"k_proj", "v_proj", "down_proj"}),
        ("modernbert", {"Wqkv"}, {"Wqkv", "Wo"}),
        ("distilbert", {"q_lin", "v_lin"}, {"k_lin", "v_lin", "lin2"}),
        ("phi3", {"qkv_proj"}, {"qkv_proj", "down_proj"}),
        ("gpt2", {"c_attn"}, {"c_attn", "c_proj"}),
    ],
)
def test_adapters_change_attention_where_peft_does_not_know_the_family(family, lora, ia3):
    assert trained_layers(tower(family, adapt="lora")) == lora
    built = tower(family, adapt="ia3")
    assert trained_layers(built) == ia3
    check_exact(built)


def test_modernbert_ia3_scales_the_feed_forward_output_and_not_that_of_attention():
    names = [name for name, _ in tower("modernbert", adapt="ia3").named_parameters() if "ia3_l" in name]
    assert not any(".attn.Wo." in name for name in names)


def test_given_layers_replace_the_default():
    assert trained_layers(tower("biogpt", adapt="lora", lora_targets=("out_proj", "fc1"))) == {"out_proj", "fc1"}
    built = tower("biogpt", adapt="ia3", ia3_targets=("v_proj", "fc1"), ia3_feedforward=("fc1",))
    shapes = {name.split(".ia3_l")[0].rpartition(".")[2]: tuple(w.shape) for name, w in built.named_parameters()}
    assert (shapes["v_proj"], shapes["fc1"]) == ((32, 1), (1, 32))  # a factor per output, and per input
    assert tower("biogpt", adapt="ia3", ia3_targets=("v_proj", "fc2")).width == 32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"adapt": "lora", "lora_targets": ("q_prj",)},
            r"text.lora_targets: no .* ending in 'q_prj'; did you mean 'q_proj'; its",
        ),
        (
            {"adapt": "lora", "lora_targets": ("embed_tokens",)},
            "text.lora_targets: no linear layer of the model has a name ending in 'embed_tokens'",
        ),
        (
            {"adapt": "ia3", "ia3_targets": ("k_proj", "down")},
            "text.ia3_targets: no linear layer of the model has a name ending in 'down'",
        ),
        (
            {"adapt": "ia3", "ia3_feedforward": ("fc3",)},
            "text.ia3_feedforward: no linear layer of the model has a name ending in 'fc3'",
        ),
        ({"adapt": "ia3", "ia3_feedforward": ("fc1",)}, "add the missing ones to text.ia3_targets"),
        ({"adapt": "lora", "lora_targets": ()}, "text.lora_targets names no layer"),
    ],
)
def test_unknown_target_layers_are_refused_with_a_list_of_the_known(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        tower("biogpt", **options)


def test_without_default_targets_the_message_names_setting_and_layers():
    with pytest.raises(
        ConfigError, match=r"no default modules are known for a 'fnet' model; name .*--text.lora_targets.*dense"
    ):
        tower("fnet", adapt="lora")
    assert trained_layers(tower("fnet", adapt="lora", lora_targets=("intermediate.dense",))) == {"dense"}


@pytest.mark.parametrize("family", ["falcon-old", "falcon-new", "gpt-bigcode", "gemma"])
def test_virtual_tokens_have_the_key_value_heads_of_the_model(family):
    built = tower(family, adapt="prefix")
    assert built.packing == "tree"
    check_exact(built)


def test_a_model_that_ignores_virtual_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"text.adapt=prefix: a 'modernbert' model takes no virtual tokens"):
        tower("modernbert", adapt="prefix")


@pytest.mark.parametrize(("family", "width"), [("opt-350m", 16), ("electra", 32), ("albert", 32)])
def test_embedding_hidden_and_output_width_may_differ(family, width):
    built = tower(family, adapt="full")
    assert (built.lm.embedding_width, built.width) == (16, width)
    check_exact(built)


@pytest.mark.parametrize("family", ["gpt2", "opt-350m", "electra", "falcon-old"])
def test_shapes_are_measured_on_the_meta_device(family):
    config = TextTowerConfig(model=None, scratch=FAMILIES[family], adapt="prefix", prefix_length=3)
    built = adapt(build_language_model(config, vocabulary=300, pad=1, eos=2), config)
    with torch.device("meta"):
        outline = adapt(build_language_model(config, vocabulary=300, pad=1, eos=2), config)
    assert (outline.width, outline.embedding_width) == (built.width, built.embedding_width)
    assert [weight.shape for weight in outline.parameters()] == [weight.shape for weight in built.parameters()]


def test_layers_of_different_widths_are_not_averaged():
    with pytest.raises(ConfigError, match=r"text.pooled_layers=\[1, -1\]: layers of a 'opt' model differ in width"):
        tower("opt-350m", adapt="frozen", pooled_layers=(1, -1))
    assert tower("opt-350m", adapt="frozen", pooled_layers=(1,)).width == 32


@pytest.mark.parametrize("family", ["opt-350m", "electra"])
def test_a_context_as_wide_as_the_embedding_is_saved_and_loaded(tmp_path, family):
    settings = fake_settings(adapt="full", scratch=FAMILIES[family], model=None)
    model = build_model(settings, CAPTIONS).eval()
    model.set_context(torch.randn(4, 16))
    save_model(model, settings, tmp_path)
    again = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.encode_class_names(NAMES), model.encode_class_names(NAMES))
        assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
        assert torch.equal(again.encode_image(fake_images()), model.encode_image(fake_images()))
    with pytest.raises(ValueError, match=r"the text tower expects \[L, 16\]"):
        model.set_context(torch.randn(4, 32))


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize(
    "family",
    [
        family if family in ("deberta-v2", "gpt-neo") else pytest.param(family, marks=pytest.mark.slow)
        for family in sorted(FAMILIES)
    ],
)
def test_every_family_is_saved_and_loaded(tmp_path, family, way):
    if way == "lora" and family == "fnet":
        pytest.skip("FNet has no attention for LoRA")
    settings = fake_settings(adapt=way, scratch=FAMILIES[family], model=None)
    model = build_model(settings, CAPTIONS).eval()
    save_model(model, settings, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).encode_text(CAPTIONS), model.encode_text(CAPTIONS))


def test_weights_that_a_family_fixes_stay_fixed_when_all_others_are_trained():
    for family, fixed in (("roformer", "embed_positions.weight"), ("esm", "contact_head.regression.weight")):
        built = tower(family, adapt="full")
        built.encode(CAPTIONS)[:, 0].sum().backward()
        still = [name for name, weight in built.named_parameters() if not weight.requires_grad]
        assert any(name.endswith(fixed) for name in still)
        assert all(weight.grad is not None for weight in built.parameters() if weight.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_folder_with_a_language_modelling_head_loads_as_in_transformers(tmp_path, family):
    causal = family in CAUSAL_FAMILIES
    tokenizer = train_tokenizer(CAPTIONS, causal=causal)
    tokenizer.save_pretrained(tmp_path)
    options = {name: value for name, value in FAMILIES[family].items() if name != "model_type"}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    options |= {**ids, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer) + 5}
    config = AutoConfig.for_model(FAMILIES[family]["model_type"], **options)
    whole = (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(config).eval()
    whole.save_pretrained(tmp_path)
    frozen = TextTowerConfig(model=str(tmp_path), adapt="frozen", train_embeddings=False, max_tokens=16)
    built = build_text_tower(frozen, CAPTIONS).eval()
    tokens = torch.tensor(built.tokenizer.encode(CAPTIONS[2:3]))
    with torch.no_grad():
        theirs = whole.base_model(input_ids=tokens).last_hidden_state
        ours = built.lm(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(tokens.shape[1])[None])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", sorted(ADAPTERS))
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_works_with_every_adapter_or_is_refused(family, way):
    if way == "prefix" and family in WITHOUT_PREFIX:
        with pytest.raises(CleftError, match="takes no virtual tokens"):
            tower(family, adapt=way)
        return
    if way in ("lora", "ia3") and family == "fnet":
        with pytest.raises(CleftError, match=f"text.{way}_targets"):
            tower(family, adapt=way)
        return
    built = tower(family, adapt=way)
    expected = family in CAUSAL_FAMILIES and family not in {"mamba", "falcon-alibi", "bloom", "gpt-neo", "mpt"}
    assert built.packing == ("tree" if expected else "distinct")
    check_exact(built)
