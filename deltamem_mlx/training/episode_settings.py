"""How conversations become episodes."""

from dataclasses import dataclass

LOSS_MODES = ("all_assistant_turns", "visible_assistant_turns", "final_assistant_only")


@dataclass(frozen=True)
class EpisodeSettings:
    """How conversations become episodes. The defaults are those of the authors' release.

    Args:
        assistant_loss_mode (str): Targets: ``final_assistant_only``; ``all_assistant_turns``, each
            an episode of its own; or ``visible_assistant_turns``: one episode, for the last
            assistant message, in which the visible ones before it are learned too. They share one
            write pass, which is most of the work.
        episode_recent_messages (int): Messages before the target that stay visible; what is older
            is written. A system message in the middle of a conversation counts as one.
        max_length (int): Tokens kept of a read part, from its end.
        max_write_length (int): Tokens kept of a write part, from its end.
        sentences (bool): Give sentence ids, for ``sentence_mean`` writes.
        taught (bool): Give what a teacher reads who has the history in its context.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Values are out of range; all of them are listed.
    """

    assistant_loss_mode: str = "final_assistant_only"
    episode_recent_messages: int = 1
    max_length: int = 512
    max_write_length: int = 8192
    sentences: bool = False
    taught: bool = False

    def __post_init__(self) -> None:
        least = {"episode_recent_messages": 0, "max_length": 2, "max_write_length": 1}
        values = {name: getattr(self, name) for name in least}
        wrong = [n for n, value in values.items() if type(value) is not int]
        if wrong:
            kinds = ", ".join(f"{n} is {values[n]!r}" for n in wrong)
            raise TypeError(f"Episode settings: {kinds}; expected whole numbers.")
        problems = [
            f"{name} is {values[name]}; expected at least {low}"
            for name, low in least.items()
            if values[name] < low
        ]
        if self.assistant_loss_mode not in LOSS_MODES:
            problems.append(
                f"assistant_loss_mode is {self.assistant_loss_mode!r}; expected one of "
                f"{', '.join(LOSS_MODES)}"
            )
        if problems:
            raise ValueError("Episode settings: " + "; ".join(problems) + ".")
