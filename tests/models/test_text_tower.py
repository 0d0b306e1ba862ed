"""Every packing gives each text the features and gradients of encoding it separately."""

import functools
import logging

import pytest
import torch
from hypothesis import given, settings
from tests.fakes.texts import CAPTIONS, OPENING, SCRATCH, error, gradients, moving, read, sentences, tower

from cleft.config import TextTowerConfig
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.models import text_tower as text_tower_module
from cleft.models.language_model import build_language_model
from cleft.models.prefix_tree import pad_nodes
from cleft.models.text_tower import build_text_tower
from cleft.models.tokenizer import TextTokenizer, train_tokenizer

cached = functools.cache(tower)
ADAPTERS = ["lora", "ia3", "prefix", "full", "frozen"]
CAUSAL = ["gpt2", "llama", "qwen3"]
NAMES = ["edema", "pleural effusion", "lung opacity"]
TEXTS = [CAPTIONS[1], CAPTIONS[2], CAPTIONS[1], "pneumonia", "edema " * 30]


def compare_ways(built, texts, fast):
    weights = moving(built)
    quick, padded = read(built, fast, texts), read(built, "padded", texts)
    alone = torch.cat([read(built, "padded", [text]) for text in texts])
    assert error(quick, padded) < 1e-5
    assert error(quick, alone) < 1e-5
    assert error(gradients(quick, weights), gradients(padded, weights)) < 1e-5
    assert error(gradients(quick, weights), gradients(alone, weights)) < 1e-5


@pytest.mark.parametrize("adapt", ADAPTERS)
@pytest.mark.parametrize("family", CAUSAL)
@given(texts=sentences())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_tree_changes_no_feature_and_no_gradient(family, adapt, texts):
    compare_ways(cached(family, adapt=adapt), texts, "tree")


@pytest.mark.parametrize("adapt", ADAPTERS)
@given(texts=sentences())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_masked_model_encodes_equal_texts_once_with_the_same_features(adapt, texts):
    compare_ways(cached("bert", adapt=adapt), texts, "distinct")


