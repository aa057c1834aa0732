"""`AdapterConfig`: its defaults, what it refuses, and its dictionaries."""

import dataclasses
import itertools
import json
import pickle
import time

import pytest

from adapterx import AdapterConfig, ConfigError, activations, config, reference


def test_defaults_are_houlsby_adapters():
    made = AdapterConfig(bottleneck_dim=64)
    assert made.placement == "sequential"
    assert made.positions == ("attention", "feed_forward")
    assert (made.activation, made.scaling, made.dropout) == ("gelu", 1.0, 0.0)
    assert (made.down_bias, made.up_bias, made.init, made.init_up) == (True, True, "houlsby", "zero")
    assert (made.layers, made.target_modules, made.modules_to_save) == (None, None, ())


def test_activations_are_those_of_the_kernels_and_plain_ones():
    plain = set(activations.ACTIVATIONS) - set(reference.ACTIVATIONS)
    assert set(reference.ACTIVATIONS) < set(activations.ACTIVATIONS)
    assert plain == {*activations.PLAIN, *activations.LEARNED}
    assert len(activations.ACTIVATIONS) == len(set(activations.ACTIVATIONS))


def test_is_frozen_and_keyword_only():
    made = AdapterConfig(bottleneck_dim=64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.bottleneck_dim = 3
    with pytest.raises(TypeError):
        AdapterConfig(64)


def test_lists_become_tuples_and_equal_meanings_are_equal():
    one = AdapterConfig(
        bottleneck_dim=4,
        positions=["feed_forward", "attention"],
        layers=[2, 0],
        target_modules=["o_proj", "wo"],
        modules_to_save=["classifier"],
        scaling=4,
    )
    assert one.positions == ("attention", "feed_forward")
    assert one.layers == (0, 2)
    assert one.target_modules == ("o_proj", "wo")
    assert one.modules_to_save == ("classifier",)
    assert isinstance(one.scaling, float)
    assert hash(one) == hash(dataclasses.replace(one, layers=(0, 2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bottleneck_dim": 0}, "AdapterConfig: bottleneck_dim must be at least 1, got 0"),
        ({"bottleneck_dim": -3}, "AdapterConfig: bottleneck_dim must be at least 1, got -3"),
        ({"bottleneck_dim": 2.0}, "AdapterConfig: bottleneck_dim must be an integer, got 2.0"),
        ({"bottleneck_dim": True}, "AdapterConfig: bottleneck_dim must be an integer, got True"),
        ({}, "exactly one of bottleneck_dim and reduction_factor must be given"),
        ({"bottleneck_dim": 4, "reduction_factor": 2}, "got bottleneck_dim=4 and reduction_factor=2"),
        ({"reduction_factor": 1e-9}, "reduction_factor must be at least 1/1024, got 1e-09"),
        ({"reduction_factor": {"default": -2}}, r"reduction_factor\['default'\] must be at least 1/1024, got -2"),
        ({"reduction_factor": {}}, "reduction_factor must hold a number at least, got {}"),
        ({"reduction_factor": {-1: 2}}, "reduction_factor must have different block indices from 0 up, or 'default'"),
        ({"reduction_factor": {"x": 2}}, "reduction_factor must have different block indices from 0 up, or 'default'"),
        ({"reduction_factor": {"1": 2, 1: 3}}, "reduction_factor must have different block indices from 0 up"),
        ({"bottleneck_dim": {0: 2.5}}, r"bottleneck_dim\[0\] must be an integer, got 2.5"),
        ({"bottleneck_dim": {0: 2}, "reduction_factor": {0: 2}}, "exactly one of bottleneck_dim and reduction_factor"),
        ({"norm_before": 1}, "norm_before must be True or False, got 1"),
        ({"norm_after": True}, "norm_after must be one of None, branch, sum, got True"),
        ({"gating": "yes"}, "gating must be True or False, got 'yes'"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth must be in \[0, 1\), got 1.0"),
        ({"reduction_factor": float("inf")}, "reduction_factor must be a finite number, got inf"),
        ({"reduction_factor": "16"}, "reduction_factor must be a finite number, got '16'"),
        (
            {"placement": "serial"},
            "placement must be one of sequential, parallel, normed_sum, residual_sum, parallel_residual, got 'serial'",
        ),
        ({"positions": "attention"}, "positions must be a sequence of strings, got 'attention'"),
        ({"positions": []}, "positions must be one or more of"),
        ({"positions": ["attention", "attention"]}, "positions must not repeat a name"),
        ({"positions": ["mlp"]}, "positions must be one or more of"),
        ({"positions": 3}, "positions must be a sequence of strings, got 3"),
        ({"activation": "GELU"}, "activation must be one of relu, gelu,"),
        ({"scaling": "channel"}, "scaling must be one of a number, learned, learned_per_channel, got 'channel'"),
        ({"scaling": float("nan")}, "scaling must be a finite number, got nan"),
        ({"scaling": None}, "scaling must be a finite number, got None"),
        ({"scaling": True}, "scaling must be a finite number, got True"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"down_bias": 1}, "down_bias must be True or False, got 1"),
        ({"up_bias": "yes"}, "up_bias must be True or False, got 'yes'"),
        ({"init": "bert"}, "init must be one of houlsby, xavier, he, got 'bert'"),
        ({"init_up": "ones"}, "init_up must be one of zero, near_zero, got 'ones'"),
        ({"layers": []}, "layers must be different block indices from 0 up"),
        ({"layers": [-1]}, r"layers must be different block indices from 0 up, got \[-1\]"),
        ({"layers": [1, 1]}, "layers must be different block indices"),
        ({"layers": [True]}, "layers must be different block indices"),
        ({"layers": "01"}, "layers must be different block indices"),
        ({"layers": 3}, "layers must be different block indices"),
        ({"target_modules": []}, "target_modules must name at least one module"),
        ({"target_modules": ""}, "target_modules must name at least one module"),
        ({"target_modules": "(layer"}, "target_modules must be suffixes or a valid regular expression"),
        ({"target_modules": ["a", ""]}, "target_modules must hold strings that are not empty"),
        ({"target_modules": [1]}, "target_modules must hold strings that are not empty"),
        ({"modules_to_save": "classifier"}, "modules_to_save must be a sequence of strings, got 'classifier'"),
        ({"modules_to_save": ["a", "a"]}, "modules_to_save must not repeat a name"),
        ({"modules_to_save": {"a": 1}}, "modules_to_save must be a sequence of strings, got {'a': 1}"),
        ({"layers": {0: 1}}, "layers must be different block indices"),
    ],
)
def test_refuses_in_words(values, message):
    sized = {"bottleneck_dim", "reduction_factor"} & values.keys() or not values
    with pytest.raises(ConfigError, match=message):
        AdapterConfig(**(values if sized else {"bottleneck_dim": 4, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({key: 10**400}, f"{key} must be a finite number, got 1000") for key in ("scaling", "dropout")),
        ({"reduction_factor": 10**400}, "reduction_factor must be a finite number, got 1000"),
        ({"reduction_factor": -(10**5000)}, "must be a finite number, got an integer of 16610 bits"),
        ({"reduction_factor": [[10**5000]]}, "must be a finite number, got a list that cannot be shown"),
        ({"bottleneck_dim": 10**400}, "bottleneck_dim must be at most 9223372036854775807, got 1000"),
        ({"bottleneck_dim": 2**63}, "bottleneck_dim must be at most 9223372036854775807, got 9223372036854775808"),
        ({"bottleneck_dim": -(10**5000)}, "bottleneck_dim must be at least 1, got an integer of 16610 bits"),
        ({"down_bias": 10**5000}, "down_bias must be True or False, got an integer of"),
        ({"placement": 10**5000}, "placement must be one of sequential, .*, parallel_residual, got an integer of"),
        ({"layers": [10**5000]}, "layers must be different block indices from 0 up, got a list that"),
        ({"layers": range(10**12)}, r"layers must hold at most 10000 entries, got range\(0, 1000000000000\)"),
        ({"layers": list(range(10**6))}, "layers must hold at most 10000 entries, got a list of 1000000 entries"),
        ({"target_modules": list(map(str, range(10**5)))}, "target_modules must hold at most 10000 entries"),
        ({"modules_to_save": map(str, itertools.count())}, "modules_to_save must hold at most 10000 entries"),
        ({"target_modules": "(" * 900 + ")" * 900}, "target_modules must be suffixes or a valid regular expression"),
        ({"target_modules": "(" * 5000 + ")" * 5000}, "target_modules must be at most 2000 characters long where it"),
        ({"target_modules": "a" * 2**20}, "target_modules must be at most 2000 characters long where it is a regular"),
        ({"target_modules": "[" * 50}, "target_modules must be suffixes or a valid regular expression"),
        ({"target_modules": "[[a]"}, "target_modules must be suffixes or a valid regular expression"),  # a warning
        ({"target_modules": "a{99999999999}"}, "target_modules must be suffixes or a valid regular expression"),
    ],
)  # fmt: skip
def test_refuses_the_immense_in_words_and_soon(values, message):
    sized = {"bottleneck_dim", "reduction_factor"} & values.keys()
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=f"^AdapterConfig: .*{message}") as error:
        AdapterConfig(**(values if sized else {"bottleneck_dim": 4, **values}))
    assert time.perf_counter() - start < 2
    assert len(str(error.value)) < 2100


def test_extreme_numbers_that_keep_the_rules_are_taken():
    made = AdapterConfig(reduction_factor=1e308, scaling=5e-324, dropout=5e-324)
    assert made.resolve_bottleneck_dim(768) == 1
    assert (made.scaling, made.dropout) == (5e-324, 5e-324)


def test_errors_are_value_errors():
    with pytest.raises(ValueError):
        AdapterConfig(bottleneck_dim=0)


@pytest.mark.parametrize(
    ("factor", "hidden_size", "expected"),
    [(16, 768, 48), (16.0, 100, 6), (2.5, 32, 12), (1, 32, 32), (100, 32, 1), (0.5, 32, 64)],
)
def test_reduction_factor_rounds_down_to_at_least_one(factor, hidden_size, expected):
    assert AdapterConfig(reduction_factor=factor).resolve_bottleneck_dim(hidden_size) == expected


def test_a_number_for_each_block():
    made = AdapterConfig(reduction_factor={"default": 16, 11: 2, "0": 4.0})
    assert [made.resolve_bottleneck_dim(64, block) for block in (0, 5, 11, None)] == [16, 4, 32, 4]
    assert dict(made.reduction_factor) == {0: 4.0, 11: 2.0, "default": 16.0}
    same = AdapterConfig(reduction_factor={0: 4, "11": 2, "default": 16})
    assert made == same
    assert hash(made) == hash(same)
    assert made != AdapterConfig(reduction_factor={0: 4, "11": 2, "default": 17})
    assert pickle.loads(pickle.dumps(made)) == made
    values = json.loads(json.dumps(made.to_dict()))
    assert values["reduction_factor"] == {"0": 4.0, "11": 2.0, "default": 16.0}
    assert AdapterConfig.from_dict(values) == made
    listed = AdapterConfig(bottleneck_dim={0: 3, 1: 5})
    assert listed.resolve_bottleneck_dim(64, 1) == 5
    for block, words in ((2, "block 2"), (None, "modules outside the blocks")):
        with pytest.raises(ConfigError, match=f"bottleneck_dim must hold a number for {words}, or 'default', got"):
            listed.resolve_bottleneck_dim(64, block)


def test_files_of_earlier_versions_have_the_same_keys():
    values = AdapterConfig(bottleneck_dim=4).to_dict()
    assert not set(values) & set(config.ADDED)
    assert set(values) | set(config.ADDED) == {field.name for field in dataclasses.fields(AdapterConfig)}
    gated = AdapterConfig(bottleneck_dim=4, gating=True)
    assert gated.to_dict() == values | {"gating": True}
    assert AdapterConfig.from_dict(gated.to_dict()) == gated


def test_dict_round_trip_through_json():
    made = AdapterConfig(
        reduction_factor=16, placement="parallel", scaling="learned", layers=(1, 3), target_modules=("wo",)
    )
    values = json.loads(json.dumps(made.to_dict()))
    assert AdapterConfig.from_dict(values) == made
    assert values["layers"] == [1, 3]


def test_from_dict_is_strict():
    with pytest.raises(ConfigError, match="AdapterConfig: unknown keys: alpha, rank"):
        AdapterConfig.from_dict({"bottleneck_dim": 4, "rank": 8, "alpha": 1})
    with pytest.raises(
        ConfigError, match=r"AdapterConfig: unknown keys: 'a\\x1b\[31m'; a newer adapterx may know them"
    ):
        AdapterConfig.from_dict({"bottleneck_dim": 4, "a\x1b[31m": 8})
    with pytest.raises(ConfigError, match=r"AdapterConfig: unknown keys: '0', .* and 99992 more"):
        AdapterConfig.from_dict(dict.fromkeys(map(str, range(10**5))))
    with pytest.raises(ConfigError, match="values must be a mapping, got list"):
        AdapterConfig.from_dict([])
    with pytest.raises(ConfigError, match="exactly one of"):
        AdapterConfig.from_dict({})
