"""Which numbers of processes can share a model's heads."""

import pytest

from deltamem_mlx.adapters.spread_loading import check_heads

SMOLLM2 = {"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3}
QWEN3_MOE = {"model_type": "qwen3_moe", "num_attention_heads": 32, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (SMOLLM2, {1, 3, 9}),
        (QWEN3_MOE, {1, 2, 4, 8, 16, 32}),
        ({"text_config": {"num_attention_heads": 6, "num_key_value_heads": 1}}, {1, 2, 3, 6}),
        ({"num_attention_heads": 4, "num_key_value_heads": 3, "kv_lora_rank": 8}, {1, 2, 4}),
        ({"num_attention_heads": 2}, {1, 2}),
        ({}, set(range(1, 40))),
        ({"num_attention_heads": "many"}, set(range(1, 40))),
    ],
)
def test_heads_are_shared_evenly_or_the_model_is_refused(config: dict, sizes: set[int]) -> None:
    def fits(size: int) -> bool:
        try:
            check_heads("m", config, size)
        except ValueError:
            return False
        return True

    assert {size for size in range(1, 40) if fits(size)} == sizes


def test_a_refusal_names_the_heads_and_what_would_do() -> None:
    with pytest.raises(ValueError, match="2 processes cannot share the heads of smol evenly") as no:
        check_heads("smol", SMOLLM2, 2)
    assert "9 for queries and 3 for keys and values. Start 3 processes." in str(no.value)
    assert "mlx-lm has none for llama" in str(no.value)
    with pytest.raises(ValueError, match=r"Start 2 or 4 processes\. Or give --pipeline"):
        check_heads("moe", QWEN3_MOE, 3)
    with pytest.raises(ValueError, match="Start no number of processes"):
        check_heads("odd", SMOLLM2 | {"num_key_value_heads": 2}, 3)
