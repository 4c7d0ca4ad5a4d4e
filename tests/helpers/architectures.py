"""Tiny random models of mlx-lm's architectures, with what is known of each one's attention.

A key is the name of mlx-lm's file, or that and released variants whose layers differ.
``python tests/helpers/architectures.py`` prints the table of what can be patched.
"""

import importlib
import importlib.util
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

import deltamem_mlx as dm
from deltamem_mlx.model.patch import memory_layers

Config = Mapping[str, object]

VOCAB = 96
# ``ModelArgs.from_dict`` takes the keys it knows, so one set serves most architectures.
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    layer_norm_eps=1e-5,
    layer_norm_epsilon=1e-5,
    norm_eps=1e-5,
    rope_theta=10000.0,
    partial_rotary_factor=0.5,
    max_position_embeddings=256,
    attention_bias=False,
    mlp_bias=False,
    use_bias=False,
    use_qk_norm=True,
    tie_word_embeddings=False,
    sliding_window=8,
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=24,
    shared_intermediate_size=24,
    n_shared_experts=1,
    num_shared_experts=1,
    first_k_dense_replace=1,
    decoder_sparse_step=1,
    mlp_only_layers=(),
    norm_topk_prob=True,
    routed_scaling_factor=1.0,
    n_group=1,
    topk_group=1,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
)
MLA = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
INDEXER = dict(index_head_dim=16, index_n_heads=2, index_topk=64)
GRANITE = dict(
    logits_scaling=1.0,
    attention_multiplier=0.25,
    embedding_multiplier=2.0,
    residual_multiplier=0.5,
)
MAMBA = dict(
    mamba_n_heads=4,
    mamba_d_head=8,
    mamba_proj_bias=False,
    mamba_d_state=8,
    mamba_d_conv=3,
    mamba_n_groups=1,
    mamba_conv_bias=True,
    mamba_d_ssm=32,
    mamba_num_heads=4,
    mamba_head_dim=8,
    ssm_state_size=8,
    conv_kernel=3,
    n_groups=1,
    use_conv_bias=True,
    mamba_expand=2,
    mamba_chunk_size=8,
    time_step_limit=(0.01, 10.0),
)
GATED_DELTA = dict(
    linear_num_value_heads=4,
    linear_num_key_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=8,
    linear_conv_kernel_dim=3,
    full_attention_interval=2,
    linear_allow_neg_eigval=True,
    layer_types=("linear_attention", "full_attention"),
)
KDA = dict(
    linear_attn_config=dict(
        num_heads=4, head_dim=32, kda_layers=(1,), full_attn_layers=(2,), short_conv_kernel_size=3
    ),
    model_max_length=256,
    num_experts_per_token=2,
)
LFM2 = dict(
    model_type="lfm2",
    conv_bias=False,
    conv_L_cache=3,
    block_dim=32,
    block_ff_dim=48,
    block_multiple_of=4,
    block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=True,
    num_dense_layers=1,
    use_expert_bias=True,
    full_attn_idxs=(1,),
)
LONGCAT = dict(
    attention_method="MLA",
    zero_expert_type="identity",
    ffn_hidden_size=48,
    moe_topk=2,
    expert_ffn_hidden_size=24,
    zero_expert_num=2,
    num_layers=2,
    mla_scale_q_lora=True,
    mla_scale_kv_lora=True,
    ngram_vocab_size_ratio=2,
    emb_neighbor_num=2,
    emb_split_num=2,
)
GPT = dict(n_ctx=256, n_embd=32, n_head=4, n_layer=2, n_inner=48, n_positions=256, rotary_dim=4)
MINICPM = dict(dim_model_base=32, scale_depth=1.0, scale_emb=1.0)
SLIDING = ("sliding_attention", "full_attention")
ROPES = {kind: dict(rope_theta=10000.0, rope_type="default") for kind in SLIDING}
LLAMA4_ROPE = dict(
    rope_theta=10000.0,
    llama_4_scaling_beta=0.1,
    original_max_position_embeddings=4,
    type="default",
)
LONGROPE = dict(
    type="longrope",
    long_factor=(1.0,) * 4,
    short_factor=(1.0,) * 4,
    long_mscale=1.2,
    short_mscale=1.2,
    original_max_position_embeddings=256,
)
YARN = dict(
    type="yarn",
    factor=4,
    mscale=1.0,
    mscale_all_dim=1.0,
    beta_fast=32,
    beta_slow=1,
    original_max_position_embeddings=64,
)
DYNAMIC = dict(type="dynamic", alpha=1000.0, factor=1.0)
GEMMA3N = dict(
    num_hidden_layers=4,
    num_kv_shared_layers=2,
    vocab_size_per_layer_input=96,
    hidden_size_per_layer_input=8,
    global_head_dim=16,
    rope_local_base_freq=10000.0,
    final_logit_softcapping=30.0,
    layer_types=SLIDING * 2,
    activation_sparsity_pattern=(0.5,) * 4,
    altup_num_inputs=2,
    altup_coef_clip=1.0,
    altup_correct_scale=True,
    altup_active_idx=0,
    laurel_rank=4,
)
LATENT = "q_b_proj o_proj"
FIVE = (*("sliding_attention",) * 4, "full_attention")
SIX = ("sliding_attention", *FIVE)