@pytest.mark.parametrize("options", [{"pooling": "mean"}, {"end_token_attends_itself": True}], ids=str)
@pytest.mark.parametrize("adapt", ["lora", "prefix"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_tree_is_exact_with_every_pooling_and_mask(family, adapt, options):
    compare_ways(tower(family, adapt=adapt, **options), TEXTS, "tree")


def test_the_tree_is_exact_with_additive_masks():
    built = tower("gpt2")
    built.lm.model.set_attn_implementation("eager")
    compare_ways(built, TEXTS, "tree")


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("adapt", ADAPTERS)
def test_a_context_gives_the_same_features_and_gradients_packed_and_padded(family, adapt):
    built = tower(family, adapt=adapt)
    context = torch.randn(7, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = [context, *moving(built)]
    quick = built.encode_after_context(NAMES, context)
    built.packing = "padded"
    padded = built.encode_after_context(NAMES, context)
    alone = torch.cat([built.encode_after_context([name], context) for name in NAMES])
    assert error(gradients(quick, [context]), gradients(alone, [context])) < 1e-5
    for other in (padded, alone):
        assert error(quick, other) < 1e-5
        assert error(gradients(quick, weights), gradients(other, weights)) < 1e-5


def test_a_context_costs_its_length_once():
    built = cached("gpt2")
    built.encode_after_context(["edema", "fracture"], torch.zeros(30, 16))
    ids = built.tokenizer.encode_class_names(["edema", "fracture"])
    assert built.stats.nodes == 30 + sum(map(len, ids))


def test_class_names_are_tokenised_as_inside_a_sentence():
    tokens = cached("gpt2").tokenizer
    assert tokens.encode_class_names(["edema"])[0] == [*tokens.encode_prompt("X edema")[1:], tokens.eos]
    assert tokens.hf_tokenizer.decode(tokens.encode_class_names(["edema"])[0][:-1]) == " edema"


def test_a_text_does_not_depend_on_the_rest_of_the_batch():
    built = cached("llama")
    alone = built.encode([CAPTIONS[1]])
    among = built.encode([*CAPTIONS, "edema " * 40, CAPTIONS[1]])[-1:]
    torch.testing.assert_close(among, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("packing", ["tree", "distinct", "padded"])
@pytest.mark.parametrize("attends_itself", [False, True])
def test_the_end_token_is_masked_as_in_the_authors_release(packing, attends_itself):
    # The release pads with the end token and masks every padding token, the first end token with it: that token
    # attends to the caption and not to itself. Its state in the plain model, computed caption by caption:
    built = tower("gpt2", adapt="frozen", end_token_attends_itself=attends_itself)
    model, end = built.lm.model, built.tokenizer.eos
    expected = []
    for text in CAPTIONS:
        ids = torch.tensor([[*built.tokenizer.encode([text])[0], end, end]])
        first = int((ids[0] == end).nonzero()[0])
        mask = (ids != end).long()
        mask[0, first] = int(attends_itself)
        expected.append(model(input_ids=ids, attention_mask=mask).last_hidden_state[0, first])
    torch.testing.assert_close(read(built, packing, CAPTIONS), torch.stack(expected), atol=1e-5, rtol=1e-5)
    other = tower("gpt2", adapt="frozen", end_token_attends_itself=not attends_itself)
    assert error(read(other, packing, CAPTIONS), torch.stack(expected)) > 1e-3


def test_a_long_text_is_truncated_before_its_end_token():
    tokens = cached("gpt2").tokenizer
    fitting = " ".join(["edema"] * 3)
    for text in (fitting, "edema " * 40):
        ids = tokens.encode([text])[0]
        assert ids[-1] == tokens.eos
        assert tokens.eos not in ids[:-1]
        assert len(ids) <= tokens.max_tokens
    assert tokens.truncated >= 1
    longer = cached("gpt2").encode(["edema " * 40, "edema " * 50])
    assert torch.equal(longer[0], longer[1])


def test_many_truncated_texts_give_a_warning_with_the_setting(caplog):
    tower("gpt2", max_tokens=6)
    assert "text.max_tokens=6" in caplog.text


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_special_token_in_a_text_stays_plain_text(family):
    tokens = cached(family).tokenizer
    special = {*tokens.prefix_ids, *tokens.suffix_ids, tokens.pad}
    for literal in tokens.hf_tokenizer.all_special_tokens:
        ids = tokens.encode([f"a {literal} b"])[0]
        assert not special & set(ids[len(tokens.prefix_ids) : -len(tokens.suffix_ids)])


@pytest.mark.parametrize("silent", ["", "  ", "...", "\n-"])
def test_texts_without_letters_are_refused_by_position(silent):
    with pytest.raises(DataError, match="positions 1, 3 "):
        cached("gpt2").encode(["edema", silent, "edema", silent])
    with pytest.raises(DataError, match="position 0 "):
        cached("gpt2").encode_after_context([silent], torch.zeros(1, 16))


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(DataError, match="position 0 holds half a surrogate pair"):
        cached("gpt2").encode(["edema \ud800"])


def test_stats_count_encoded_tokens():
    built = cached("gpt2")
    built.encode([CAPTIONS[0], CAPTIONS[1], CAPTIONS[1]])
    ids = built.tokenizer.encode(CAPTIONS[:2])
    nodes = {tuple(text[:end]) for text in ids for end in range(1, len(text) + 1)}
    assert built.stats == (3, 2, len(nodes), 3 * 16)


@pytest.mark.parametrize(("packing", "computed"), [("distinct", 2), ("padded", 3)])
def test_stats_count_the_tokens_of_padded_texts(packing, computed):
    built = cached("gpt2")
    texts = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[1]]
    read(built, packing, texts)
    width = 16 if packing == "padded" else max(map(len, built.tokenizer.encode(texts)))
    assert built.stats == (3, 2, computed * width, 3 * 16)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "mean-padded", "pooler"])
def test_features_of_a_half_precision_model_are_float32(pooling):
    built = tower("bert", adapt="frozen", base_dtype="bfloat16", train_embeddings=False, pooling=pooling)
    built.lm.model.to(torch.bfloat16)
    assert built.lm.dtype == torch.bfloat16
    assert built.encode(CAPTIONS).dtype == torch.float32


@pytest.mark.parametrize("pooling", ["mean", "end-token"])
@pytest.mark.parametrize("packing", ["tree", "padded"])
def test_features_of_a_half_precision_causal_model_are_float32(pooling, packing):
    built = tower("gpt2", adapt="frozen", base_dtype="bfloat16", train_embeddings=False, pooling=pooling)
    built.lm.model.to(torch.bfloat16)
    built._verified.add("cpu")
    assert read(built, packing, CAPTIONS).dtype == torch.float32
    assert built.embed_prompt(OPENING).dtype == torch.float32


def test_only_a_tree_is_verified_when_it_is_built(monkeypatch):
    verified = []
    monkeypatch.setattr(text_tower_module.TextTower, "verify_packing", lambda self: verified.append(self.packing))
    tower("bert")
    tower("gpt2", packing="distinct")
    with torch.device("meta"):
        build_text_tower(TextTowerConfig(model=None, scratch=SCRATCH["gpt2"], max_tokens=16), CAPTIONS)
    assert verified == []
    tower("gpt2")
    assert verified == ["tree"]


def test_a_tree_that_was_not_verified_when_built_is_verified_before_its_first_use(monkeypatch):
    verified = []
    verify = text_tower_module.TextTower.verify_packing
    monkeypatch.setattr(
        text_tower_module.TextTower, "verify_packing", lambda self: verified.append(True) or verify(self)
    )
    built = build_text_tower(
        TextTowerConfig(model=None, scratch=SCRATCH["gpt2"], max_tokens=16, packing="tree"), CAPTIONS, verify=False
    ).eval()
    assert verified == []
    built.encode(CAPTIONS)
    built.encode(CAPTIONS)
    assert verified == [True]


def test_a_tree_above_the_limit_is_split_without_a_difference(monkeypatch):
    built = cached("gpt2")
    texts = [*CAPTIONS, "edema " * 9, *CAPTIONS[::-1]]
    whole = built.encode(texts)
    monkeypatch.setattr(text_tower_module, "MAX_NODES", 18)
    pieces = built.encode(texts)
    assert built.stats.nodes > len({*texts})
    assert error(pieces, whole) < 1e-5
    assert error(gradients(pieces, moving(built)), gradients(whole, moving(built))) < 1e-5


@pytest.mark.parametrize("adapt", ["lora", "prefix"])
def test_padding_nodes_change_nothing(adapt):
    built = tower("gpt2", adapt=adapt)
    plain = built.encode(TEXTS)
    packed = pad_nodes(built._tree.subtree(TEXTS), 32, extra_keys=built.lm.virtual_tokens)
    assert (len(packed.input_ids) + built.lm.virtual_tokens) % 32 == 0
    padded = built.encode_packed(packed)
    assert error(padded, plain) < 1e-5
    assert error(gradients(padded, moving(built)), gradients(plain, moving(built))) < 1e-5


def test_a_masked_model_refuses_the_tree():
    with pytest.raises(ConfigError, match="masked model: its tokens also attend to later tokens"):
        tower("bert", packing="tree")
    assert cached("bert").packing == "distinct"


OTHERS = {
    "bloom": {"n_layer": 2, "n_head": 2, "hidden_size": 16},
    "mamba": {"num_hidden_layers": 2, "hidden_size": 16, "state_size": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "attention_types": [[["global", "local"], 1]]},
    "falcon": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "alibi": True},
    "lfm2": {"intermediate_size": 32, "layer_types": ["conv", "full_attention"], **SCRATCH["llama"]},
    "mistral": {"intermediate_size": 32, "sliding_window": 8, **SCRATCH["llama"]},
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_that_cannot_encode_a_tree_falls_back_to_distinct_texts(family, caplog):
    scratch = {**OTHERS[family], "model_type": family}
    scratch.pop("max_position_embeddings", None)
    with pytest.raises(ConfigError, match=r"set text\.packing=distinct"):
        tower(family, scratch=scratch, packing="tree", adapt="frozen")
    built = tower(family, scratch=scratch, adapt="frozen")
    assert built.packing == "distinct"
    assert "encoded separately" in caplog.text
    assert error(built.encode(TEXTS), read(built, "padded", TEXTS)) < 1e-5


def test_verification_detects_a_model_that_counts_positions_itself():
    built = cached("llama")
    original = built.lm.takes_positions
    built.lm.takes_positions = False  # the model now counts positions itself, as many do
    try:
        assert "gives other features for a prefix tree" in text_tower_module.compare_tree_with_padded(built)
    finally:
        built.lm.takes_positions = original
    assert text_tower_module.compare_tree_with_padded(built) is None


def test_verification_restores_training_modes():
    built = tower("gpt2").train()
    built.lm.model.h[0].eval()
    built.verify_packing()
    assert built.training
    assert not built.lm.model.h[0].attn.training


CLIP = {
    "model_type": "clip_text_model",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def test_the_text_model_of_clip_encodes_equal_texts_once_and_takes_embeddings():
    built = tower("clip", scratch=CLIP, adapt="full", packing="distinct")
    compare_ways(built, TEXTS, "distinct")
    alone = built.encode(["edema"])
    ids = torch.tensor(built.tokenizer.encode(["edema"]))
    vectors = built.lm.embed(ids)
    assert error(built.encode_padded(vectors, torch.tensor([ids.shape[1]])), alone) < 1e-5
    with pytest.raises(ConfigError, match="takes no more tokens than it has positions"):
        tower("clip", scratch=CLIP, adapt="full", packing="tree")
    with pytest.raises(ConfigError, match="adapt=prefix: a 'clip_text_model' model takes no virtual tokens"):
        tower("clip", scratch=CLIP, adapt="prefix", packing="distinct")


@pytest.mark.parametrize("kind", ["t5", "bart", "vit"])
def test_a_model_of_another_kind_is_refused(kind):
    with pytest.raises(ConfigError, match="neither"):
        tower(kind, scratch={"model_type": kind})


def test_pooling_the_first_token_of_a_causal_model_is_refused():
    with pytest.raises(ConfigError, match="attends to no other token"):
        tower("gpt2", pooling="cls")


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ConfigError, match="90 tokens after 20 virtual tokens exceed the 96 positions"):
        tower("gpt2", adapt="prefix", max_tokens=90)
    with pytest.raises(ConfigError, match="exceed the 96 positions"):
        cached("gpt2").encode_after_context(["edema"], torch.zeros(96, 16))


def test_dropout_of_the_language_model_is_off_by_default():
    still = tower("gpt2").train()
    assert torch.equal(still.encode(CAPTIONS), still.encode(CAPTIONS))
    noisy = tower("gpt2", base_dropout=0.2).train()
    assert not torch.equal(noisy.encode(CAPTIONS), noisy.encode(CAPTIONS))


@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "frozen"])
@pytest.mark.parametrize("family", CAUSAL)
def test_frozen_weights_in_half_precision_are_encoded_as_a_tree(family, adapt, caplog):
    # Trained rows and adapters stay float32; taken for the model's type they would make its rounding look like a fault.
    half = tower(family, base_dtype="bfloat16", adapt=adapt)
    assert half.lm.dtype == torch.bfloat16
    assert half.encode(TEXTS).isfinite().all()
    assert half.packing == "tree"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_half_precision_is_as_exact_with_a_tree_as_padded():
    exact, half = tower("gpt2"), tower("gpt2", base_dtype="bfloat16")
    half.load_state_dict(exact.state_dict())
    assert half.packing == "tree"
    assert half.encode(TEXTS).dtype == torch.float32
    assert {weight.dtype for weight in moving(half)} == {torch.float32}
    assert half.lm.model.wpe.weight.dtype == torch.bfloat16
    right = exact.encode(TEXTS)
    assert error(half.encode(TEXTS), right) <= 1.2 * error(read(half, "padded", TEXTS), right)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_saved_tower_from_scratch_is_restored(family, tmp_path):
    built = tower(family)
    built.tokenizer.save(tmp_path)
    again = build_text_tower(built.config, (), tokenizer=tmp_path, trained_tokens=built.trained_tokens)
    again.load_state_dict(built.state_dict())
    assert torch.equal(again.eval().encode(TEXTS), built.encode(TEXTS))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_tower_built_from_a_folder_has_its_weights(family, tmp_path):
    built = tower(family, adapt="full")
    built.tokenizer.hf_tokenizer.padding_side = "left"  # as in many files
    built.tokenizer.save(tmp_path)
    built.lm.model.save_pretrained(tmp_path)
    loaded = tower(family, scratch=None, model=str(tmp_path), adapt="frozen", train_embeddings=False)
    with torch.no_grad():
        loaded.load_state_dict(built.state_dict())  # the fake changes every weight
    fresh = build_text_tower(TextTowerConfig(model=str(tmp_path), adapt="lora", max_tokens=16), CAPTIONS).eval()
    torch.testing.assert_close(fresh.encode(TEXTS), built.encode(TEXTS), atol=1e-5, rtol=1e-5)
    assert torch.equal(loaded.encode(TEXTS), built.encode(TEXTS))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    built = tower("gpt2", adapt="full")
    built.lm.model.save_pretrained(tmp_path)
    train_tokenizer([" ".join(f"word{n} word{n}" for n in range(200))], causal=True).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="use the tokenizer of this model"):
        build_text_tower(TextTowerConfig(model=str(tmp_path)), CAPTIONS)


