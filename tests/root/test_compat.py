"""The seams with mlx-lm are where `compat` says; each test names what moved."""

import inspect
import sys
from types import FrameType

import mlx.core as mx
import mlx_lm.lora
import mlx_lm.server
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models.cache import KVCache, load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.tuner import utils as tuner_utils
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

import deltamem_mlx as dm
from deltamem_mlx import compat
from deltamem_mlx.hub import MODEL_FILES


def test_all_caches_have_the_private_base() -> None:
    assert issubclass(KVCache, compat.BaseCache), "mlx-lm's caches have another base class"
    assert hasattr(compat.BaseCache, "from_state"), "mlx-lm makes saved caches in another way"


def test_models_are_fetched_with_all_files_that_mlx_lm_fetches() -> None:
    assert set(DEFAULT_ALLOW_PATTERNS) <= set(MODEL_FILES)


def test_saved_caches_are_found_by_name_in_its_module(tmp_path: object) -> None:
    @compat.make_savable
    class OurOwn(KVCache):
        pass

    try:
        own = OurOwn()
        own.update_and_fetch(mx.ones((1, 1, 2, 4)), mx.ones((1, 1, 2, 4)))
        save_prompt_cache(f"{tmp_path}/c.safetensors", [own])
        (found,) = load_prompt_cache(f"{tmp_path}/c.safetensors")
        assert type(found) is OurOwn, "load_prompt_cache looks cache classes up elsewhere now"
    finally:
        del mlx_cache.OurOwn


def test_make_prompt_cache_asks_the_model_and_keeps_the_size_to_itself() -> None:
    class Model:
        def make_cache(self) -> list:
            frame = sys._getframe(1)
            assert isinstance(frame, FrameType)
            return [compat.wanted_max_kv_size(frame)]

    said = "make_prompt_cache no longer calls make_cache() itself with max_kv_size at hand"
    assert make_prompt_cache(Model(), 77) == [77], said
    assert Model().make_cache() == [None]


def test_adapters_are_loaded_by_a_function_that_can_be_replaced() -> None:
    original = tuner_utils.load_adapters
    assert list(inspect.signature(original).parameters) == ["model", "adapter_path"]
    assert mlx_lm.lora.load_adapters is original, "mlx_lm.lora takes adapters from elsewhere"
    dm.register()
    try:
        assert tuner_utils.load_adapters is not original
        assert mlx_lm.lora.load_adapters is tuner_utils.load_adapters
        once = tuner_utils.load_adapters
        dm.register()
        assert compat.original_load_adapters() is original, "registered twice, wrapped twice"
        assert once is not None
    finally:
        dm.unregister()
    assert tuner_utils.load_adapters is mlx_lm.lora.load_adapters is original


def test_the_server_makes_samplers_by_functions_of_its_module() -> None:
    for name in ("_make_sampler", "_make_logits_processors", "_format_top_logprobs"):
        assert callable(getattr(mlx_lm.server, name, None)), f"mlx_lm.server has no {name} now"
    parameters = inspect.signature(mlx_lm.server._make_sampler).parameters
    assert list(parameters) == ["args", "tokenizer"], "_make_sampler takes other arguments now"
