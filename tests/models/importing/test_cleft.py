import math
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from tests.fakes.models import CAPTIONS, write_language_model
from tests.fakes.official import official_state, prompt_tuned, write_official
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from cleft.cli import main
from cleft.config import load_run_settings
from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model
from cleft.models.importing.cleft import import_authors, language_config, sort_weights
from cleft.models.importing.importing import import_checkpoint
from cleft.models.importing.safe_load import check_container, load_foreign, tensors_of


def imported(tmp_path, kind="lora", *, state=None, hyper=None, **options):
    path = write_official(tmp_path / "theirs.ckpt", official_state(kind) if state is None else state, **(hyper or {}))
    return load_model(import_authors(path, tmp_path / "ours", size=56, **options))


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix", "none"])
def test_every_kind_of_checkpoint_is_imported(tmp_path, kind):
    model = imported(tmp_path, kind)
    embeds = model.encode_image(torch.zeros(1, 1, 56, 56, dtype=torch.uint8))
    assert embeds.shape == model.encode_text(["3 5 9"]).shape == (1, 8)
    assert model.text_tower.config.adapt == ("frozen" if kind == "none" else kind)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix"])
def test_16_bit_weights_are_kept_and_give_float32_values(tmp_path, kind, dtype):
    state = {name: tensor.to(dtype) for name, tensor in official_state(kind).items()}
    stored = imported(tmp_path, state=state)
    weights = load_file(tmp_path / "ours/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert stored.text_tower.lm.model.h[0].mlp.c_fc.weight.dtype == dtype
    widened = load_model(tmp_path / "ours", float32=True)
    assert {weight.dtype for weight in widened.parameters()} == {torch.float32}
    images = torch.randint(0, 256, (2, 1, 56, 56), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(stored.encode_image(images), widened.encode_image(images))
        for packing in ("padded", "tree"):
            stored.text_tower.packing = widened.text_tower.packing = packing
            assert torch.equal(stored.encode_text(["3 5 9", "3 5"]), widened.encode_text(["3 5 9", "3 5"]))


def test_without_pool_feat_the_class_token_is_used(tmp_path):
    assert imported(tmp_path, hyper={"pool_feat": False}).image_tower.config.pooling == "cls"


def test_a_tokenizer_makes_sentences_usable(tmp_path):
    folder = write_language_model(tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = imported(tmp_path, state=official_state(tokens=len(tokenizer)), tokenizer=folder)
    ids = " ".join(map(str, tokenizer(CAPTIONS[0])["input_ids"]))
    plain = imported(tmp_path, state=official_state(tokens=len(tokenizer)))
    assert torch.equal(model.encode_text(CAPTIONS[:1]), plain.encode_text([ids]))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="and the language model 48; give the one it was trained with"):
        imported(tmp_path, tokenizer=write_language_model(tmp_path / "lm"))


def without_language_model(state):
    return {name: tensor for name, tensor in state.items() if "transformer" not in name or "lora" in name}


def test_a_missing_language_model_must_be_given(tmp_path):
    with pytest.raises(CheckpointError, match=r"theirs.ckpt: it lacks its language model; give it"):
        imported(tmp_path, state=without_language_model(official_state()))


def test_a_given_language_model_replaces_a_missing_one(tmp_path):
    folder, state = write_language_model(tmp_path / "lm"), official_state()
    inside = sort_weights(state).language
    options = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    tokens = len(AutoTokenizer.from_pretrained(folder))
    language_model = AutoModel.from_config(AutoConfig.for_model("gpt2", vocab_size=tokens, **options))
    table = language_model.wte.weight.detach().clone()
    table[:48] = inside["wte.weight"]
    language_model.load_state_dict({**inside, "wte.weight": table})
    language_model.save_pretrained(folder)
    model = imported(tmp_path, state=without_language_model(state), text_model=str(folder))
    assert not any("wte" in name for name in load_file(tmp_path / "ours/model.safetensors"))
    whole = imported(tmp_path, state={**state, "text_encoder_q.model.base_model.model.transformer.wte.weight": table})
    ids = " ".join(map(str, model.text_tower.tokenizer.encode(CAPTIONS[:1])[0][:-1]))
    torch.testing.assert_close(model.encode_text(CAPTIONS[:1]), whole.encode_text([ids]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.update(queue=torch.ones(1)), "1 weight has no target in these towers: queue"),
        (lambda s: s.pop("img_encoder_q.model.blocks.1.ls2.gamma"), "1 missing weight of the image tower"),
        (
            lambda s: s.pop("text_encoder_q.model.base_model.model.transformer.h.1.ln_2.bias"),
            r"1 missing: text_tower.lm.model.h.1.ln_2.bias",
        ),
        (
            lambda s: s.update({"text_encoder_q.global_embed.bias": torch.ones(9)}),
            "1 with another shape or dtype: text_proj",
        ),
        (
            lambda s: s.update({"img_encoder_q.model.pos_embed": torch.ones(1, 8, 32)}),
            "7 image positions are not a square",
        ),
        (lambda s: s.update({"img_encoder_q.model.blocks.999999999.ls1.gamma": torch.ones(1)}), "not numbered 0, 1"),
        (lambda s: s.update({"img_encoder_q.model.blocks.0.attn.qkv.bias": torch.ones(2)}), "1 weight has no target"),
        (lambda s: s.update(logit_scale=torch.tensor(torch.nan)), "1 with NaN or infinity: logit_scale"),
        (lambda s: s.update(logit_scale=3.0), "1 entry of its state_dict is not a named tensor"),
        (
            lambda s: s.update({3: torch.ones(1)}),
            r"not a named tensor, first \['3'\]; give a file of only weights",
        ),
        (lambda s: s.pop("img_encoder_q.global_embed.bias"), "the bias of a linear projection"),
    ],
)
def test_weights_without_a_target_are_listed(tmp_path, change, sentence):
    state = official_state()
    change(state)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        imported(tmp_path, state=state)
    assert "theirs.ckpt" in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_two_different_token_embeddings_are_refused(tmp_path):
    state = official_state("prefix")
    state["text_encoder_q.model.word_embeddings.weight"] = torch.zeros(48, 32)
    with pytest.raises(CheckpointError, match=r"no target in these towers: text_encoder_q.model.word_embeddings"):
        imported(tmp_path, state=state)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="it is not a checkpoint of the authors' release"):
        imported(tmp_path, state={"fc.weight": torch.ones(1)})