def test_a_causal_tokenizer_without_an_end_token_is_refused(tmp_path):
    built = tower("gpt2", adapt="full")
    built.lm.model.config.eos_token_id = None
    built.lm.model.save_pretrained(tmp_path)
    built.tokenizer.hf_tokenizer.eos_token = None
    built.tokenizer.save(tmp_path)
    with pytest.raises(CheckpointError, match="has no EOS token"):
        build_text_tower(TextTowerConfig(model=str(tmp_path)), CAPTIONS)


def test_a_trained_tokenizer_depends_only_on_the_set_of_captions():
    one = train_tokenizer(CAPTIONS, causal=True).backend_tokenizer.to_str()
    other = train_tokenizer([*CAPTIONS[::-1], *CAPTIONS], causal=True).backend_tokenizer.to_str()
    assert one == other


def test_a_trained_tokenizer_encodes_any_text():
    tokens = TextTokenizer(train_tokenizer(CAPTIONS, causal=True), max_tokens=64, eos=0)
    assert tokens.hf_tokenizer.decode(tokens.encode(["œdème 肺炎 42"])[0][:-1]) == "œdème 肺炎 42"


def test_a_token_is_decoded_as_text_and_a_partial_character_as_in_the_vocabulary():
    tokens = TextTokenizer(train_tokenizer(CAPTIONS, causal=True), max_tokens=64, eos=0)
    [word] = tokens.encode_prompt("x")
    assert tokens.decode_token(word) == "x"
    half = tokens.hf_tokenizer.convert_tokens_to_ids("Ã")
    assert tokens.decode_token(half) == "Ã"


