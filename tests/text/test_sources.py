"""Which files are meant by paths, and what texts and other programs' exports tell."""

import json
import os
from pathlib import Path

import pytest

from deltamem_mlx.text.files import read_messages
from deltamem_mlx.text.sources import LONGEST, in_parts, read_sources


def told(path: Path) -> list[tuple[object, object]]:
    return [(message["role"], message["content"]) for message in read_messages(path)]


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def node(key: str, parent: str | None, role: str | None, *parts: object) -> dict:
    message = {"author": {"role": role}, "content": {"content_type": "text", "parts": [*parts]}}
    return {"id": key, "parent": parent, "message": message if role else None}


def test_of_a_conversation_exported_by_chatgpt_the_way_to_its_end_is_told(tmp_path: Path) -> None:
    nodes = [
        node("root", None, None),
        node("s", "root", "system", ""),
        node("u", "s", "user", "My dog is Rex."),
        node("old", "u", "assistant", "A cat?"),
        node("new", "u", "assistant", "Hello, ", {"asset_pointer": "file"}, "Rex!"),
        node("tool", "new", "tool", "42"),
        node("last", "tool", "user", "Bye."),
    ]
    talk = {"title": "Dogs", "mapping": {n["id"]: n for n in nodes}, "current_node": "last"}
    path = write(tmp_path / "conversations.json", [talk, talk | {"current_node": "u"}])
    once = [("user", "My dog is Rex."), ("assistant", "Hello, \nRex!"), ("user", "Bye.")]
    assert told(path) == [*once, once[0]]


@pytest.mark.parametrize("change", [{"current_node": "gone"}, {"current_node": None}])
def test_an_export_without_a_present_end_is_told_to_its_last_message(
    change: dict, tmp_path: Path
) -> None:
    nodes = {"u": node("u", "loop", "user", "Hi."), "loop": node("loop", "u", "assistant", "Yes?")}
    path = write(tmp_path / "one.json", {"mapping": nodes} | change)
    assert told(path) == [("user", "Hi."), ("assistant", "Yes?")]


def test_memories_exported_by_mem0_are_told_the_oldest_first(tmp_path: Path) -> None:
    new = {"id": "1", "memory": "Lives in Oslo", "created_at": "2026-02-01T00:00:00"}
    old = {"id": "2", "memory": "Lives in Rome", "created_at": "2025-02-01T00:00:00"}
    oslo, rome = ("user", "Lives in Oslo"), ("user", "Lives in Rome")
    assert told(write(tmp_path / "a.json", {"results": [new, old]})) == [rome, oslo]
    lines = "\n".join(map(json.dumps, (new, old)))
    assert told(write(tmp_path / "b.jsonl", lines)) == [oslo, rome]


@pytest.mark.parametrize("value", [{"results": []}, {"results": [1]}, {"mapping": {}}, {"a": 1}])
def test_what_is_no_export_is_refused_by_name(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.json"):
        read_messages(write(tmp_path / "x.json", value))


def test_texts_of_a_folder_are_taken_at_any_depth_others_named_and_no_hidden_ones(
    tmp_path: Path,
) -> None:
    write(tmp_path / "b.md", "# B\n\ntwo")
    write(tmp_path / "sub" / "A.TXT", "one")
    write(tmp_path / "sub" / "picture.png", "no text")
    write(tmp_path / ".obsidian" / "app.json", "{}")
    write(tmp_path / ".hidden.md", "hidden")
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    found = read_sources([tmp_path, tmp_path / "b.md"])
    assert [(Path(s.name).name, len(s.messages)) for s in found.told] == [("b.md", 2), ("A.TXT", 1)]
    (left_out,) = found.left_out
    assert "picture.png is neither text nor messages by its name" in left_out


def test_a_bad_file_of_a_folder_is_left_out_and_one_that_was_named_is_refused(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.md", "one")
    bad = write(tmp_path / "package.json", {"name": "x"})
    found = read_sources([tmp_path])
    assert [source.messages[0]["content"] for source in found.told] == ["one"]
    assert len(found.left_out) == 1
    assert "package.json" in found.left_out[0]
    with pytest.raises(ValueError, match=r"package\.json"):
        read_sources([bad])


def test_patterns_are_matched_and_paths_without_anything_named(tmp_path: Path) -> None:
    write(tmp_path / "a1.md", "one")
    write(tmp_path / "a[1].md", "brackets")
    found = read_sources([tmp_path / "a*.md"])
    assert [source.messages[0]["content"] for source in found.told] == ["one", "brackets"]
    assert read_sources([tmp_path / "a[1].md"]).told[0].messages[0]["content"] == "brackets"
    with pytest.raises(FileNotFoundError, match="No file matches"):
        read_sources([tmp_path / "*.rst"])
    with pytest.raises(FileNotFoundError, match=r"gone\.md"):
        read_sources([tmp_path / "gone.md"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing to remember"):
        read_sources([tmp_path / "empty"])


def test_long_paragraphs_are_cut_between_words_and_nothing_of_them_is_lost() -> None:
    text = " ".join(f"Sentence {i} ends." for i in range(1000))
    parts = [str(m["content"]) for m in in_parts([{"role": "user", "content": text}])]
    assert " ".join(parts) == text
    assert max(map(len, parts)) <= LONGEST
    assert all(part.endswith("ends.") for part in parts)
    solid = in_parts([{"role": "user", "content": "x" * (2 * LONGEST + 1)}])
    assert [len(str(m["content"])) for m in solid] == [LONGEST, LONGEST, 1]
