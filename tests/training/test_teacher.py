"""Teachers: the plain model with the history in its context, and the plain model as it is."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tiny import TOKENIZER, tiny_model

import deltamem_mlx as dm
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training import teacher as t
from deltamem_mlx.training.batching import EpisodeBatch, evaluation_batches
from deltamem_mlx.training.dataset import EpisodeDataset, ForeignMemories
from deltamem_mlx.training.episode_settings import EpisodeSettings
from deltamem_mlx.training.grad_checkpoint import checkpointed
from deltamem_mlx.training.objective import Objective
from deltamem_mlx.training.read_parts import UNSUPERVISED, ReadPart
from deltamem_mlx.training.report import read_metrics
from deltamem_mlx.training.settings import TrainSettings
from deltamem_mlx.training.trainer import Outcome, Trainer
from deltamem_mlx.training.update import Updater

RUN = TrainSettings(
    iters=6,
    batch_size=3,
    learning_rate=1e-2,
    state_only_prob=0.0,
    save_every=2,
    steps_per_eval=3,
    steps_per_report=2,
    distill=0.5,
    no_harm=2.0,
)


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    return load_tokenizer(TOKENIZER)


def row(number: int, unrelated: bool) -> ConversationRow:
    name, food = ("Ann", "Bob", "Cid", "Dot")[number % 4], ("tea", "rice", "milk")[number % 3]
    said = [f"{name} likes {food}.", "Ok."]
    said += ["Add 1 and 1.", "2, of course."] if unrelated else [f"What does {name} like?", food]
    roles = ("user", "assistant") * 2
    messages = [{"role": r, "content": text} for r, text in zip(roles, said, strict=True)]
    return ConversationRow(messages, unrelated=frozenset({1, 3} if unrelated else ()))


def dataset(
    tokenizer: TokenizerWrapper, *unrelated: bool, taught: bool = True, **settings: object
) -> EpisodeDataset:
    rows = [row(i, is_so) for i, is_so in enumerate(unrelated)]
    return EpisodeDataset(rows, tokenizer, EpisodeSettings(taught=taught, **settings))


@pytest.fixture(scope="module")
def mixed(tokenizer: TokenizerWrapper) -> EpisodeDataset:
    return dataset(tokenizer, *(i % 2 == 0 for i in range(9)))


def model(strong: bool = True, **settings: object) -> nn.Module:
    init = {"output_init": "random", "online_gain": 2.0} if strong else {"output_init": "zero"}
    return dm.attach(tiny_model(**settings), dm.DeltaMemConfig(rank=4, **init), seed=1)


def batch_of(episodes: EpisodeDataset) -> EpisodeBatch:
    return next(evaluation_batches(episodes, len(episodes), multiple=8))


def kl(found: nn.Module, episodes: EpisodeDataset, *, writes: bool = False) -> list[float]:
    objective = Objective(found, write_visible=writes)
    terms = objective.terms(objective.inputs(batch_of(episodes)))
    return (terms.kl_sum / mx.maximum(terms.taught, 1)).tolist()


# --- what teachers say


def test_a_memory_that_says_nothing_is_as_its_teacher_where_the_history_does_not_matter(
    mixed: EpisodeDataset,
) -> None:
    context, unrelated = kl(model(strong=False), mixed)
    assert unrelated == pytest.approx(0, abs=1e-6)
    assert context > 0.01, "the plain model is told more in its context than here"
    assert kl(model(), mixed)[1] > 0.01


def test_running_text_is_to_be_read_and_written_as_without_a_memory(
    tokenizer: TokenizerWrapper,
) -> None:
    rows = [ConversationRow([], text=f"A text number {i}, of no use to anybody.") for i in range(3)]
    texts = EpisodeDataset(rows, tokenizer)
    context, loud = kl(model(strong=True), texts, writes=True)
    assert context == 0 and loud > 0.01
    assert kl(model(strong=True), texts)[1] == pytest.approx(0, abs=1e-6), "nothing was written"


def test_a_teacher_with_the_history_is_the_plain_model_on_the_whole_conversation(
    mixed: EpisodeDataset, tokenizer: TokenizerWrapper
) -> None:
    plain, episode = tiny_model(), mixed[1]
    part = episode.both.teacher
    assert part is not None
    messages = row(1, unrelated=False).messages
    assert part.tokens.tolist() == tokenizer.apply_chat_template(messages)
    learned = [tokens[labels != UNSUPERVISED].tolist() for tokens, labels in (
        (part.tokens, part.labels), (episode.both.read.tokens, episode.both.read.labels)
    )]  # fmt: skip
    assert learned[0] == learned[1] != []
    objective = Objective(model())
    lesson = objective.teacher.lesson(part)
    logits = plain(mx.array(part.tokens)[None])[0]
    rows = mx.array(np.flatnonzero(part.labels[1:] != UNSUPERVISED))
    wanted = np.array(nn.log_softmax(logits[rows], axis=-1))
    named = np.take_along_axis(wanted, lesson.tokens, -1)
    assert np.abs(lesson.log_probs[:, :-1] - named).max() < 1e-4
    assert np.exp(lesson.log_probs).sum(-1) == pytest.approx(1, abs=1e-5)
    assert (named.min(-1) >= np.sort(wanted)[:, -t.TOP] - 1e-6).all()


def test_the_divergence_is_the_whole_one_where_all_tokens_but_one_are_named() -> None:
    rng = np.random.default_rng(0)
    teacher, other = (mx.array(rng.normal(size=(5, 20)), mx.float32) for _ in range(2))
    p, q = (nn.log_softmax(x, axis=-1) for x in (teacher, other))
    whole = (mx.exp(p) * (p - q)).sum(-1)
    named = mx.argpartition(-teacher, 19, axis=-1)[:, :19]
    found = t.divergence(t.log_probs(teacher, named), t.log_probs(other, named))
    assert np.allclose(found, whole, atol=1e-5)
    few = named[:, :3]
    less = t.divergence(t.log_probs(teacher, few), t.log_probs(other, few))
    assert mx.all(less <= whole + 1e-6).item()
    assert mx.all(less > 0).item()


def test_tokens_that_cannot_be_said_do_no_harm() -> None:
    logits = mx.array([[1.0, 2.0, -mx.inf, -mx.inf]])
    named = mx.array([[0, 1, 2]])

    def far(x: mx.array) -> mx.array:
        return t.divergence(t.log_probs(logits, named), t.log_probs(x, named)).sum()

    value, gradient = mx.value_and_grad(far)(logits)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert mx.all(mx.isfinite(gradient)).item()


def test_a_lesson_is_computed_once(mixed: EpisodeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = Objective(model()), batch_of(mixed)
    objective.inputs(batch)
    monkeypatch.setattr(objective.teacher, "_computed", lambda part: pytest.fail("again"))
    objective.inputs(batch)


def test_a_teacher_does_not_depend_on_the_adapter(mixed: EpisodeDataset) -> None:
    part = mixed[0].both.plain
    assert part is not None
    weak, strong = (Objective(model(s)).teacher.lesson(part) for s in (False, True))
    assert np.array_equal(weak.tokens, strong.tokens)
    assert np.array_equal(weak.log_probs, strong.log_probs)


# --- episodes


def test_without_distilling_only_unrelated_rows_have_a_teacher(tokenizer: TokenizerWrapper) -> None:
    first, second = (e.both for e in dataset(tokenizer, False, True, taught=False))
    assert (first.teacher, first.plain, first.unrelated) == (None, None, False)
    assert (second.teacher, second.unrelated) == (None, True)


def test_nothing_is_taught_of_a_history_that_was_not_written(mixed: EpisodeDataset) -> None:
    assert mixed[1].view("no_memory").teacher is None
    silent = mixed[0].view("no_memory")
    assert silent.plain is not None
    assert silent.unrelated
    assert not len(silent.write.tokens)


def test_a_teacher_sees_the_labels_of_all_visible_replies(tokenizer: TokenizerWrapper) -> None:
    settings = {"assistant_loss_mode": "visible_assistant_turns", "episode_recent_messages": 3}
    long = ConversationRow([*row(0, False).messages, *row(1, False).messages])
    view = EpisodeDataset([long], tokenizer, EpisodeSettings(taught=True, **settings))[0].both
    assert view.teacher is not None
    counts = [(part.labels != UNSUPERVISED).sum() for part in (view.teacher, view.read)]
    assert counts[0] == counts[1] > 0
    assert len(view.teacher.tokens) > len(view.read.tokens)


BOTH = {"assistant_loss_mode": "visible_assistant_turns", "episode_recent_messages": 3}


def asked_twice(*unrelated: int) -> ConversationRow:
    """Told a fact; then small talk and a question for the fact, or the other way round."""
    told, talk = row(0, False).messages, row(1, True).messages[2:]
    return ConversationRow([*told[:2], *talk, *told[2:]], unrelated=frozenset(unrelated))


def said(part: ReadPart | None) -> list[int]:
    assert part is not None
    return part.labels[part.labels != UNSUPERVISED].tolist()


def test_a_reply_can_be_unrelated_beside_one_that_is_not(tokenizer: TokenizerWrapper) -> None:
    all_of_it, one = (
        EpisodeDataset([asked_twice(*marked)], tokenizer, EpisodeSettings(taught=True, **BOTH))[0]
        for marked in ([], [3])
    )
    view = one.both
    assert not view.unrelated
    assert said(view.plain) + said(view.teacher) == said(view.read) == said(all_of_it.both.read)
    assert min(len(said(view.plain)), len(said(view.teacher))) > 0
    assert np.array_equal(view.plain.tokens, view.read.tokens)
    assert one.state_only.plain is None  # only the question for the fact is visible there
    silent = one.view("no_memory")
    assert (silent.teacher, silent.plain) == (None, view.plain)


def test_replies_of_both_kinds_count_alike(tokenizer: TokenizerWrapper) -> None:
    rows = [asked_twice(3), asked_twice(5), asked_twice(3, 5), asked_twice()]
    episodes = EpisodeDataset(rows, tokenizer, EpisodeSettings(taught=True, **BOTH))
    assert [e.both.unrelated for e in episodes] == [False, False, True, False]
    alike, batch = Objective(model(), count_alike=True), batch_of(episodes)
    terms = alike.terms(alike.inputs(batch))
    assert (alike.counted(batch), terms.labelled.item()) == (6, pytest.approx(3, rel=1e-5))
    assert terms.taught.tolist() == pytest.approx([3, 3], rel=1e-5)
    tokens = Objective(model()).terms(Objective(model()).inputs(batch))
    assert tokens.labelled.item() + tokens.taught[1].item() == batch.supervised
    assert tokens.labelled.item() == tokens.taught[0].item()


def test_a_reply_beside_another_is_taught_as_in_a_row_of_its_own(
    tokenizer: TokenizerWrapper,
) -> None:
    """The divergence of the first of two replies does not know of the second."""
    found, settings = model(), EpisodeSettings(taught=False, **BOTH)
    both = EpisodeDataset([asked_twice(3)], tokenizer, settings)
    first = ConversationRow(asked_twice().messages[:4], unrelated=frozenset({3}))
    alone = EpisodeDataset([first], tokenizer, replace(settings, episode_recent_messages=1))
    assert kl(found, both)[1] == pytest.approx(kl(found, alone)[1], rel=1e-4)


def test_another_conversations_memory_leaves_the_teacher(mixed: EpisodeDataset) -> None:
    foreign = ForeignMemories(mixed)
    assert foreign[1].both.teacher is mixed[1].both.teacher is not None
    assert foreign[0].both.plain is mixed[0].both.plain is not None
    assert foreign[0].both.write is not mixed[0].both.write


# --- the objective


def gradients(found: nn.Module, batch: EpisodeBatch, **settings: object) -> dict[str, np.ndarray]:
    made = Updater(Objective(found), replace(RUN, **settings), mx.distributed.init())
    return {name: np.array(g) for name, g in tree_flatten(made.gradients([batch])[0])}


def test_unrelated_text_is_not_learned(tokenizer: TokenizerWrapper) -> None:
    batch = batch_of(dataset(tokenizer, True, True, taught=False))
    found = gradients(model(), batch, no_harm=0.0, write_sparsity=0.0)
    assert all(not g.any() for g in found.values())
    terms = Objective(model()).terms(Objective(model()).inputs(batch))
    assert (terms.ce_sum.item(), terms.labelled.item()) == (0, 0)
    assert terms.taught.tolist() == [0, batch.supervised]


@pytest.mark.parametrize(("which", "unrelated"), [(0, False), (1, True)], ids=["told", "silent"])
def test_steps_against_the_gradient_come_nearer_to_the_teacher(
    tokenizer: TokenizerWrapper, which: int, unrelated: bool
) -> None:
    episodes, found = dataset(tokenizer, unrelated, unrelated), model()
    weights = {"distill": 1e4, "no_harm": 1.0, "learning_rate": 3e-3, "warmup": 0.0}
    made = Updater(Objective(found), replace(RUN, **weights), mx.distributed.init())
    before = kl(found, episodes)[which]
    for number in range(5):
        made.update([batch_of(episodes)], number)
    assert kl(found, episodes)[which] < 0.9 * before


def test_figures_are_the_terms_weighted(mixed: EpisodeDataset) -> None:
    made = Updater(Objective(model()), replace(RUN, write_sparsity=0.0), mx.distributed.init())
    batch = batch_of(mixed)
    figures = made.gradients([batch])[1]
    text, (context, silent) = figures.labelled, figures.taught
    assert (context, text + silent) == (text, batch.supervised)
    loss = figures.ce * text + 0.5 * figures.kl[0] * context + 2 * figures.kl[1] * silent
    assert figures.loss == pytest.approx(loss / batch.supervised, rel=1e-5)
    assert min(figures.kl) > 0


def test_episodes_count_alike_whoever_teaches_them(mixed: EpisodeDataset) -> None:
    alike = Objective(model(), count_alike=True)
    batch = batch_of(mixed)
    terms = alike.terms(alike.inputs(batch))
    assert (alike.counted(batch), terms.labelled.item()) == (9, pytest.approx(4))
    assert terms.taught.tolist() == pytest.approx([4, 5])


def test_checkpointing_changes_no_gradient(mixed: EpisodeDataset) -> None:
    batch = batch_of(mixed)
    kept, again = (gradients(model(), batch, grad_checkpoint=on) for on in (False, True))
    for name, wanted in kept.items():
        assert np.abs(again[name] - wanted).max() <= 1e-5 * np.abs(wanted).max() + 1e-8, name
    objective = Objective(model().train())
    with checkpointed(objective.model):
        assert objective.inputs(batch)["taught_tokens"].shape[-1] == t.TOP


# --- runs


def trained(folder: Path, episodes: EpisodeDataset, **options: object) -> Outcome:
    return Trainer(model(), episodes, episodes, RUN, folder, **options).run()


def test_a_run_that_was_stopped_ends_with_the_same_weights(
    mixed: EpisodeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "whole", mixed)

    class Killed(BaseException):
        """As SIGKILL: what is on disk is all that is left."""

    real = Updater.update

    def update(self: Updater, batches: list, number: int) -> object:
        if number == 3:
            raise Killed
        return real(self, batches, number)

    monkeypatch.setattr(Updater, "update", update)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", mixed)
    monkeypatch.undo()
    assert trained(tmp_path / "killed", mixed, resume=True).trained == 4
    first, second = (
        mx.load(str(tmp_path / n / "adapters.safetensors")) for n in ("whole", "killed")
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    rows = read_metrics(tmp_path / "whole")
    for name in ("train", "val"):
        keys = [f"{name}_kl_context", f"{name}_kl_unrelated"]
        found = [[row[key] for key in keys] for row in rows if f"{name}_loss" in row]
        assert len(found) == 3
        assert np.isfinite(found).all()


def test_a_run_without_teachers_is_known_by_what_it_was(
    tokenizer: TokenizerWrapper, tmp_path: Path
) -> None:
    plain = dataset(tokenizer, False, False, taught=False)
    told = replace(RUN, distill=0.0, no_harm=1.0)
    made = Trainer(model(), plain, [], told, tmp_path / "a").identity
    assert {"distill", "no_harm"}.isdisjoint(made)
    marked = dataset(tokenizer, False, True, taught=False)
    assert Trainer(model(), marked, [], told, tmp_path / "b").identity["data"] != made["data"]


@pytest.mark.parametrize("name", ["train on", "validate on"])
def test_rows_that_are_all_unrelated_have_nothing_to_remember(
    tokenizer: TokenizerWrapper, tmp_path: Path, name: str
) -> None:
    unrelated, mixed = dataset(tokenizer, True, True), dataset(tokenizer, True, False)
    parts = (unrelated, mixed) if name == "train on" else (mixed, unrelated)
    with pytest.raises(ValueError, match=f"All conversations to {name} are marked as unrelated"):
        Trainer(model(), *parts, RUN, tmp_path)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["distill", "no_harm"])
def test_weights_are_numbers_that_are_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}; expected 0 or more"):
        TrainSettings(**{name: value})


def test_a_template_that_renders_a_reply_otherwise_behind_its_history_is_refused() -> None:
    from deltamem_mlx.training.read_parts import _as_labelled

    told = ReadPart(np.array([1, 2, 4], np.int32), np.array([-100, -100, 4], np.int32))
    with pytest.raises(ValueError, match="Leave --distill out"):
        _as_labelled(told, np.array([-100, -100, 3], np.int32))
