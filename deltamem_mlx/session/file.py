"""Sessions on disk: the folder from which a conversation goes on exactly.

A folder holds ``session.json`` (what was said, what is in the context, checksums),
``context-<n>.safetensors`` (mlx-lm's prompt cache, the memory in it) and ``past-<n>.safetensors``
(the states before its last turns). The first is written last and names the others, so what is
found is always whole, whenever writing was interrupted.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from ..files import Witness, checked_file, read_json, write_atomically, write_text
from ..files.reading import MOST_JSON_BYTES
from ..files.writing import remove_leftovers
from ..memory.actions import PromptCache, memories
from ..problems import (
    MAPPING,
    Field,
    first_few,
    list_of,
    misfits,
    optional,
    text_field,
    whole_number,
)
from ..text.messages import Message, message_problems
from .cache_check import holds, kind
from .context import kv_caches
from .past import Before, Said
from .past_file import ever_said, save_states, turn_problems, turns_as_json, turns_of

FORMAT = "deltamem_mlx.session"
VERSION = 1
SESSION = "session.json"
SUFFIX = ".safetensors"
_OURS = re.compile(r"(context|past)-[0-9a-f]{16}\.safetensors")
_LEFTOVER = re.compile(r"\.((?:context|past)-[0-9a-f]{16})-\d+-[0-9a-f]{8}\.safetensors")
_LISTS = ("opening", "messages", "visible", "pending")
_MESSAGES = Field(lambda v: isinstance(v, list), "a list of messages")
_FILE = Field(
    lambda v: (
        isinstance(v, dict) and isinstance(v.get("file"), str) and bool(_OURS.fullmatch(v["file"]))
    ),
    "the name of a file in the folder, and its checksum",
)
_TOKENS = whole_number(1, 2**31 - 1)
_SCHEMA = {
    **dict.fromkeys(_LISTS, _MESSAGES),
    "tokens": list_of(whole_number(), 1 << 26),
    "turns": whole_number(),
    "adapter": text_field(256),
    "base_model": MAPPING,
    "context": _FILE,
    "max_context": optional(_TOKENS),
    "max_kv_size": optional(_TOKENS),
    "template_kwargs": MAPPING,
}


class SessionSettings(TypedDict):
    """Arguments of a session that its folder keeps."""

    max_context: int | None
    max_kv_size: int | None
    template_kwargs: dict[str, Any]


@dataclass(frozen=True)
class SavedSession:
    """A session as its folder holds it.

    Attributes:
        opening (list[Message]): What it was begun with.
        said (Said): What has been said.
        cache (PromptCache): Context and memory.
        tokens (list[int]): The tokens in the context.
        settings (SessionSettings): Of the session.
        context (object): Which context ``cache`` is, for marks of ``past``.
        past (list[Before]): The turns that can be gone back over.
        adapter, base_model: Fingerprint of the adapter, and what is known of the model.
    """

    opening: list[Message]
    said: Said
    cache: PromptCache
    tokens: list[int]
    settings: SessionSettings
    adapter: str
    base_model: dict[str, object]
    context: object = None
    past: list[Before] = field(default_factory=list)


def save_folder(folder: Path, saved: SavedSession, witness: Witness, note: str = "") -> None:
    """Write a session folder; one that is there is replaced.

    Raises:
        ValueError: If the folder holds other things, or the session is not savable.
        OSError: If it cannot be written, or another program has changed it meanwhile.
    """
    old = _own_folder(folder)
    text = _text_and_settings(saved)
    _check_savable(folder, saved, text)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    witness.check(folder / SESSION)
    for stem in {found[1] for p in folder.iterdir() if (found := _LEFTOVER.fullmatch(p.name))}:
        remove_leftovers(folder / f"{stem}{SUFFIX}")  # no other write has its name again
    stamp = os.urandom(8).hex()
    context, past = (folder / f"{kind}-{stamp}{SUFFIX}" for kind in ("context", "past"))
    files = [context]
    write_atomically(context, lambda p: save_prompt_cache(str(p), saved.cache), mode=0o600)
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "note": note,
        "adapter": saved.adapter,
        "base_model": saved.base_model,
        "context": {"file": context.name, "sha256": _sha256(context)},
        "tokens": saved.tokens,
        **text,
    }
    try:
        if saved.past:
            files.append(past)
            save_states(past, saved.past)
            said = [*saved.said.messages, *saved.said.pending]
            turns, dropped = turns_as_json(saved.past, said, saved.context)
            values["past"] = {"file": past.name, "sha256": _sha256(past), "turns": turns}
            values["past"] |= {"dropped": dropped} if dropped else {}
        values["checksum"] = _checksum(values)
        write_text(folder / SESSION, _as_json(folder, values), 0o600, witness)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    for name in old - {file.name for file in files}:
        (folder / name).unlink(missing_ok=True)


def _as_json(folder: Path, values: Mapping[str, object]) -> str:
    """The text of ``session.json``; raises ValueError if that could not be read again."""
    said = json.dumps(values, ensure_ascii=False)
    if (size := len(said.encode(errors="surrogatepass"))) > MOST_JSON_BYTES:
        raise ValueError(
            f"{folder}: what was said would take {size:,} bytes in {SESSION}, and at most "
            f"{MOST_JSON_BYTES:,} can be read again: nothing was written. Give a file name ending "
            f"in {SUFFIX}, for the memory alone."
        )
    return said


def _own_folder(folder: Path) -> set[str]:
    """The files of sessions in a folder, which the next one replaces; also those of killed runs.

    Raises:
        ValueError: If it holds things of others.
    """
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file. Give a folder, or a name ending in {SUFFIX}.")
    hint = f"Give an empty or new folder, or a file name ending in {SUFFIX} for the memory alone."
    if not (folder / SESSION).exists():
        names = [p.name for p in folder.iterdir()]
        others = [n for n in names if not n.startswith(".") and not _OURS.fullmatch(n)]
        if others:
            named = ", ".join(first_few(sorted(others)))
            raise ValueError(f"{folder} holds other files ({named}). {hint}")
        return {name for name in names if _OURS.fullmatch(name)}
    try:
        ours = read_json(folder / SESSION).get("format") == FORMAT
    except (ValueError, OSError):
        ours = False
    if not ours:
        raise ValueError(f"{folder} holds a {SESSION} that is not of this package. {hint}")
    return {p.name for p in folder.iterdir() if _OURS.fullmatch(p.name)}


def _text_and_settings(saved: SavedSession) -> dict[str, object]:
    """What a session is beside its prompt cache."""
    said = saved.said._asdict()
    for name in ("filed", "at", "source"):  # of a memory file: a folder has all that it needs
        del said[name]
    return {"opening": saved.opening, **said, **saved.settings}


def _check_savable(folder: Path, saved: SavedSession, text: dict[str, object]) -> None:
    try:
        json.dumps(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The session's messages or settings are not JSON: {error}") from error
    for kv in kv_caches(saved.cache):
        if not hasattr(mlx_cache, type(kv).__name__):
            raise ValueError(
                f"{folder}: mlx-lm cannot read the context of this model back "
                f"({type(kv).__name__}). Give a file name ending in {SUFFIX}, for the memory alone."
            )
    states = {i: m.matrix for i, m in memories(saved.cache).items() if m.matrix is not None}
    bad = [str(i) for i, state in states.items() if not mx.isfinite(state).all().item()]
    if bad:
        raise ValueError(f"{folder}: the states of layers {', '.join(bad)} are not finite.")


def read_folder(
    folder: Path, is_adapter: Callable[[str], bool], make_cache: Callable[[int | None], PromptCache]
) -> SavedSession:
    """The session in ``folder``.

    Args:
        folder (Path): The folder.
        is_adapter (Callable): Whether a fingerprint is of the adapter that is loaded.
        make_cache (Callable): Makes an empty prompt cache of the model, of this ``max_kv_size``.

    Raises:
        FileNotFoundError: If there is no session.
        ValueError: If it is damaged, altered, or was saved under another adapter.
    """
    values = read_session(folder)
    if not is_adapter(values["adapter"]):
        name = values["base_model"].get("name") or "an unnamed model"
        raise ValueError(
            f"{folder} was saved under another adapter (for {name}). Load the adapter and model "
            "it was saved with."
        )
    fresh = make_cache(values["max_kv_size"])
    said = Said(*(values[name] for name in ("messages", "visible", "pending", "turns")))
    context, past = object(), []
    if "past" in values:
        file = verified(folder, values["past"])
        shapes = {i: (1, m.heads, m.rank, m.rank) for i, m in memories(fresh).items()}
        past = turns_of(values["past"]["turns"], file, ever_said(values), context, shapes)
    settings: SessionSettings = {
        "max_context": values["max_context"],
        "max_kv_size": values["max_kv_size"],
        "template_kwargs": values["template_kwargs"],
    }
    return SavedSession(
        opening=values["opening"],
        said=said,
        cache=_read_context(folder, values, fresh),
        tokens=values["tokens"],
        settings=settings,
        adapter=values["adapter"],
        base_model=values["base_model"],
        context=context,
        past=past,
    )


def read_session(folder: Path) -> dict[str, Any]:
    """The verified contents of ``session.json``: types and ranges are those of its schema.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged or altered.
    """
    path = folder / SESSION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no saved session: it has no {SESSION}.")
    values: dict[str, Any] = read_json(path)
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
    problems = misfits(values, _SCHEMA) or _message_problems(values) or _past_problems(values)
    if problems:
        raise ValueError(f"{path} is damaged: {'; '.join(first_few(problems))}.")
    return values


def _message_problems(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}{problem.field.removeprefix('messages')}: {problem.what}"
        for name in _LISTS
        if values[name]
        for problem in message_problems(values[name])
    ]


def _past_problems(values: Mapping[str, Any]) -> list[str]:
    if "past" not in values:
        return []
    if not _FILE.fits(values["past"]):
        return [f"past: expected {_FILE.expected}"]
    return turn_problems(values)


def verified(folder: Path, part: Mapping[str, Any]) -> Path:
    """A file of a saved session; ValueError if it is missing or is not what was saved."""
    path: Path = folder / part["file"]
    if not path.is_file():
        raise ValueError(f"{folder} is incomplete: {path.name} is missing.")
    if _sha256(checked_file(path)) != part.get("sha256"):
        raise ValueError(f"{path} was altered or damaged: its checksum does not match.")
    return path


def _read_context(folder: Path, values: Mapping[str, Any], fresh: PromptCache) -> PromptCache:
    """The prompt cache of a session, if it is one of this model."""
    path = verified(folder, values["context"])
    try:
        cache: PromptCache = load_prompt_cache(str(path))
        mx.eval([c.state for c in cache])
        fits = [kind(c) for c in cache] == [kind(c) for c in fresh]
        length = len(values["tokens"])
        fits = fits and all(holds(kv, length) for kv in kv_caches(cache))
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a prompt cache: {error!r:.300}") from error
    if not fits:
        raise ValueError(f"{path} is no prompt cache of this model and conversation.")
    return cache


def _checksum(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