def test_training_a_tokenizer_needs_captions():
    with pytest.raises(ConfigError, match="trains its tokenizer on captions"):
        build_text_tower(TextTowerConfig(model=None, scratch=SCRATCH["gpt2"]), ())


def test_a_model_without_all_its_weights_is_refused(tmp_path):
    small, large = ({**SCRATCH["gpt2"], "n_layer": layers} for layers in (1, 2))
    config = TextTowerConfig(model=None, scratch=small)
    lm = build_language_model(config, vocabulary=300, pad=0, eos=0)
    lm.model.config.n_layer = large["n_layer"]
    lm.model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks weights \['h.1"):
        build_language_model(TextTowerConfig(model=str(tmp_path)), vocabulary=300, pad=0, eos=0)


def test_a_prompt_has_one_embedding_per_token_and_no_gradient():
    built = cached("gpt2")
    vectors = built.embed_prompt(f"{OPENING} ")
    assert vectors.shape == (len(built.tokenizer.encode_prompt(OPENING)), 16)
    assert not vectors.requires_grad


def states_of(built, text):
    """Every layer's states of one text, `[layers, tokens, width]`."""
    ids = torch.tensor(built.tokenizer.encode([text]))
    return torch.stack(built.lm.model(input_ids=ids, output_hidden_states=True).hidden_states)[:, 0]


def test_layers_are_averaged_before_pooling():
    built = tower("bert", adapt="full", pooled_layers=[0, 1, -1])
    expected = states_of(built, CAPTIONS[1])[[0, 1, 2]].mean(dim=(0, 1))
    torch.testing.assert_close(built.encode([CAPTIONS[1]])[0], expected)


def test_max_pooling_ignores_padding():
    built = tower("bert", adapt="full", pooling="max")
    short, long = built.encode([CAPTIONS[5], CAPTIONS[4]])
    torch.testing.assert_close(short, states_of(built, CAPTIONS[5])[-1].amax(dim=0))
    torch.testing.assert_close(long, states_of(built, CAPTIONS[4])[-1].amax(dim=0))


def test_a_mean_over_padding_depends_on_the_longest_text_of_the_batch():
    built = tower("bert", adapt="full", pooling="mean-padded")
    alone = built.encode([CAPTIONS[5]])[0]
    torch.testing.assert_close(alone, states_of(built, CAPTIONS[5])[-1].mean(dim=0))
    beside = built.encode([CAPTIONS[5], CAPTIONS[4], CAPTIONS[5]])
    assert error(beside[0], alone) > 1e-3
    ids, length = torch.tensor(built.tokenizer.encode([CAPTIONS[5]])), len(built.tokenizer.encode([CAPTIONS[4]])[0])
    padded = torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=built.tokenizer.pad)
    visible = (torch.arange(length) < ids.shape[1]).long()[None]
    states = built.lm.model(input_ids=padded, attention_mask=visible).last_hidden_state
    torch.testing.assert_close(beside[0], states[0].mean(dim=0))
    assert torch.equal(beside[0], beside[2])
    with pytest.raises(ConfigError, match=r"text\.packing=padded adds more"):
        TextTowerConfig(pooling="mean-padded", packing="padded")


