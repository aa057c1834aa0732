"""What is compared with AdapterHub's `adapters`: tiny models, adapters of every preset and option, compositions.

Knows neither library, so that both sides can read it: `make_goldens.py` runs beside `adapters`, the tests beside
adapterx.
"""

PRESETS = ("double_seq_bn", "seq_bn", "par_bn", "scaled_par_bn", "adapter_plus", "compacter", "compacter++")
PRESETS += ("seq_bn_inv", "double_seq_bn_inv")
SMALL = {"reduction_factor": 4}  # of a hidden size of 16; a bottleneck of 4 is what a phm_dim of 4 divides
# Option: the preset that it changes, and how.
OPTIONS = {
    "ln_before": ("double_seq_bn", {"ln_before": True}),
    "ln_before, seq_bn": ("seq_bn", {"ln_before": True}),
    "ln_after": ("double_seq_bn", {"ln_after": True}),
    "ln_after, adapter_residual_before_ln": ("double_seq_bn", {"ln_after": True, "adapter_residual_before_ln": True}),
    "ln_after, seq_bn": ("seq_bn", {"ln_after": True}),
    "ln_after, par_bn": ("par_bn", {"ln_after": True}),
    "ln_before and ln_after": ("double_seq_bn", {"ln_before": True, "ln_after": True}),
    "use_gating": ("double_seq_bn", {"use_gating": True}),
    "use_gating, par_bn": ("par_bn", {"use_gating": True}),
    "use_gating, ln_before": ("double_seq_bn", {"use_gating": True, "ln_before": True}),
    "scaling=0.5": ("double_seq_bn", {"scaling": 0.5}),
    "scaling=learned": ("double_seq_bn", {"scaling": "learned"}),
    "scaling=channel": ("double_seq_bn", {"scaling": "channel"}),
    "scaling=channel, par_bn": ("par_bn", {"scaling": "channel"}),
    "residual_before_ln=post_add": ("seq_bn", {"residual_before_ln": "post_add"}),
    "residual_before_ln=False": ("seq_bn", {"residual_before_ln": False}),
    "residual_before_ln=False, double_seq_bn": ("double_seq_bn", {"residual_before_ln": False}),
    "original_ln_before": ("double_seq_bn", {"original_ln_before": True}),
    "original_ln_before, par_bn": ("par_bn", {"original_ln_before": True}),
    "original_ln_after=False": ("seq_bn", {"original_ln_after": False}),
    "adapter_plus, both": ("adapter_plus", {"mh_adapter": True}),
    "mh_adapter only": ("double_seq_bn", {"output_adapter": False}),
    "cross_adapter": ("double_seq_bn", {"cross_adapter": True}),
    "cross_adapter, seq_bn": ("seq_bn", {"cross_adapter": True, "mh_adapter": True}),
    "cross_adapter, par_bn": ("par_bn", {"cross_adapter": True, "mh_adapter": True}),
    "leave_out": ("double_seq_bn", {"leave_out": [0]}),
    "leave_out both stacks": ("double_seq_bn", {"leave_out": [0, 2]}),
    "reduction_factor by layer": ("double_seq_bn", {"reduction_factor": {"0": 2, "default": 8}}),
    "reduction_factor below 1": ("double_seq_bn", {"reduction_factor": 0.5}),
    "dropout": ("double_seq_bn", {"dropout": 0.1}),
    "prelu": ("double_seq_bn", {"non_linearity": "prelu"}),
    "prelu, ln_before": ("double_seq_bn", {"non_linearity": "prelu", "ln_before": True}),
    "glow": ("seq_bn", {"inv_adapter": "glow", "inv_adapter_reduction_factor": 2}),
    "nice, reduction 4": ("seq_bn", {"inv_adapter": "nice", "inv_adapter_reduction_factor": 4}),
    "phm_dim=2, phm_rank=2": ("compacter", {"phm_dim": 2, "phm_rank": 2}),
    "shared_phm_rule=False": ("compacter", {"shared_phm_rule": False}),
    "factorized_phm_rule": ("compacter", {"factorized_phm_rule": True}),
    "factorized_phm_rule, own": ("compacter", {"factorized_phm_rule": True, "shared_phm_rule": False}),
    "factorized_phm_W=False": ("compacter", {"factorized_phm_W": False}),
    "shared_W_phm": ("compacter", {"shared_W_phm": True}),
    "phm_bias=False": ("compacter", {"phm_bias": False}),
    "learn_phm=False": ("compacter", {"learn_phm": False}),
}
ACTIVATIONS = (
    "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python", "gelu_accurate", "quick_gelu", "swish",
    "silu", "tanh", "sigmoid", "mish", "relu6", "relu2", "leaky_relu", "leakyrelu", "linear", "gelu_10", "laplace",
    "gelu_python_tanh",
)  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = SIZES | {"vocab_size": 40, "max_position_embeddings": 24}
SEQ2SEQ = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40, "max_position_embeddings": 24,
}  # fmt: skip
DECODER = TEXT | {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Model type: class of the model, class of its configuration, the configuration.
MODELS = {
    "bert": ("BertModel", "BertConfig", TEXT),
    "roberta": ("RobertaModel", "RobertaConfig", TEXT),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", TEXT),
    "distilbert": (
        "DistilBertModel", "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40, "max_position_embeddings": 24},
    ),
    "albert": ("AlbertModel", "AlbertConfig", TEXT | {"embedding_size": 16}),
    "bart": ("BartModel", "BartConfig", SEQ2SEQ),
    "t5": (
        "T5Model", "T5Config",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
         "vocab_size": 40},
    ),
    "gpt2": ("GPT2Model", "GPT2Config",
             {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "vocab_size": 40, "n_positions": 24,
              "pad_token_id": 0}),
    "llama": ("LlamaModel", "LlamaConfig", DECODER),
    "mistral": ("MistralModel", "MistralConfig", DECODER),
    "vit": ("ViTModel", "ViTConfig", SIZES | {"image_size": 8, "patch_size": 4}),
    "clip": (
        "CLIPModel", "CLIPConfig",
        {"text_config": TEXT | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 39},
         "vision_config": SIZES | {"image_size": 8, "patch_size": 4}, "projection_dim": 16},
    ),
    "modernbert": (
        "ModernBertModel", "ModernBertConfig",
        TEXT | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
                "reference_compile": False},
    ),
    "gemma2": ("Gemma2Model", "Gemma2Config", DECODER | {"head_dim": 8, "query_pre_attn_scalar": 8}),
}  # fmt: skip
# What stands above the base model, where `adapters` saves other prefixes.
WITH_HEADS = {
    "bert": ("BertForMaskedLM", "double_seq_bn"),
    "roberta": ("RobertaForSequenceClassification", "compacter"),
    "gpt2": ("GPT2LMHeadModel", "double_seq_bn"),
    "bart": ("BartForConditionalGeneration", "seq_bn"),
    "t5": ("T5ForConditionalGeneration", "seq_bn"),
    "llama": ("LlamaForCausalLM", "seq_bn"),
    "gemma2": ("Gemma2ForCausalLM", "par_bn"),
}
# Language models with heads of `adapters`, before which it undoes invertible adapters; before those of transformers it
# does not. Its class, how the head is added, the preset; ours is that of WITH_HEADS with the same weights.
LANGUAGE_MODELS = {
    "bert": ("BertAdapterModel", "add_masked_lm_head", "seq_bn_inv"),
    "gpt2": ("GPT2AdapterModel", "add_causal_lm_head", "double_seq_bn_inv"),
    "llama": ("LlamaAdapterModel", "add_causal_lm_head", "seq_bn_inv"),
}
# Heads: class of the model, then what `add_classification_head` (or `add_tagging_head`) is called with; None: its own.
HEADS = {
    "bert": {
        "two layers": ("BertAdapterModel", {"layers": 2, "num_labels": 3}),
        "one layer, pooler": ("BertAdapterModel", {"layers": 1, "use_pooler": True}),
        "one layer": ("BertAdapterModel", {"layers": 1}),
        "static": ("BertForSequenceClassification", None),
        "two layers, relu": ("BertAdapterModel", {"layers": 2, "activation_function": "relu"}),
        "tagging": ("BertAdapterModel", {"tagging": True}),
    },
    "roberta": {
        "two layers": ("RobertaAdapterModel", {"layers": 2}),
        "static": ("RobertaForSequenceClassification", None),
    },
    "distilbert": {"two layers": ("DistilBertAdapterModel", {"layers": 2})},
    "albert": {"static": ("AlbertForSequenceClassification", None)},
    "gpt2": {"one layer": ("GPT2AdapterModel", {"layers": 1}), "two layers": ("GPT2AdapterModel", {"layers": 2})},
    "llama": {"one layer": ("LlamaAdapterModel", {"layers": 1})},
}
# Compositions of adapters a, b and c: how `adapters` says them, as (kind, parts, options).
COMPOSITIONS = {
    "Stack": ("Stack", ["a", "b"], {}),
    "Fuse dynamic": ("Fuse", ["a", "b", "c"], {"config": "dynamic"}),
    "Fuse static": ("Fuse", ["a", "b"], {"config": "static"}),
    "Split": ("Split", ["a", "b"], {"splits": [2, 4]}),
    "BatchSplit": ("BatchSplit", ["a", "b"], {"batch_sizes": [1, 2]}),
    "Parallel": ("Parallel", ["a", "b"], {}),
    "Average": ("Average", ["a", "b"], {"weights": [0.75, 0.25]}),
}
COMPOSED = {
    "bert": ("double_seq_bn", "seq_bn"),
    "bart": ("double_seq_bn",),
    "llama": ("double_seq_bn", "seq_bn"),
    "vit": ("seq_bn",),
}
FUSIONS = {
    "query_before_ln": {"query_before_ln": True},
    "residual_before": {"residual_before": True},
    "value_before_softmax=False": {"value_before_softmax": False},
    "temperature": {"temperature": True},
    "no key": {"key": False},
    "no query": {"query": False},
}


def adapter_cases(model_type: str) -> dict[str, tuple[str, dict]]:
    """Return the adapters that are compared on a model: by case the preset, and what is changed of it."""
    cases = {name: (name, {}) for name in PRESETS} | OPTIONS
    if model_type == "bert":
        cases |= {f"non_linearity={name}": ("double_seq_bn", {"non_linearity": name}) for name in ACTIVATIONS}
    if model_type not in ("bart", "t5"):
        cases = {name: case for name, case in cases.items() if not name.startswith("cross") and "stacks" not in name}
    return cases