def layers_of(period: Sequence[str], count: int, shared: int = 0) -> Config:
    """Of Gemma 3n and 4: kinds of layers that alternate, the last ones with the keys of others."""
    sparse = [0.95 if i < 10 else 0.0 for i in range(count)]
    return dict(
        num_hidden_layers=count,
        num_kv_shared_layers=shared,
        layer_types=[*period] * (count // len(period)),
        activation_sparsity_pattern=sparse,
    )


GEMMA4 = GEMMA3N | dict(global_head_dim=32, tie_word_embeddings=True)
GEMMA4_LARGE = GEMMA4 | dict(
    hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=1
)
DEEP = 8  # layers, from here on
LAST_NORMS = (  # of what a layer adds, where it is normed
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "post_per_layer_input_norm",
)
SEPARATE = "q_proj k_proj v_proj o_proj"
OUT_PROJ = "q_proj k_proj v_proj out_proj"


class Architecture(NamedTuple):
    """One architecture of mlx-lm, small.

    Args:
        config (Config): What differs from ``COMMON``.
        projections (str): Names of q, k, v and output projection, or of packed and output.
        module (str): Name under which a layer holds its attention.
        layers (Sequence[int] | None): Layers that get a memory, or numbers of attentions where
          layers have several. ``None``: all layers.
        refused (str): Why ``attach`` refuses, for the table. Empty: it patches.
        heads (str): What can be corrected in every layer that gets a memory.
        saves (bool): Whether mlx-lm can save the prompt cache.
        trains (str): Which heads' corrections get a gradient through mlx-lm's forward.
        uncached (bool): Whether mlx-lm itself gives the same logits without a prompt cache.
        batch (str): What mlx-lm itself can do with prompts of different lengths: ``"all"``,
          ``"whole"`` (padded prompts in one piece), ``"prefill"`` (the same, but what is decoded
          after it is off) or ``"none"``.
        chunks (bool): Whether mlx-lm itself gives the same logits however it is fed.
        nested (bool): The language model's settings sit under ``text_config``.
        needs (str): What a machine may lack to run it.
        note (str): For the table.
    """

    config: Config = MappingProxyType({})
    projections: str = SEPARATE
    module: str = "self_attn"
    layers: Sequence[int] | None = None
    refused: str = ""
    heads: str = "qkvo"
    uncached: bool = True
    saves: bool = True
    trains: str = "qkvo"
    batch: str = "all"
    chunks: bool = True
    nested: bool = False
    needs: str = ""
    note: str = ""


A = Architecture
NO_ATTENTION = "no attention layers"
USUAL = (
    "cohere deepseek dots1 ernie4_5 gemma glm glm4 helium internlm3 llama mimo "
    "mixtral nanbeige olmo2 olmoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss solar_open "
    "starcoder2 telechat3"
)
MLA_ONLY = (
    "deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash "
    "longcat_flash_ngram minicpm3 mistral4 youtu_llm"
)
RELEASED = {  # whose names do not tell
    "deepseek_v2": "V2, V2.5",
    "deepseek_v3": "V3, R1",
    "deepseek_v32": "V3.2",
    "deepseek_v41": "V4.1",
    "glm4_moe_lite": "GLM-4.7-Flash",
    "glm_moe_dsa": "GLM-5",
    "kimi_k25": "K2.5",
    "kimi_k3": "K3",
    "longcat_flash": "Chat, Thinking",
    "mistral4": "Small 4",
}
NOTES: dict[str | bool, str] = {
    "all": "",
    "whole": "mlx-lm: batches of different lengths only with the prompts in one prefill step",
    "prefill": "mlx-lm: batches of different lengths decode wrongly, as padding enters its state",
    "none": "mlx-lm: no batches of different lengths",
    True: "",
    False: "mlx-lm: logits depend on the prefill step",
}
ARCHITECTURES: dict[str, Architecture] = {name: A() for name in USUAL.split()}
ARCHITECTURES |= {
    name: A(
        MLA
        | INDEXER
        | LONGCAT
        | MINICPM
        | dict(moe_layer_freq=1, rope_parameters=LLAMA4_ROPE)
        | dict(rope_scaling={"deepseek_v2": YARN, "minicpm3": LONGROPE}.get(name)),
        LATENT,
        layers=range(4) if name.startswith("longcat") else None,
        heads="qo",
        batch="prefill" if name == "longcat_flash_ngram" else "all",
    )
    for name in MLA_ONLY.split()
}
ARCHITECTURES |= {
    # Separate q, k, v and output projections.
    "Klear": A(dict(decoder_sparse_step=2)),
    "afmoe": A(dict(layer_types=SLIDING, num_dense_layers=1)),
    "apertus": A(dict(post_norm=True, qk_norm=True)),
    "bitnet": A(dict(head_dim=None), needs="Metal"),
    "cohere2": A(dict(sliding_window_pattern=2, head_dim=8)),
    "ernie4_5_moe": A(dict(moe_num_experts=4, moe_k=2, moe_layer_start_index=1)),
    "exaone": A(dict(num_layers=2, head_dim=8), OUT_PROJ, "attention"),
    "exaone4": A(dict(rope_scaling=None, sliding_window_pattern="LG")),
    "exaone4 (1.2B)": A(dict(rope_scaling=None, sliding_window_pattern=None)),
    "exaone_moe": A(dict(layer_types=SLIDING, is_moe_layer=(False, True))),
    "gemma2": A(batch="none"),
    "gemma3": A(dict(sliding_window_pattern=2), nested=True),
    "gemma3_text": A(dict(sliding_window_pattern=2)),
    "glm4_moe": A(dict(rope_scaling=None)),
    "gpt_oss": A(dict(layer_types=SLIDING)),
    "gptj": A(GPT, OUT_PROJ, "attn"),
    "granite": A(GRANITE),
    "granitemoe": A(GRANITE),
    "hunyuan_v1_dense": A(dict(rope_scaling=DYNAMIC)),
    "laguna": A(dict(layer_types=SLIDING, rope_parameters=ROPES)),
    "llama4": A(
        dict(
            num_hidden_layers=4,
            attention_chunk_size=8,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=48,
            rope_scaling=None,
        ),
        batch="none",
        nested=True,
    ),
    "llama4_text": A(dict(intermediate_size_mlp=48, no_rope_layers=(1, 0))),
    "mellum": A(dict(layer_types=SLIDING, rope_parameters=ROPES)),
    "mimo_v2_flash": A(
        dict(
            hybrid_layer_pattern=(0, 1),
            moe_layer_freq=(0, 1),
            add_swa_attention_sink_bias=True,
            add_full_attention_sink_bias=False,
            sliding_window_size=8,
            layernorm_epsilon=1e-5,
            swa_rope_theta=10000.0,
            swa_num_attention_heads=4,
            swa_num_key_value_heads=2,
            swa_head_dim=16,
            swa_v_head_dim=8,
            v_head_dim=8,
        )
    ),
    "minicpm": A(MINICPM),
    "minimax": A(dict(rotary_dim=8)),
    "minimax_m3_vl": A(
        dict(
            dense_intermediate_size=48,
            mlp_layer_types=("dense", "sparse"),
            sparse_attention_freq=(0, 1),
            index_n_heads=2,
            index_head_dim=16,
            index_block_size=4,
            index_topk_blocks=8,
        ),
        nested=True,
    ),
    "ministral3": A(dict(layer_types=SLIDING, rope_parameters=LLAMA4_ROPE)),
    "mistral3": A(dict(model_type="llama"), nested=True),
    "muse_glimmer": A(dict(layer_types=SLIDING)),
    "nanochat": A({}, "c_q c_k c_v c_proj", "attn"),
    "nemotron": A(dict(hidden_act="relu2")),
    "olmo3": A(dict(layer_types=SLIDING)),
    "phi": A(dict(num_key_value_heads=4), "q_proj k_proj v_proj dense"),
    "phimoe": A(dict(rope_scaling=LONGROPE)),
    "pixtral": A(dict(model_type="llama"), nested=True),
    "plamo": A(dict(n_shared_head=2)),
    "qwen2_vl": A(dict(model_type="qwen2"), nested=True),
    "qwen3_vl": A(dict(model_type="qwen3"), nested=True),
    "qwen3_vl_moe": A(dict(model_type="qwen3_moe"), nested=True),
    "smollm3": A(dict(num_hidden_layers=4)),
    "stablelm": A(dict(use_qkv_bias=True)),
    "step3p5": A(
        dict(
            num_attention_groups=2,
            moe_num_experts=4,
            moe_top_k=2,
            share_expert_dim=24,
            moe_layers_enum="1",
            layer_types=SLIDING,
            attention_other_setting=dict(num_attention_heads=6, num_attention_groups=3),
        )
    ),
    "talkie": A({}, "attn_query attn_key attn_value attn_resid", "attn"),
    # Packed projections.
    "afm7": A(
        dict(hidden_dim=32, num_layers=3, num_heads=4, num_kv_heads=2, num_kv_reuse_layers=1),
        "qkv_proj out_proj",
        layers=(0, 1),
        batch="prefill",
        trains="qo",
        note="layers that reuse keys are given no part of the prompt cache; "
        "mlx-lm rounds keys and values, which has no gradient",
    ),
    "baichuan_m1": A(
        dict(sliding_window_layers=(0,), conv_window=2), "W_pack o_proj", batch="prefill"
    ),
    "bailing_moe": A({}, "query_key_value dense", "attention"),
    "dbrx": A(
        dict(
            d_model=32,
            n_layers=2,
            n_heads=4,
            ffn_config=dict(ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2),
            attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=10000.0),
        ),
        "Wqkv out_proj",
        "attn",
    ),
    "gpt2": A(GPT, "c_attn c_proj", "attn"),
    "gpt_bigcode": A(GPT, "c_attn c_proj", "attn", batch="none"),
    "gpt_neox": A(
        dict(rotary_emb_base=10000, rotary_pct=0.5),
        "query_key_value dense",
        "attention",
        note="rows in groups per head",
    ),
    "internlm2": A({}, "wqkv wo", "attention", note="rows in groups per KV head"),
    "lille-130m": A(
        dict(n_embd=64, n_head=4, n_kv_heads=2, n_layer=2, block_size=256),
        "qkv_proj out_proj",
        "attention",
    ),
    "muse_spark": A(
        dict(
            post_norm_eps=1e-5,
            rope_parameters=dict(rope_theta=10000.0),
            layer_rope_theta=(10000.0, 0.0),
            layer_types=SLIDING,
            final_logit_softcapping=20.0,
            output_multiplier=1.0,
            moe_hidden_size=16,
            num_shared_experts=0,
        ),
        "qkvg_proj o_proj",
        nested=True,
        refused="its packed projection holds a gate as well",
        needs="Metal",
    ),
    "olmo": A(
        dict(d_model=32, n_layers=2, mlp_hidden_size=48, n_heads=4, embedding_size=96),
        "att_proj attn_out",
        refused="the projections lie in the layer, beside the MLP's",
        needs="ai2-olmo",
    ),
    "openelm": A(
        dict(
            num_transformer_layers=2,
            model_dim=32,
            ffn_dim_divisor=8,
            num_query_heads=(4, 6),
            num_kv_heads=(2, 3),
            ffn_multipliers=(1.0, 2.0),
        ),
        "qkv_proj out_proj",
        "attn",
    ),
    "phi3": A({}, "qkv_proj o_proj"),
    "phi3small": A(  # it writes -inf at fixed ids up to 100351
        dict(
            vocab_size=100352,
            dense_attention_every_n_layers=2,
            ff_intermediate_size=48,
            gegelu_limit=20.0,
        ),
        "query_key_value dense",
        batch="none",
        chunks=False,  # mlx-lm adds its boolean mask to the scores
        note="rows in groups per KV head",
    ),
    "phixtral": A(
        dict(num_vocab=96, model_dim=32, num_heads=4, num_layers=2, rotary_dim=4),
        "Wqkv out_proj",
        "mixer",
    ),
    "plamo3": A(  # beyond the window mlx-lm's cached forward differs from its full one
        dict(window_size=64, sliding_window=64, sliding_window_pattern=2),
        "qkv_proj o_proj",
        "mixer",
    ),
    "qwen": A(dict(kv_channels=8), "c_attn c_proj", "attn"),
    "spark2_5": A(dict(layer_types=SLIDING, rope_parameters=ROPES), "q_k_v_proj out_proj"),
    # Layers of several kinds, of which the attention layers get a memory.
    "bailing_moe_linear": A(
        dict(layer_group_size=2, group_norm_size=1, num_key_value_heads=4, head_dim=8),
        "query_key_value dense",
        "attention",
        layers=(1,),
        batch="prefill",
    ),
    "falcon_h1": A(MAMBA, batch="whole"),
    "gear": A(
        dict(
            num_hidden_layers=3,
            layer_types=("conv_mixer", "sliding_attention", "full_attention"),
        ),
        layers=(1, 2),
    ),
    "granitemoehybrid": A(
        GRANITE | MAMBA | dict(layer_types=("mamba", "attention")), layers=(1,), batch="whole"
    ),
    "granitemoehybrid (dense)": A(
        GRANITE
        | MAMBA
        | dict(
            layer_types=("mamba", "attention"), num_local_experts=0, position_embedding_type="nope"
        ),
        layers=(1,),
        batch="whole",
    ),
    "jamba": A(
        MAMBA
        | dict(
            attn_layer_offset=1,
            attn_layer_period=2,
            expert_layer_offset=1,
            expert_layer_period=2,
        ),
        layers=(1,),
        batch="prefill",
    ),
    "lfm2": A(LFM2, OUT_PROJ, layers=(1,)),
    "lfm2-vl": A(LFM2, OUT_PROJ, layers=(1,), nested=True),
    "lfm2_moe": A(LFM2 | dict(model_type="lfm2_moe"), OUT_PROJ, layers=(1,)),
    "nemotron-nas": A(
        dict(
            num_hidden_layers=3,
            block_configs=[
                dict(
                    attention=dict(n_heads_in_group=2, no_op=off, replace_with_linear=False),
                    ffn=dict(ffn_mult=1.5, no_op=False, replace_with_linear=False),
                )
                for off in (False, True, False)
            ],
        ),
        layers=(0, 2),
    ),
    "nemotron_h": A(
        MAMBA | dict(hybrid_override_pattern=("M", "-", "*")),
        module="mixer",
        layers=(2,),
        batch="prefill",
    ),
    "olmo_hybrid": A(GATED_DELTA, layers=(1,), batch="prefill"),
    "plamo2": A(
        MAMBA | dict(hidden_size_per_head=16, mamba_step=2),
        "qkv_proj o_proj",
        "mixer",
        layers=(1,),
        batch="whole",
    ),
    "nemotron_h (Nano 3, with experts)": A(
        MAMBA
        | dict(
            hybrid_override_pattern=("M", "E", "*"),
            moe_shared_expert_intermediate_size=24,
            mlp_hidden_act="relu2",
        ),
        module="mixer",
        layers=(2,),
        batch="prefill",
    ),
    "qwen3_5": A(GATED_DELTA | dict(num_experts=0), layers=(1,), nested=True),
    "qwen3_5_moe": A(GATED_DELTA, layers=(1,), nested=True),
    "qwen3_next": A(GATED_DELTA, layers=(1,)),
    "recurrent_gemma": A(
        dict(
            conv1d_width=3,
            logits_soft_cap=30.0,
            attention_window_size=8,
            block_types=("recurrent", "attention"),
        ),
        module="temporal_block",
        layers=(1,),
        batch="prefill",
    ),
    # Layers that look at the keys and values of others.
    "gemma3n": A(GEMMA3N, "q_proj o_proj", heads="qo", nested=True, uncached=False),
    "gemma3n (E2B and E4B)": A(
        GEMMA3N | layers_of(FIVE, 10, 5) | dict(altup_num_inputs=4),
        "q_proj o_proj",
        heads="qo",
        nested=True,
        uncached=False,
    ),
    "gemma4": A(GEMMA3N | dict(num_kv_shared_layers=0), nested=True),
    "gemma4 (E2B)": A(
        GEMMA4 | layers_of(FIVE, 10, 5) | dict(use_double_wide_mlp=True),
        "q_proj o_proj",
        heads="qo",
        nested=True,
    ),
    "gemma4 (E4B)": A(
        GEMMA4 | layers_of(SIX, 12, 6) | dict(use_double_wide_mlp=False),
        "q_proj o_proj",
        heads="qo",
        nested=True,
    ),
    "gemma4 (26B-A4B)": A(
        GEMMA4_LARGE | layers_of(SIX, 6) | dict(enable_moe_block=True, top_k_experts=2),
        "q_proj o_proj",
        heads="qo",
        nested=True,
    ),
    "gemma4 (31B)": A(GEMMA4_LARGE | layers_of(SIX, 12), "q_proj o_proj", heads="qo", nested=True),
    "gemma4_text": A(GEMMA3N, "q_proj o_proj", heads="qo"),
    "hunyuan": A(
        dict(
            moe_topk=2,
            num_shared_expert=1,
            use_mixed_mlp_moe=True,
            use_cla=True,
            cla_share_factor=2,
            rope_scaling=DYNAMIC,
        ),
        "q_proj o_proj",
        heads="qo",
    ),
    "hunyuan (A13B)": A(
        dict(
            moe_topk=2,
            num_shared_expert=1,
            use_mixed_mlp_moe=True,
            use_cla=False,
            cla_share_factor=2,
            rope_scaling=DYNAMIC,
        )
    ),
    # Latent attention beside others, and what has no attention to correct.
    "bailing_hybrid": A(
        MLA | dict(layer_group_size=2, group_norm_size=1, score_function="sigmoid"),
        "q_b_proj dense",
        "attention",
        layers=(1,),
        heads="qo",
    ),
    "bailing_moe_v3": A(
        MLA | dict(layer_group_size=2, moe_shared_expert_intermediate_size=24),
        "q_b_proj dense",
        "attention",
        layers=(1,),
        heads="qo",
    ),
    "deepseek_v2 (Lite)": A(
        MLA | MINICPM | dict(moe_layer_freq=1, q_lora_rank=None, rope_scaling=YARN),
        "q_proj o_proj",
        heads="qo",
    ),
    "deepseek_v3 (Moonlight)": A(
        MLA | dict(moe_layer_freq=1, q_lora_rank=None), "q_proj o_proj", heads="qo"
    ),
    "deepseek_v41": A(
        MLA | INDEXER | dict(o_groups=2, o_lora_rank=8),
        "q_b_proj o_b_proj",
        heads="qo",
        saves=False,
        trains="",
        batch="none",
    ),
    "iquestloopcoder": A(
        dict(loop_num=2, loop_window_size=8),
        refused="the model calls the projections itself, past the attention",
    ),
    "kimi_k25": A(MLA, LATENT, heads="qo", nested=True),
    "kimi_k3": A(MLA | KDA, LATENT, layers=(1,), heads="qo", nested=True),
    "kimi_linear": A(MLA | KDA, "q_proj o_proj", layers=(1,), heads="qo"),
    "kimi_vl": A(MLA, LATENT, heads="qo", nested=True),
    "kimi_vl (A3B)": A(MLA | dict(q_lora_rank=None), "q_proj o_proj", heads="qo", nested=True),
    "mamba": A(MAMBA | dict(state_size=8, time_step_rank=4), refused=NO_ATTENTION, batch="prefill"),
    "mamba2": A(
        MAMBA | dict(num_heads=4, state_size=8, time_step_rank="auto"),
        refused=NO_ATTENTION,
        batch="whole",
    ),
    "rwkv7": A(
        dict(a_low_rank_dim=4, v_low_rank_dim=4, gate_low_rank_dim=4, decay_low_rank_dim=4),
        refused=NO_ATTENTION,
        batch="prefill",
    ),
}

