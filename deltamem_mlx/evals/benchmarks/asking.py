"""A benchmark's questions under every condition: with the memory, without, with a wrong one."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ...memory.saving import load_memory, save_memory
from ...problems import raise_problems, shortened
from ..journal import MEMORIES, Journal, Row
from ..mean import Totals, mean_without, totals
from ..runner import State
from .reader import Asked, Reader, memory_of
from .task import Material, Question, Task
from .window import Prompts, prompt_retrieved, prompts_alone, prompts_in_window

WITH_CONTEXT = {
    "memory": "the memory is written while the material is read, and read while answering",
    "none": "an empty memory that is not written: the plain model on the same prompts",
    "shuffled": "the memory of another material, not written",
}
NO_CONTEXT = {
    "memory": "the material went through the memory, its context was dropped",
    "none": "an empty memory: the plain model asked without the material",
    "shuffled": "the memory of another material",
}
# Only where they are asked for: the second reads a context for every question.
ON_REQUEST = {
    "mean": "the mean of the memories of all other materials, not written",
    "retrieved": "the plain model on as many tokens of the material, those that BM25 finds for the "
    "question in place of the newest",
}
Tell = Callable[[int], None]


class Examination:
    """A benchmark's questions and a model that reads.

    Args:
        reader (Reader): Model and adapter.
        task (Task): The benchmark.
        materials (Sequence[Material]): What is asked.
        strangers (Mapping[str, Material]): Name of a material → another, whose memory is put in
          its place.
        window (int): Tokens of a prompt and its answer; None: the material stays out of the
          context and goes through the memory only.
        folder (Path): Where memories are kept for a run that is resumed.
    """

    def __init__(
        self,
        reader: Reader,
        task: Task,
        materials: Sequence[Material],
        *,
        strangers: Mapping[str, Material],
        window: int | None,
        folder: Path | None = None,
    ):
        _check_unique(materials)
        self.reader, self.task, self.materials = reader, task, list(materials)
        self.strangers, self.window, self.folder = strangers, window, folder
        self._states: dict[str, State] = {}
        self._prompts: dict[str, Prompts] = {}
        self._totals: Totals | None = None

    def ask(self, conditions: Sequence[str], journal: Journal, tell: Tell) -> list[Row]:
        """Ask every question under every condition.

        Batches follow from the questions alone, and those whose answers the journal holds are not
        computed again.

        Args:
            conditions (Sequence[str]): Of ``memory``, ``none``, ``shuffled``, ``mean`` and, with a
              window, ``retrieved``.
            journal (Journal): Where answers are kept.
            tell (Callable[[int], None]): Told how many more answers there are.

        Returns:
            list[Row]: A row per question and condition: ``id``, ``question_id``, ``material``,
            ``condition``, ``groups``, ``question``, ``answer``, ``said``, ``scores``.
        """
        ids = []
        for condition in conditions:
            caches: dict[str, list] = {}
            for batch in self._batches():
                own = [_row_id(question, condition) for _, question in batch]
                if any(i not in journal.rows for i in own):
                    names = {material.name for material, _ in batch}
                    # Only what this batch needs stays: a long context takes gigabytes.
                    caches = {name: c for name, c in caches.items() if name in names}
                    self._prompts = {n: p for n, p in self._prompts.items() if n in names}
                    journal.add(self._answered(batch, condition, caches))
                tell(len(batch))
                ids += own
        return [journal.rows[i] for i in ids]

    def _batches(self) -> Iterator[list[tuple[Material, Question]]]:
        pairs = [
            (material, question) for material in self.materials for question in material.questions
        ]
        size = self.reader.batch_size
        return (pairs[i : i + size] for i in range(0, len(pairs), size))

    def _answered(
        self, batch: Sequence[tuple[Material, Question]], condition: str, caches: dict[str, list]
    ) -> list[Row]:
        if condition == "retrieved":
            asked = [self._retrieved(material, question) for material, question in batch]
            return self._said(batch, condition, asked)
        asked = []
        for material, question in batch:
            if material.name not in caches:
                caches[material.name] = self._cache(material, condition)
            rest = self._prompts_of(material).rest[question.id]
            asked.append(Asked(caches[material.name], rest, question.max_tokens))
        return self._said(batch, condition, asked)

    def _said(
        self,
        batch: Sequence[tuple[Material, Question]],
        condition: str,
        asked: Sequence[Asked],
    ) -> list[Row]:
        said = self.reader.answers(asked, one_line=self.task.one_line)
        return [
            self._row(material, question, condition, text)
            for (material, question), text in zip(batch, said, strict=True)
        ]

    def _retrieved(self, material: Material, question: Question) -> Asked:
        """A question to the plain model, after the part of the material that a retriever finds."""
        if self.window is None:
            raise ValueError("Retrieved text needs a context window.")
        kept = self._prompts_of(material).kept
        read, last = prompt_retrieved(
            self.reader, self.task, material, question, kept=kept, window=self.window
        )
        return Asked(self.reader.read(read, write=False), last, question.max_tokens)

    def _cache(self, material: Material, condition: str) -> list:
        """What a material's questions are asked on: its context and a memory."""
        state = None
        if condition == "shuffled":
            state = self._state(self.strangers[material.name])
        if condition == "mean":
            state = self._mean_of_others(material)
        if self.window is None:
            state = self._state(material) if condition == "memory" else state
            return self.reader.cache(state)
        if condition == "memory":
            return self._written(material)
        return self.reader.read(self._prompts_of(material).prefix, state, write=False)

    def _state(self, material: Material) -> State:
        """The memory that a material leaves."""
        name = material.name
        if name not in self._states and not self._load(name):
            if self.window is None:
                told = self.task.tellings(material, self.reader.count)
                self._keep(name, self.reader.tell(told))
            else:
                self._written(material)
        return self._states[name]

    def _mean_of_others(self, material: Material) -> State:
        everything = {m.name: m for m in (*self.materials, *self.strangers.values())}
        if self._totals is None:
            self._totals = totals(self._state(m) for m in everything.values())
        # Of those with the same text, too: they remember what is asked about.
        left_out = [self._state(m) for m in everything.values() if m.units == material.units]
        return mean_without(self._totals, left_out, len(everything) - len(left_out))

    def _written(self, material: Material) -> list:
        """A prompt cache that read and wrote the material; its memory is kept."""
        cache = self.reader.read(self._prompts_of(material).prefix, write=True)
        self._keep(material.name, memory_of(cache))
        return cache

    def _keep(self, name: str, state: State) -> None:
        self._states[name] = state
        if self.folder is not None:
            save_memory(self._file(name), self.reader.cache(state), self.reader.model)

    def _load(self, name: str) -> bool:
        """Whether the memory was kept by a run before; one that is damaged is made again."""
        if self.folder is None:
            return False
        try:
            self._states[name] = memory_of(load_memory(self._file(name), self.reader.model))
        except (FileNotFoundError, ValueError):
            return False
        return True

    def _file(self, name: str) -> Path:
        number = [m.name for m in (*self.materials, *self.strangers.values())].index(name)
        if self.folder is None:
            raise ValueError("There is no folder to keep memories in.")
        return self.folder / MEMORIES / f"{number}.safetensors"

    def _prompts_of(self, material: Material) -> Prompts:
        if material.name not in self._prompts:
            if self.window is None:
                found = prompts_alone(self.reader, self.task, material)
            else:
                found = prompts_in_window(self.reader, self.task, material, self.window)
            self._prompts[material.name] = found
        return self._prompts[material.name]

    def _row(self, material: Material, question: Question, condition: str, said: str) -> Row:
        return {
            "id": _row_id(question, condition),
            "question_id": question.id,
            "material": material.name,
            "condition": condition,
            "groups": list(question.groups),
            "question": question.text,
            "answer": question.answers,
            "said": said,
            "scores": self.task.score(question, said),
        }


