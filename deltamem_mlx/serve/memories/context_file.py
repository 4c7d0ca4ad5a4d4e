"""A context as its file holds it: mlx-lm's prompt cache, and what was said in it.

The file is what ``save_prompt_cache`` writes. In its metadata stand the messages that are in sight,
which model and which turn of a memory it belongs to, and a checksum of all the rest.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from ...files import checked_file
from ...memory.contents import MemoryFile
from ...memory.saving import put_memory
from ...problems import FLAG, MAPPING, Field, list_of, misfits, whole_number
from ...session.cache_check import holds, kind
from ...session.context import Mark, kv_caches
from ...session.conversation import Conversation
from ...session.past import Before, Past, Said
from ...text.messages import message_problems
from ..provider import ServedPair

_FORMAT, _VERSION = "deltamem_mlx.context", 1
_MOST_HEADER = 64 << 20
_NO_CHECKSUM = "0" * 64
_CHECKSUM = re.compile(rb'\.checksum":"([0-9a-f]{64})"')
_COUNT = whole_number()
_SCHEMA = {
    "version": Field(lambda v: v == _VERSION, f"{_VERSION}"),
    "tokens": list_of(_COUNT, 1 << 26),
    "visible": Field(lambda v: isinstance(v, list), "a list of messages"),
    "template_kwargs": MAPPING,
    "turns": _COUNT,
    "places": Field(
        lambda v: isinstance(v, list) and all(isinstance(p, list) and len(p) == 4 for p in v),
        "a list of places",
    ),
}
_PLACE = {"length": _COUNT, "visible": _COUNT, "turns": _COUNT, "write": FLAG}


class Misfit(ValueError):
    """A context is whole, and belongs to another model, or to another turn of its memory."""


class ContextTerms(NamedTuple):
    """What a context that is read again is to be.

    Attributes:
        max_context (int): Tokens in it at most.
        undo_turns (int): Turns that can be taken back.
    """

    max_context: int
    undo_turns: int


def can_be_read_back(model: nn.Module) -> bool:
    """Whether mlx-lm knows the parts of this model's prompt cache by their names."""
    return all(hasattr(mlx_cache, type(kv).__name__) for kv in kv_caches(make_prompt_cache(model)))


def identity(pair: ServedPair) -> str:
    """Which model, adapter and template a context was made with: SHA-256, in hex.

    Of each of the model's arrays its name, shape and type, and its first numbers, so that other
    weights of the same name, or the same quantized otherwise, are another model.
    """
    found = hashlib.sha256(pair.adapter.encode())
    flat = dict(tree_flatten(pair.model.parameters()))
    arrays = {name: x for name, x in flat.items() if isinstance(x, mx.array)}
    heads = [x.reshape(-1)[:16].astype(mx.float32) for x in arrays.values()]
    mx.eval(heads)
    for (name, array), head in zip(arrays.items(), heads, strict=True):
        found.update(f"{name} {array.shape} {array.dtype} {head.tolist()}".encode())
    template = getattr(pair.tokenizer, "chat_template", None)
    found.update(json.dumps([pair.described, str(template)], sort_keys=True).encode())
    return found.hexdigest()


def turn_of(saved: MemoryFile) -> str:
    """Which turn of which memory this is: SHA-256 over what its file says, in hex."""
    told = saved.told.as_json() if saved.told is not None else None
    about = [saved.adapter, saved.tokens_written, saved.created, told]
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for i in sorted(saved.states):
        found.update(f"{i}".encode() + saved.states[i].tobytes())
    return found.hexdigest()


def write_context(path: Path, talk: Conversation, saved: MemoryFile, model: str) -> None:
    """Write a context to a file that nobody else knows yet.

    Args:
        path (Path): The file.
        talk (Conversation): With its context.
        saved (MemoryFile): The memory after its last turn.
        model (str): `identity` of the model.

    Raises:
        OSError, RuntimeError: If it cannot be written.
        TypeError, ValueError: If it is not what a file can hold.
    """
    values = {
        "version": _VERSION,
        "model": model,
        "turn": turn_of(saved),
        "tokens": talk.context.tokens,
        "visible": talk.said.visible,
        "template_kwargs": dict(talk.rendered_with),
        "turns": talk.said.turns,
        "places": _places(talk),
    }
    about = {"format": _FORMAT, "about": json.dumps(values), "checksum": _NO_CHECKSUM}
    save_prompt_cache(str(path), talk.context.cache, about)
    checksum, place, _ = _checksum(path)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(checksum.encode())