def test_the_pooler_is_kept_with_pooler_pooling():
    built = tower("bert", adapt="full", pooling="pooler")
    first = states_of(built, CAPTIONS[1])[-1][0]
    torch.testing.assert_close(built.encode([CAPTIONS[1]])[0], built.lm.model.pooler.dense(first).tanh())
    assert tower("bert", adapt="full").lm.model.pooler is None
    with pytest.raises(ConfigError, match="a 'distilbert' model has no pooler"):
        tower(
            "distilbert",
            scratch={"model_type": "distilbert", "n_layers": 1, "dim": 16, "hidden_dim": 32, "n_heads": 2},
            pooling="pooler",
        )


def test_without_positions_a_text_is_a_bag_of_words():
    ordered, bag = (tower("bert", adapt="full", positions=way, pooling="cls") for way in ("counted", "zero"))
    texts = ["pleural effusion edema", "edema pleural effusion"]
    one = bag.encode(texts)[0]
    assert error(*ordered.encode(texts)) > 1e-3
    ids = torch.tensor(bag.tokenizer.encode(texts[:1]))
    same = bag.lm.model(input_ids=ids, position_ids=torch.zeros_like(ids)).last_hidden_state[0, 0]
    torch.testing.assert_close(one, same)
    shuffled = ids[:, [0, *range(ids.shape[1] - 2, 0, -1), ids.shape[1] - 1]]
    assert error(bag.encode_padded(shuffled, torch.tensor([ids.shape[1]]))[0], one) < 1e-5