def _check_unique(materials: Sequence[Material]) -> None:
    """Raises ValueError if prompts or answers of two would be kept under one name."""
    questions = [q.id for m in materials for q in m.questions]
    for names in ([m.name for m in materials], questions):
        twice = [shortened(name) for name, n in Counter(names).items() if n > 1]
        raise_problems(twice, "Ids that are there twice", "Give each an id of its own.")


def _row_id(question: Question, condition: str) -> str:
    return f"{question.id}/{condition}"


def strangers_of(
    materials: Sequence[Material], everything: Sequence[Material]
) -> dict[str, Material]:
    """For each material the next one with another text, of all if only one is asked about.

    Empty if there is none for one of them.
    """
    pool = list(materials if len(materials) > 1 else everything)
    names = [material.name for material in pool]
    found = {}
    for material in materials:
        place = names.index(material.name) + 1
        later = (m for m in (*pool[place:], *pool[:place]) if m.units != material.units)
        stranger = next(later, None)
        if stranger is None:
            return {}
        found[material.name] = stranger
    return found


def digest(materials: Sequence[Material]) -> str:
    """SHA-256 of materials and their questions, in hex: what tells one set from another."""
    found = hashlib.sha256()
    for m in materials:
        questions = [[q.id, q.text, q.answers, q.max_tokens, q.kind] for q in m.questions]
        found.update(json.dumps([m.name, m.units, questions], ensure_ascii=False).encode())
    return found.hexdigest()