def _places(talk: Conversation) -> list[tuple[int, int, int, bool]]:
    """The points before the last turns, as far back as they lie in this context."""
    found = []
    for before in reversed(list(talk.past)):
        seen = len(before.said.visible)
        if before.mark.context is not talk.context.which:
            break
        found.append((before.mark.length, seen, before.said.turns, before.write))
    return found[::-1]


def read_context(
    path: Path, pair: ServedPair, saved: MemoryFile, model: str, terms: ContextTerms
) -> Conversation:
    """The conversation of a memory with its context.

    Args:
        path (Path): The file.
        pair (ServedPair): The model.
        saved (MemoryFile): The memory as it is.
        model (str): `identity` of the model.
        terms (ContextTerms): What it is to be.

    Raises:
        FileNotFoundError: If there is none.
        Misfit: If it belongs to something else.
        ValueError, OSError: If it is damaged, or cannot be read.
    """
    path = checked_file(path)
    found, _, metadata = _checksum(path)
    if metadata.get("format") != _FORMAT or metadata.get("checksum") != found:
        raise ValueError("it is none, or its checksum does not match")
    values = json.loads(metadata["about"])
    if (values.get("model"), values.get("turn")) != (model, turn_of(saved)):
        raise Misfit("it belongs to another model or turn")
    if problems := misfits(values, _SCHEMA) or _problems(values):
        raise ValueError(problems[0])
    cache = load_prompt_cache(str(path))
    mx.eval([c.state for c in cache])
    fresh, length = make_prompt_cache(pair.model), len(values["tokens"])
    if [kind(c) for c in cache] != [kind(c) for c in fresh] or not all(
        holds(kv, length) for kv in kv_caches(cache)
    ):
        raise ValueError("it is no prompt cache of this model and conversation")
    put_memory(cache, saved)
    mx.eval([c.state for c in cache])
    return _conversation(pair, cache, values, terms)


def _problems(values: Mapping[str, Any]) -> list[str]:
    length, visible = len(values["tokens"]), len(values["visible"])
    found = [f"{p.field}: {p.what}" for p in message_problems(values["visible"])] if visible else []
    for place in values["places"]:
        named = dict(zip(_PLACE, place, strict=True))
        found += misfits(named, _PLACE)
        if not found and (named["length"] > length or named["visible"] > visible):
            found.append("a place beyond the context")
    return found


def _conversation(
    pair: ServedPair, cache: list, values: Mapping[str, Any], terms: ContextTerms
) -> Conversation:
    talk = Conversation(
        pair.model,
        pair.tokenizer,
        make_prompt_cache(pair.model),
        [],
        max_context=terms.max_context,
        template_kwargs=values["template_kwargs"],
        past=Past(terms.undo_turns),
    )
    visible, which = values["visible"], object()
    talk.context.take(cache, values["tokens"], which)
    talk.said = Said([], visible, [], values["turns"])
    for length, seen, turns, write in values["places"]:
        said = Said([], visible[:seen], [], turns)
        talk.past.add(Before(Mark(which, length, {}), said, [], answered=True, write=write))
    return talk


def _checksum(path: Path) -> tuple[str, int, dict[str, str]]:
    """The checksum of a file, where it stands in it, and the metadata that mlx-lm was passed.

    Of all bytes but the checksum's own.

    Raises:
        ValueError: If it is no such file.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= _MOST_HEADER:
            raise ValueError("it is no safetensors file")
        header = file.read(size)
        place = _CHECKSUM.search(header)
        if len(header) < size or place is None:
            raise ValueError("it has no checksum")
        digest = hashlib.sha256(header[: place.start(1)] + header[place.end(1) :])
        while piece := file.read(1 << 20):
            digest.update(piece)
    values = json.loads(header)
    metadata = values.get("__metadata__") if isinstance(values, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("it has no metadata")
    # Which place mlx-lm gives the metadata that it is passed is its own affair.
    names = {name.rpartition(".")[2]: value for name, value in metadata.items()}
    return digest.hexdigest(), 8 + place.start(1), names