def test_a_bag_of_words_is_for_masked_models():
    with pytest.raises(ConfigError, match=r"text\.positions=zero is for masked models"):
        tower("gpt2", positions="zero")


def test_depth_keeps_the_lower_blocks():
    assert len(tower("bert", depth=1).lm.model.encoder.layer) == 1
    with pytest.raises(ConfigError, match=r"text\.depth=3: the model has 2 blocks"):
        tower("bert", depth=3)


def test_layers_the_model_does_not_have_are_refused():
    with pytest.raises(ConfigError, match=r"text\.pooled_layers names \[5\], but the model has 2 layers"):
        tower("bert", pooled_layers=[-1, 5])
    with pytest.raises(ConfigError, match=r"text\.pooled_layers=\[\] names no layer"):
        TextTowerConfig(pooled_layers=())


def test_frozen_layers_freezes_lower_blocks_and_embeddings():
    built = tower("bert", adapt="full", frozen_layers=1)
    moving = {name.partition(".layer.")[2][:1] for name, weight in built.named_parameters() if weight.requires_grad}
    still = {name.partition(".layer.")[2][:1] for name, weight in built.named_parameters() if not weight.requires_grad}
    assert (moving, still) == ({"1"}, {"", "0"})
    with pytest.raises(ConfigError, match=r"text\.frozen_layers=3: the model has 2 blocks"):
        tower("bert", adapt="full", frozen_layers=3)


@pytest.mark.parametrize("pooling", ["max", "mean-padded"])
def test_poolings_of_masked_models_are_refused_by_causal_ones(pooling):
    with pytest.raises(ConfigError, match=f"text.pooling={pooling} is for masked models"):
        tower("gpt2", pooling=pooling)


def test_layers_are_averaged_in_a_tree():
    compare_ways(tower("gpt2", adapt="lora", pooled_layers=(1, -1)), TEXTS, "tree")