def test_summed_word_pooling_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="agg_tokens"):
        imported(tmp_path, hyper={"agg_tokens": True})


def test_a_size_between_patches_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nearest sizes are 210 and 224"):
        import_authors(write_official(tmp_path / "theirs.ckpt"), tmp_path / "ours", size=220)


def test_heads_are_known_for_published_widths_and_required_otherwise(tmp_path):
    assert imported(tmp_path, image_heads=4).image_tower.model.config.num_attention_heads == 4
    assert imported(tmp_path).image_tower.model.config.num_attention_heads == 2
    with pytest.raises(CheckpointError, match="heads is unknown for width 400; give image_heads"):
        imported(tmp_path, state=official_state(vision_width=400))


def test_biomedlm_scales_attention_by_block_and_has_its_last_token_as_eos():
    shapes = {"wte.weight": (28896, 2560), "wpe.weight": (1024, 2560), "h.0.mlp.c_fc.weight": (2560, 10240)}
    weights = sort_weights({})
    weights.language.update({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    config = language_config(weights)
    assert (config["n_head"], config["eos_token_id"]) == (20, 28895)
    assert config["scale_attn_by_inverse_layer_idx"]


class Payload:
    """Creates a file if it is unpickled by a reader that runs code."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_a_pickle_payload_is_never_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": official_state(), "callbacks": Payload(tmp_path / "was-here")}, path)
    with pytest.raises(CheckpointError, match=r"evil.ckpt names \w+.mkdir, .* such files can run code") as caught:
        import_authors(path, tmp_path / "ours")
    assert "False" not in str(caught.value)
    assert not (tmp_path / "was-here").exists()


def test_code_names_in_hyper_parameters_are_ignored(tmp_path):
    names = {"_target_": "os.mkdir", "_instantiator": "os.mkdir", "auto_map": {"AutoModel": "x.Y"}}
    imported(tmp_path, hyper=names)
    assert "os.mkdir" not in (tmp_path / "ours/model.json").read_text()


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed entries, which torch never writes; refused"):
        check_container(path)


def test_entries_that_claim_more_than_the_file_has_are_refused(tmp_path):
    path = write_official(tmp_path / "theirs.ckpt")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # the last entry of the directory
    content[at + 20 : at + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"claims 2,14\d,\d+,\d+ bytes in \d+ entries"):
        check_container(path)


def test_an_expanded_tensor_is_refused(tmp_path):
    path = tmp_path / "wide.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1).expand(10**9)}}, path)
    with pytest.raises(CheckpointError, match="claim 4,000,000,000 bytes"):
        tensors_of(load_foreign(path), path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a checkpoint of torch 1.6 .* copy it again if it was cut off"),
        (b"\x80\x02}q\x00.", "without a container, which are refused"),
    ],
)
def test_files_that_are_not_checkpoints_are_refused(tmp_path, content, sentence):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence):
        import_authors(tmp_path / "x.ckpt", tmp_path / "ours")


def test_the_temperature_of_the_file_is_that_of_the_settings(tmp_path):
    out = import_authors(write_official(tmp_path / "theirs.ckpt"), tmp_path / "ours", size=56)
    assert load_run_settings(out).loss.temperature == pytest.approx(math.exp(-2.6))


def test_a_second_language_model_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="--text-model gpt2: the checkpoint contains its language model; leave it out"
    ):
        import_authors(write_official(tmp_path / "theirs.ckpt"), tmp_path / "ours", text_model="gpt2")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*x.ckpt"):
        import_authors(tmp_path / "x.ckpt", tmp_path / "ours")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path, share):
    path = write_official(tmp_path / "theirs.ckpt")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"theirs.ckpt"):
        import_authors(path, tmp_path / "ours")


def test_one_altered_bit_of_a_weight_is_refused(tmp_path):
    path = write_official(tmp_path / "theirs.ckpt")
    content = bytearray(path.read_bytes())
    weights = official_state()["img_encoder_q.global_embed.weight"].numpy().tobytes()
    content[content.index(weights) + 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"theirs.ckpt is damaged: the checksum of its entry .* differs"):
        import_authors(path, tmp_path / "ours")


def test_an_import_does_not_overwrite_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text('{"extra": {}}')
    with pytest.raises(ConfigError, match="is not empty and not an imported model"):
        import_authors(write_official(tmp_path / "theirs.ckpt"), tmp_path / "run")
    assert (tmp_path / "run" / "model.json").read_text() == '{"extra": {}}'


@pytest.mark.parametrize("content", [[1, 2], {"weights": 1}, {"state_dict": {}}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(
        CheckpointError,
        match=r"not a dictionary of weights; give a|has no state_dict with weights; |is not a named tensor",
    ):
        import_authors(tmp_path / "x.ckpt", tmp_path / "ours")


@pytest.mark.slow
def test_the_command_imports(tmp_path):
    path = write_official(tmp_path / "theirs.ckpt")
    words = ["import", str(path), "--out", str(tmp_path / "ours")]
    subprocess.run([sys.executable, "-m", "cleft", *words], check=True)
    assert load_model(tmp_path / "ours").encode_text(["1 2"]).shape == (1, 8)


def tuned_by_peft() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """PEFT's prompt tuning around its LoRA, as in the authors' second stage, and its weights by name."""
    options = {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **options))
        model.lm_head = torch.nn.Identity()
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, fan_in_fan_out=True))
        tuned = get_peft_model(adapted, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
        with torch.no_grad():
            for weight in tuned.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return tuned, {f"text_encoder_q.model.{name}": tensor for name, tensor in tuned.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
def test_a_learned_context_equals_that_of_peft(tmp_path):
    tuned, text = tuned_by_peft()
    rest = {name: tensor for name, tensor in official_state().items() if not name.startswith("text_encoder_q.model.")}
    model = imported(tmp_path, state={**rest, **text})
    assert model.context.shape == (5, 32)
    assert model.text_tower.config.adapt == "lora"
    ids = torch.tensor([[3, 5, 9, 0, 0], [7, 0, 0, 0, 0]])
    with torch.no_grad():
        states = tuned(input_ids=ids, attention_mask=(ids != 0).long()).logits
        theirs = torch.stack([states[0, 5 + 3], states[1, 5 + 1]])  # at the first end-of-text token
        ours = model.text_tower.encode_after_context(["3 5 9", "7"], model.context)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, model.text_tower.encode(["3 5 9", "7"]), atol=1e-2)


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix", "none"])
def test_a_second_stage_file_has_the_model_and_a_context(tmp_path, kind):
    first = imported(tmp_path, kind)
    path = write_official(tmp_path / "second.ckpt", prompt_tuned(official_state(kind)), prompt_ft=True, ctx_length=6)
    out = import_authors(path, tmp_path / "second", size=56)
    second = load_model(out)
    with torch.no_grad():
        assert torch.equal(first.encode_text(["3 5 9"]), second.encode_text(["3 5 9"]))
        assert second.encode_class_names(["3 5", "7"]).shape == (2, 8)
    assert first.context is None
    assert second.context.shape == (6, 32)
    assert load_run_settings(out).context.length == 6
    assert second.text_tower.config.adapt == ("frozen" if kind == "none" else kind)


def test_the_command_reports_a_learned_context(tmp_path, capsys):
    path = write_official(tmp_path / "second.ckpt", prompt_tuned(official_state()))
    assert main(["import", str(path), "--out", str(tmp_path / "ours"), "--size", "56"]) == 0
    assert "ours: has a learned context of 6 vectors, which cleft evaluate uses" in capsys.readouterr().out


def test_a_context_of_another_width_or_another_embedding_is_refused(tmp_path):
    state = prompt_tuned(official_state())
    wide = {**state, "text_encoder_q.model.prompt_encoder.default.embedding.weight": torch.ones(6, 33)}
    with pytest.raises(CheckpointError, match=r"learned context has the shape \(6, 33\), and .* are 32 wide"):
        imported(tmp_path, state=wide)
    with pytest.raises(CheckpointError, match=r"no target in these towers: text_encoder_q.model.word_embeddings"):
        imported(tmp_path, state={**state, "text_encoder_q.model.word_embeddings.weight": torch.zeros(48, 32)})


def test_the_file_of_the_second_stage_is_recognised_with_wrapped_names(tmp_path):
    state = {f"module._orig_mod.{name}": tensor for name, tensor in prompt_tuned(official_state()).items()}
    out = import_checkpoint(write_official(tmp_path / "second.ckpt", state), tmp_path / "ours", size=56)
    assert load_model(out).context.shape == (6, 32)