# As many layers as the released ones have, for slow tests; above they are a period or three.
RELEASED_DEPTH: Mapping[str, tuple[str, Config]] = {
    "gemma3n (E2B)": ("gemma3n (E2B and E4B)", layers_of(FIVE, 30, 10)),
    "gemma3n (E4B)": ("gemma3n (E2B and E4B)", layers_of(FIVE, 35, 15)),
    "gemma4 (E2B)": ("gemma4 (E2B)", layers_of(FIVE, 35, 20)),
    "gemma4 (E4B)": ("gemma4 (E4B)", layers_of(SIX, 42, 18)),
    "gemma4 (26B-A4B)": ("gemma4 (26B-A4B)", layers_of(SIX, 30)),
    "gemma4 (31B)": ("gemma4 (31B)", layers_of(SIX, 60)),
}


def config_of(name: str, **overrides: object) -> dict[str, object]:
    """The whole config of the tiny ``name``, with lists where JSON has them.

    - overrides: of the language model's settings.
    """
    architecture = ARCHITECTURES[name]
    name = name.split()[0]
    text = {**COMMON, "model_type": name, **architecture.config, **overrides}
    text = json.loads(json.dumps(text))  # tuples become the lists that a config.json has
    if architecture.nested:
        return {"model_type": name, "vocab_size": text["vocab_size"], "text_config": text}
    return text


