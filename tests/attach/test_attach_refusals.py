"""What `attach` refuses, it refuses in words, and leaves the model as it was."""

import pytest
import torch
from attach_cases import FEED_FORWARD, SEQUENTIAL
from model_state import assert_same, fingerprint
from tiny_models import build, plain_model
from torch import nn

from adapterx import AdapterConfig, ConfigError, TargetError, attach, merge_adapter


@pytest.mark.parametrize(
    ("config", "name", "error", "message"),
    [
        (AdapterConfig(bottleneck_dim=33), "a", ConfigError, "at most the hidden size 32 of encoder.*dense, got 33"),
        (AdapterConfig(bottleneck_dim=4, target_modules=("x",)), "a", TargetError, "nothing matches 'x'"),
        (AdapterConfig(bottleneck_dim=4, layers=(9,)), "a", TargetError, r"got \[9\]"),
        (AdapterConfig(bottleneck_dim=4, modules_to_save=("classifier",)), "a", TargetError, "got 'classifier'"),
        (
            AdapterConfig(bottleneck_dim=4, modules_to_save=("encoder",)),
            "a",
            TargetError,
            "'encoder' holds 'encoder.lay",
        ),
        (SEQUENTIAL, "a.b", ConfigError, r"name must consist of letters, digits, '_' and '-', got 'a.b'"),
        (SEQUENTIAL, "", ConfigError, "got ''"),
        (SEQUENTIAL, "ä b", ConfigError, "got 'ä b'"),
        (SEQUENTIAL, "a\n", ConfigError, "got 'a"),
        (SEQUENTIAL, 3, ConfigError, "got 3"),
        (SEQUENTIAL, "keys", ConfigError, "must not be an attribute of torch.nn.ModuleDict, got 'keys'"),
        (SEQUENTIAL, "train", ConfigError, "got 'train'"),
    ],
)
def test_a_failing_attach_leaves_the_model_untouched(config, name, error, message):
    model = build("bert")
    before = fingerprint(model)
    with pytest.raises(error, match=message):
        attach(model, config, name)
    assert_same(before, fingerprint(model))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"bottleneck_dim": 4}, "got dict; AdapterConfig.from_dict makes one of a mapping"),
        ("houlsby", "got str"),
        (None, "got NoneType"),
        (AdapterConfig, "got type"),
    ],
    ids=str,
)
def test_what_is_no_config_is_refused_in_words(config, words):
    model = build("bert")
    before = fingerprint(model)
    with pytest.raises(TypeError, match=f"^attach: config must be an AdapterConfig, {words}"):
        attach(model, config)
    assert_same(fingerprint(model), before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, "float32"], ids=str)
def test_dtypes_that_no_adapter_has(dtype):
    model = build("bert")
    before = fingerprint(model)
    with pytest.raises(ConfigError, match=r"^attach: dtype must be one of float32, bfloat16, float16, float64, got"):
        attach(model, SEQUENTIAL, dtype=dtype)
    assert_same(fingerprint(model), before)


def test_names_that_are_taken():
    model = build("bert")
    attach(model, SEQUENTIAL)
    before = fingerprint(model)
    with pytest.raises(ConfigError, match="name must be new, got 'default'"):
        attach(model, FEED_FORWARD)
    assert_same(before, fingerprint(model))
    own = plain_model()
    own.classifier.adapterx = nn.Linear(1, 1)
    with pytest.raises(TargetError, match="classifier has an attribute 'adapterx' of its own"):
        attach(own, AdapterConfig(bottleneck_dim=2, target_modules=("classifier",)))


def test_merge_is_refused_with_the_reason():
    model = build("bert")
    attach(model, SEQUENTIAL)
    with pytest.raises(NotImplementedError, match="non-linear activation"):
        merge_adapter(model)
