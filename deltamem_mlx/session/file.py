"""Sessions on disk: a memory file, or a folder from which a conversation goes on exactly.

A folder holds ``session.json`` (what was said, what is in the context, checksums) and
``context-<n>.safetensors`` (mlx-lm's prompt cache, the memory in it). The first is written last and
names the second, so what is found is always whole, whenever writing was interrupted.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..adapters.loading import base_model_of, fingerprint
from ..files import read_json, write_atomically, write_text
from ..memory.actions import memories
from ..memory.file import read_memory, restore_memory, save_memory
from ..model.cache import MemoryCache
from ..model.layer_cache import DeltaMemCache
from ..text.messages import message_problems
from .context import kv_caches
from .conversation import Said

if TYPE_CHECKING:
    from .session import MemorySession

FORMAT = "deltamem_mlx.session"
VERSION = 1
SESSION = "session.json"
MEMORY_SUFFIX = ".safetensors"

_LISTS = ("opening", "messages", "visible", "pending")
_SETTINGS = ("max_context", "max_kv_size", "template_kwargs")


def save_session(session: "MemorySession", path: Path, note: str = "") -> None:
    """Write a memory file where ``path`` ends in ``.safetensors``, else a session folder."""
    if path.suffix.lower() == MEMORY_SUFFIX:
        save_memory(path, session.cache, session.model, note=note)
    else:
        _save_folder(session, path, note)


def restore_session(
    cls: type["MemorySession"],
    path: Path,
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    settings: Mapping[str, object],
) -> "MemorySession":
    """The session at ``path``, of either kind."""
    if path.is_dir():
        if settings:
            raise ValueError(
                f"{path} is the folder of a session, which has settings of its own: leave out "
                f"{', '.join(settings)}."
            )
        return _restore_folder(cls, path, model, tokenizer)
    memory = read_memory(path)
    cache = make_prompt_cache(model, settings.get("max_kv_size"))
    if memory.tokens_written and len(memory.tokens_written) != 1:
        raise ValueError(
            f"{path} holds the memories of {len(memory.tokens_written)} conversations, and a "
            "session has one. Load it with dm.load_memory."
        )
    restore_memory(path, memory, cache, model)
    return cls(model, tokenizer, **settings, prompt_cache=cache)


def _save_folder(session: "MemorySession", folder: Path, note: str) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_savable(session, folder)
    context = folder / f"context-{os.urandom(8).hex()}{MEMORY_SUFFIX}"
    write_atomically(context, lambda p: save_prompt_cache(str(p), session.cache), mode=0o600)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "note": note,
        "adapter": fingerprint(session.model),
        "base_model": base_model_of(session.model),
        "context": {"file": context.name, "sha256": _sha256(context)},
        "tokens": session._talk.context.tokens,
        **_text_and_settings(session),
    }
    values["checksum"] = _checksum(values)
    write_text(folder / SESSION, json.dumps(values, ensure_ascii=False), mode=0o600)
    for old in folder.glob(f"context-*{MEMORY_SUFFIX}"):
        if old.name != context.name:
            old.unlink(missing_ok=True)


def _text_and_settings(session: "MemorySession") -> dict[str, object]:
    """What a session is beside its prompt cache."""
    settings = {name: getattr(session, name) for name in _SETTINGS}
    return {"opening": session._opening, **session._talk.said._asdict(), **settings}


def _check_savable(session: "MemorySession", folder: Path) -> None:
    others = [p.name for p in folder.iterdir() if not p.name.startswith((SESSION, "context-", "."))]
    if others and not (folder / SESSION).exists():
        raise ValueError(
            f"{folder} holds other files ({', '.join(sorted(others)[:5])}). Give an empty or new "
            f"folder, or a file name ending in {MEMORY_SUFFIX} for the memory alone."
        )
    for kv in kv_caches(session.cache):
        if not hasattr(mlx_cache, type(kv).__name__):
            raise ValueError(
                f"{folder}: mlx-lm cannot read the context of this model back "
                f"({type(kv).__name__}). Give a file name ending in {MEMORY_SUFFIX}, for the "
                "memory alone."
            )
    try:
        json.dumps(_text_and_settings(session))
    except (TypeError, ValueError) as error:
        raise ValueError(f"The session's messages or settings are not JSON: {error}") from error
    states = {i: m.matrix for i, m in memories(session.cache).items() if m.matrix is not None}
    bad = [str(i) for i, state in states.items() if not mx.isfinite(state).all().item()]
    if bad:
        raise ValueError(f"{folder}: the states of layers {', '.join(bad)} are not finite.")


def _restore_folder(
    cls: type["MemorySession"], folder: Path, model: nn.Module, tokenizer: TokenizerWrapper
) -> "MemorySession":
    values = _read_session(folder)
    if values["adapter"] != fingerprint(model):
        name = values["base_model"].get("name") or "an unnamed model"
        raise ValueError(
            f"{folder} was saved under another adapter (for {name}). Load the adapter and model "
            "it was saved with."
        )
    session = cls(model, tokenizer, **{name: values[name] for name in _SETTINGS})
    session._opening = values["opening"]
    session._talk.context.cache = _read_context(folder, values, session.cache)
    session._talk.context.tokens = values["tokens"]
    session._talk.said = Said(*(values[name] for name in Said._fields))
    return session


def _read_session(folder: Path) -> dict:
    """The verified contents of ``session.json``."""
    path = folder / SESSION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no saved session: it has no {SESSION}.")
    try:
        values = read_json(path)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if values.get("format") != FORMAT:
        raise ValueError(f"{path} is JSON, but not a session saved by this package.")
    if values.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {values.get('version')}, expected {VERSION}. Use the "
            "version of deltamem-mlx that wrote it."
        )
    claimed = values.pop("checksum", None)
    if claimed != _checksum(values):
        raise ValueError(f"{path} was altered or damaged: its checksum does not match.")
    problems = list(_problems(values))
    if problems:
        raise ValueError(f"{path} is damaged:\n  " + "\n  ".join(problems))
    return values


def _problems(values: dict[str, object]) -> Iterator[str]:
    kinds = {
        **dict.fromkeys(_LISTS, list),
        **{"tokens": list, "turns": int, "adapter": str, "base_model": dict, "context": dict},
        **{"max_context": int | None, "max_kv_size": int | None, "template_kwargs": dict},
    }
    wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name, ...), kind)]
    yield from (f"{name}: missing, or of the wrong type" for name in wrong)
    if wrong:
        return
    for name in _LISTS:
        messages = values[name]
        found = message_problems(messages) if messages else []
        yield from (f"{name}{p.field.removeprefix('messages')}: {p.what}" for p in found)
    if not all(type(token) is int for token in values["tokens"]):
        yield "tokens: not all are integers"
    name = values["context"].get("file")
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(MEMORY_SUFFIX):
        yield "context.file: not the name of a file in the folder"


def _read_context(folder: Path, values: dict, fresh: list) -> list:
    """The prompt cache of a session, if it is one of this model."""
    path = folder / values["context"]["file"]
    if not path.is_file():
        raise ValueError(f"{folder} is incomplete: {path.name} is missing.")
    if _sha256(path) != values["context"].get("sha256"):
        raise ValueError(f"{path} was altered or damaged: its checksum does not match.")
    try:
        cache = load_prompt_cache(str(path))
        mx.eval([c.state for c in cache])
        fits = [_kind(c) for c in cache] == [_kind(c) for c in fresh]
        length = len(values["tokens"])
        fits = fits and all(_holds(kv, length) for kv in kv_caches(cache))
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a prompt cache: {error!r}") from error
    if not fits:
        raise ValueError(f"{path} is no prompt cache of this model and conversation.")
    return cache


def _holds(kv: object, length: int) -> bool:
    """Whether a KV cache holds as many tokens as were fed. Other caches do not tell."""
    if not hasattr(kv, "keys"):
        return True
    if kv.keys is None and kv.values is None:
        return kv.offset == length == 0
    keys, values = (dict(tree_flatten(x)).values() for x in (kv.keys, kv.values))
    if not keys or len(keys) != len(values):
        return False
    room = min(x.shape[2] for x in (*keys, *values))
    return kv.offset == length and min(length, getattr(kv, "max_size", length)) <= room


def _kind(cache: object) -> object:
    """What two caches of one layer have in common, whatever they hold."""
    if isinstance(cache, DeltaMemCache):
        return _kind(cache.caches[0]), *map(_kind_of_memory, cache.memories)
    if hasattr(cache, "caches"):
        return [_kind(c) for c in cache.caches]
    # A KV cache may have been quantized on the way.
    return type(cache).__name__.removeprefix("Quantized")


def _kind_of_memory(memory: MemoryCache) -> tuple[int, int, int, str]:
    matrix = memory.matrix
    expected = (1, memory.heads, memory.rank, memory.rank)
    if matrix is not None and (matrix.shape != expected or matrix.dtype != mx.float32):
        raise ValueError(f"layer {memory.layer}: a state of shape {list(matrix.shape)}")
    return memory.layer, memory.heads, memory.rank, memory.granularity


def _checksum(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