def build(name: str, seed: int = 0, *, calm: bool = True, **overrides: object) -> nn.Module:
    """A random float32 model, with noise on norms, biases and zeros so that all of them act.

    - calm: what each layer of a deep model adds is small, as it is where training begins. Sixty
      layers that are not make 1e-3 of a rounding, with a memory or without.
    - overrides: of the language model's settings.
    """
    module = importlib.import_module(f"mlx_lm.models.{name.split()[0]}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config_of(name, **overrides)))
    model.update(tree_map(shaken, model.parameters()))
    if calm and len(model.layers) >= DEEP:
        for path, norm in model.named_modules():
            if path.rpartition(".")[2] in LAST_NORMS:
                norm.weight = norm.weight * len(model.layers) ** -0.5
    model.eval()
    mx.eval(model.parameters())
    return model


def shaken(weight: mx.array) -> mx.array:
    """Noise on a weight, so that norms of one and biases of zero act as well."""
    if not mx.issubdtype(weight.dtype, mx.floating):
        return weight
    return weight.astype(mx.float32) + 0.1 * mx.random.normal(weight.shape)


def slow_but(names: Iterable[str], quick: Collection[str]) -> list:
    """Parameters of a test: all ``names``, those that are not ``quick`` marked slow."""
    marks = pytest.mark.slow
    return [name if name in quick else pytest.param(name, marks=marks) for name in names]


def missing(name: str) -> str:
    """What this machine lacks to run the architecture; empty if nothing."""
    needs = ARCHITECTURES[name].needs
    here = {"Metal": mx.metal.is_available(), "ai2-olmo": importlib.util.find_spec("hf_olmo")}
    return "" if not needs or here[needs] else needs


def row_of(name: str) -> tuple[str, ...]:
    """What ``attach`` does with an architecture: where, by which projections, and notes."""
    architecture = ARCHITECTURES[name]
    model = build(name)
    try:
        dm.attach(model, dm.DeltaMemConfig(delta_heads=tuple(architecture.heads)))
    except ValueError:
        return "none", architecture.refused, ""
    attentions = memory_layers(model).values()
    patched = {id(attention) for attention in attentions}
    blocks = sum(any(id(m) in patched for m in layer.modules()) for layer in model.layers)
    where = "every layer" if blocks == len(model.layers) else "attention layers"
    whole = sum("k" in attention.memory_projections.heads for attention in attentions)
    notes = [
        "two attentions a layer, counted through" if len(attentions) > blocks else "",
        "k and v as well where a layer has its own"
        if whole and "k" not in architecture.heads
        else "",
        architecture.note,
        NOTES[architecture.batch],
        NOTES[architecture.chunks],
        "" if architecture.uncached else "mlx-lm: other logits without a prompt cache",
        "" if architecture.saves else "mlx-lm: its prompt cache cannot be read back",
        "" if architecture.trains else "mlx-lm: no gradient through its indexer",
    ]
    heads = ", ".join(architecture.heads)
    names = f"{heads}: `{architecture.projections.replace(' ', '`, `')}`"
    return where, names, "; ".join(filter(None, notes))


def table() -> Iterator[str]:
    """Lines of Markdown: what ``attach`` does with every architecture on this machine."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in ARCHITECTURES:
        lacking = missing(name)
        row = ("not tried here", f"needs {lacking}", "") if lacking else row_of(name)
        rows.setdefault(row, []).append(name)
    yield "| architectures | memory in | corrected, or why not | notes |"
    yield "| --- | --- | --- | --- |"
    order = ["every layer", "attention layers", "none", "not tried here"]
    for key, names in sorted(rows.items(), key=lambda row: (order.index(row[0][0]), -len(row[1]))):
        shown = sorted(f"{n} ({RELEASED[n]})" if n in RELEASED else n for n in names)
        yield f"| {', '.join(shown)} | {' | '.join(key)} |"


if __name__ == "__main__":
    print("\n".join(table()))
