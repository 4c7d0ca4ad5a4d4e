"""The loop of `chat`: a line is a key, a command or a question."""

from deltamem_mlx.cli.chat.commands import Commands
from deltamem_mlx.cli.frame import errors, output

# What people type who know another chat: never a question.
KEYS = {
    **dict.fromkeys(("q", "exit", "quit", ":q", ":wq", "bye", "/quit", "/bye"), "/exit"),
    **dict.fromkeys(("h", "help", "?", ":help"), "/help"),
    "r": "/reset",
    "/list": "/memories",
}


class Chat(Commands):
    """The loop: questions are answered, commands carried out, until one of them ends it."""

    def run(self) -> None:
        while not self.over:
            try:
                self.answer_to(self.ui.ask().strip())
            except EOFError:
                self.leave()
            except ValueError as error:
                self.ui.problem(str(error))
            except KeyboardInterrupt:
                self.ui.interrupted()

    def answer_to(self, line: str) -> None:
        """One line: a key, a command or a question. Errors are shown, and the chat goes on."""
        name, _, rest = line.partition(" ")
        name = KEYS.get(line.lower(), name)
        try:
            if name in self.commands or (name.startswith("/") and "\n" not in line):
                self.carry_out(name, rest.strip())
            elif line:
                self.asked = None
                self.ask(line)
        except Exception as error:
            if output.settings.debug:
                self.ui.console.print_exception()
            self.ui.problem(errors.sentence(error))
