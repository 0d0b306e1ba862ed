"""Descriptions of tiny language models of many families, as `text.scratch` wants them."""

from __future__ import annotations

from typing import Any

_BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
_GROUPED = {**_BLOCKS, "num_key_value_heads": 2, "max_position_embeddings": 96}
_GPT = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 96}
_BERT = {**_BLOCKS, "max_position_embeddings": 96}
_FALCON = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "alibi": False}
_OPT = {
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "ffn_dim": 48},
    "max_position_embeddings": 96,
}

CAUSAL_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **_GPT},
    "opt": {"model_type": "opt", **_OPT},
    "opt-350m": {"model_type": "opt", **_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "biogpt": {"model_type": "biogpt", **_BERT},
    "llama": {"model_type": "llama", **_GROUPED},
    "mistral": {"model_type": "mistral", **_GROUPED, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **_GROUPED},
    "qwen3": {"model_type": "qwen3", **_GROUPED, "head_dim": 16},
    "gemma": {"model_type": "gemma", **_GROUPED, "num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {"model_type": "gemma2", **_GROUPED, "head_dim": 16, "sliding_window": 512},
    "gemma3": {"model_type": "gemma3_text", **_GROUPED, "head_dim": 16, "sliding_window": 512},
    "olmo2": {"model_type": "olmo2", **_GROUPED},
    "smollm3": {"model_type": "smollm3", **_GROUPED},
    "granite": {"model_type": "granite", **_GROUPED},
    "starcoder2": {"model_type": "starcoder2", **_GROUPED, "sliding_window": None},
    "phi": {"model_type": "phi", **_GROUPED},
    "phi3": {"model_type": "phi3", **_GROUPED, "pad_token_id": 0},
    "falcon-old": {"model_type": "falcon", **_FALCON, "multi_query": True, "new_decoder_architecture": False},
    "falcon-new": {"model_type": "falcon", **_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon-alibi": {"model_type": "falcon", **_FALCON, "alibi": True, "multi_query": False},
    "bloom": {"model_type": "bloom", "n_layer": 2, "n_head": 4, "hidden_size": 32},
    "gpt-neox": {"model_type": "gpt_neox", **_BERT},
    "gpt-neo": {
        **{"model_type": "gpt_neo", "num_layers": 2, "num_heads": 4, "hidden_size": 32},
        **{"attention_types": [[["global"], 2]], "max_position_embeddings": 96},
    },
    "gptj": {"model_type": "gptj", **_GPT, "rotary_dim": 4},
    "gpt-bigcode": {"model_type": "gpt_bigcode", **_GPT, "multi_query": True},
    "gpt-bigcode-heads": {"model_type": "gpt_bigcode", **_GPT, "multi_query": False},
    "mpt": {"model_type": "mpt", "n_layers": 2, "n_heads": 4, "d_model": 32, "max_seq_len": 96},
    "codegen": {"model_type": "codegen", **_GPT, "rotary_dim": 4},
    "xglm": {"model_type": "xglm", "num_layers": 2, "attention_heads": 4, "d_model": 32, "ffn_dim": 48},
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
MASKED_FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **_BERT},
    "roberta": {"model_type": "roberta", **_BERT},
    "distilbert": {"model_type": "distilbert", "n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 48},
    "electra": {"model_type": "electra", **_BERT, "embedding_size": 16},
    "albert": {"model_type": "albert", **_BERT, "embedding_size": 16},
    "deberta": {"model_type": "deberta", **_BERT},
    "deberta-v2": {"model_type": "deberta-v2", **_BERT},
    "modernbert": {"model_type": "modernbert", **_BERT},
    "mobilebert": {
        **{"model_type": "mobilebert", **_BERT, "embedding_size": 16, "true_hidden_size": 16},
        **{"intra_bottleneck_size": 16, "intermediate_size": 16},
    },
    "convbert": {"model_type": "convbert", **_BERT, "embedding_size": 16},
    "rembert": {"model_type": "rembert", **_BERT, "input_embedding_size": 16},
    "mpnet": {"model_type": "mpnet", **_BERT},
    "roformer": {"model_type": "roformer", **_BERT, "embedding_size": 16},
    "xlm-roberta": {"model_type": "xlm-roberta", **_BERT},
    "esm": {"model_type": "esm", **_BERT},
    "fnet": {
        **{"model_type": "fnet", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48},
        **{"max_position_embeddings": 96, "use_tpu_fourier_optimizations": False},
    },
}
FAMILIES = CAUSAL_FAMILIES | MASKED_FAMILIES
