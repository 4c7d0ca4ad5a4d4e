"""The trainings of a course: what each teaches, of which conversations, and how."""

from dataclasses import dataclass

from ..episode_settings import EpisodeSettings
from ..settings import TrainSettings
from .language import TalkShape

MAX_STEP = 0.015  # of the weights' size, an update


@dataclass(frozen=True)
class Stage:
    """A training that goes on from the adapter before it.

    Args:
        name (str): Of its folder.
        teaches (str): In a few words.
        shape (TalkShape): Of the conversations with facts.
        share (float): Of the time for all trainings.
        most (int): Iterations at most, however much time there is.
        batch_size (int): Conversations an iteration.
        learning_rate (float): Its peak.
        max_step (float): As in `TrainSettings`: models differ in how large their hidden states are.
        talk (float): Share of the others that end with ordinary talk or text, not questions; that,
            too, is to be answered as without a memory.
        unrelated (float): Share of conversations that are to be answered as without a memory.
        beside (float): Share of those in which only half of the answers are, and facts are asked
            for beside them.
        joined (int): Histories before those, at most.
        no_harm (float): What their divergence from the plain model weighs.
        opened (float): Share of conversations that have another system text than the template's
            own, or none: what is learned with one text alone is forgotten with another.
        live (bool): What is answered is written, too, and conversations count alike.
        max_write_length (int): Tokens kept of a history.
    """

    name: str
    teaches: str
    shape: TalkShape
    share: float
    most: int
    batch_size: int = 8
    learning_rate: float = 1e-3
    max_step: float = MAX_STEP
    talk: float = 0.0
    unrelated: float = 0.0
    beside: float = 0.0
    joined: int = 1
    no_harm: float = 1.0
    opened: float = 0.0
    live: bool = True
    max_write_length: int = 560

    @property
    def episodes(self) -> EpisodeSettings:
        """All questions at the end are learned after one write pass."""
        return EpisodeSettings(
            assistant_loss_mode="visible_assistant_turns",
            episode_recent_messages=2 * self.shape.asked - 1,
            max_write_length=self.max_write_length,
        )

    def settings(self, iters: int, seed: int, *, grad_checkpoint: bool = False) -> TrainSettings:
        """Of so many iterations."""
        return TrainSettings(
            iters=iters,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            max_step=self.max_step,
            warmup=0.05,
            seed=seed,
            state_only_prob=0.0,
            write_visible=self.live,
            count_alike=self.live,
            no_harm=self.no_harm,
            write_sparsity=0.0,
            steps_per_report=max(1, min(10, iters // 10)),
            steps_per_eval=max(10, -(-iters // 3)),
            save_every=max(1, iters // 12),
            val_batches=3,
            grad_checkpoint=grad_checkpoint,
        )


ENGLISH = (
    Stage(
        "facts",
        "to find what was told, and to say it",
        TalkShape(facts=(1, 4), asked=2, updates=0.25, any_word=0.6),
        share=0.45,
        most=30000,
        learning_rate=1.5e-3,
        opened=0.25,
        live=False,
    ),
    Stage(
        "mixed",
        "facts among ordinary talk and texts",
        TalkShape(facts=(1, 4), asked=2, updates=0.3, chats=1, noted=0.3, any_word=0.4),
        share=0.25,
        most=3000,
        learning_rate=1e-3,
        talk=0.4,
        unrelated=0.4,
        beside=0.6,
        opened=0.25,
    ),
    Stage(
        "silence",
        "to leave everything else as it is",
        TalkShape(facts=(1, 5), asked=4, updates=0.3, noted=0.3, any_word=0.4),
        share=0.3,
        most=3000,
        batch_size=4,
        learning_rate=7e-4,
        unrelated=1.0,
        beside=0.6,
        joined=4,
        no_harm=1.5,
        opened=0.25,
    ),
)
LITTLE = (
    Stage(
        "facts",
        "to find what was told, and to say it",
        TalkShape(facts=(1, 4), asked=3),
        share=0.4,
        most=600,
        batch_size=16,
        learning_rate=3e-3,
        max_step=0.0,
        live=False,
    ),
    Stage(
        "mixed",
        "more facts among small talk",
        TalkShape(facts=(1, 6), asked=3, chats=6),
        share=0.4,
        most=800,
        batch_size=16,
        learning_rate=2e-3,
        max_step=0.0,
        talk=0.2,
    ),
    Stage(
        "silence",
        "to leave everything else as it is",
        TalkShape(facts=(1, 6), asked=3, chats=6),
        share=0.2,
        most=300,
        batch_size=8,
        learning_rate=1e-3,
        max_step=0.0,
        unrelated=0.3,
        joined=2,
        no_harm=1.5,
    ),
)
