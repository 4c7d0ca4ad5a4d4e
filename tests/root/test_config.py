"""Settings are validated, removed switches refused, unknown keys warned of."""

import json
from pathlib import Path

import pytest
from golden import GOLDEN

import deltamem_mlx as dm
from deltamem_mlx.config import REMOVED_SWITCHES


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("*/adapter")), ids=lambda p: p.parent.name)
def test_configs_of_the_authors_load(folder: Path) -> None:
    config = dm.DeltaMemConfig.from_pretrained(folder)
    written = json.loads((folder / "delta_mem_config.json").read_text())
    for key, value in config.to_dict().items():
        assert value == written[key], key
    assert dm.DeltaMemConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("switch", sorted(REMOVED_SWITCHES))
def test_removed_switches(switch: str) -> None:
    dm.DeltaMemConfig.from_dict({switch: REMOVED_SWITCHES[switch]})
    with pytest.raises(ValueError, match=f"removed experiments:\n  {switch}: 'on', only"):
        dm.DeltaMemConfig.from_dict({switch: "on"})


def test_unknown_keys_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="unknown keys of the δ-mem config: brand_new, other"):
        config = dm.DeltaMemConfig.from_dict({"other": 1, "brand_new": 2, "rank": 4})
    assert config.rank == 4


@pytest.mark.parametrize(
    "key", ["state_backend", "memory_mode", "a_mode", "Write_BACKEND", "_mode"]
)
def test_unknown_keys_that_choose_how_to_compute_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"does not know:\n  '{key}': 'other'") as error:
        dm.DeltaMemConfig.from_dict({key: "other", "brand_new": 1})
    assert "Use a newer deltamem-mlx" in str(error.value)


@pytest.mark.parametrize("key", ["mode", "backend", "modes", "backend_name"])
def test_other_unknown_keys_are_only_warned_of(key: str) -> None:
    with pytest.warns(UserWarning, match=key):
        dm.DeltaMemConfig.from_dict({key: "other"})


@pytest.mark.parametrize("name", sorted(dm.DeltaMemConfig().to_dict()))
@pytest.mark.parametrize("value", ["x" * 5000, 10**4000, [1] * 5000, {"a": 1}, None, 1e308])
def test_a_bad_value_is_cut_to_a_line(name: str, value: object) -> None:
    try:
        dm.DeltaMemConfig.from_dict({name: value})
    except (TypeError, ValueError) as error:
        assert max(map(len, str(error).splitlines())) < 300 and name in str(error)


@pytest.mark.parametrize("name", ["rank", "num_state_heads"])
def test_states_that_no_machine_holds_are_refused(name: str) -> None:
    dm.DeltaMemConfig(**{name: 4096})
    with pytest.raises(ValueError, match=f"{name}: 4097 must be at most 4,096"):
        dm.DeltaMemConfig(**{name: 4097})


@pytest.mark.parametrize(
    ("values", "error", "named"),
    [
        ({"rank": 0, "alpha": float("nan")}, ValueError, ["rank: 0", "alpha: nan"]),
        ({"rank": "8"}, TypeError, ["rank: '8' is not of type int"]),
        ({"rank": 8.0}, TypeError, ["rank: 8.0"]),
        ({"normalize_qk": 1}, TypeError, ["normalize_qk: 1"]),
        ({"delta_heads": "qo"}, TypeError, ["delta_heads: 'qo' is not a list"]),
        ({"delta_heads": ["q", "x"]}, ValueError, ["'x' is none of q, k, v, o"]),
        ({"delta_heads": []}, ValueError, ["delta_heads: empty"]),
        ({"target_layers": [-1]}, ValueError, ["negative index"]),
        ({"state_update_mode": "fast"}, ValueError, ["standard, lambda_outside, no_lambda"]),
        ({"memory_write_granularity": "word"}, ValueError, ["message_mean"]),
        ({"output_init": "ones", "num_state_heads": 0}, ValueError, ["output_init", "num_state"]),
        ({"beta_bias_init": float("inf")}, ValueError, ["beta_bias_init: inf must be finite"]),
    ],
)
def test_bad_values_are_all_named(values: dict, error: type[Exception], named: list[str]) -> None:
    with pytest.raises(error) as raised:
        dm.DeltaMemConfig.from_dict(values)
    for part in named:
        assert part in str(raised.value)


def test_heads_are_put_in_order() -> None:
    config = dm.DeltaMemConfig(delta_heads=("o", "q"), target_layers=[3, 1, 1])
    assert config.delta_heads == ("q", "o") and config.target_layers == (1, 3)


@pytest.mark.parametrize("text", ["{", "[]", "null", b"\xff\xfe"])
def test_damaged_config_files(tmp_path: Path, text: str | bytes) -> None:
    file = tmp_path / "delta_mem_config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"delta_mem_config\.json"):
        dm.DeltaMemConfig.from_pretrained(tmp_path)


def test_the_config_of_a_lora_is_none(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "lora", "rank": 8}')
    with pytest.raises(ValueError, match="of type 'lora', expected 'delta_mem'"):
        dm.DeltaMemConfig.from_pretrained(tmp_path)


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither delta_mem_config\.json"):
        dm.DeltaMemConfig.from_pretrained(tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "delta_mem_config.json").write_text('{"rank": 3}')
    assert dm.DeltaMemConfig.from_pretrained("~").rank == 3
