"""The routes under ``/v1/messages``."""

from ...text.spans import message_spans
from ..errors import ApiError
from ..http.management import Actions
from ..http.speaking import served_request, speak
from ..http.wire import Wire
from ..requests.bodies import parse
from ..requests.completions import Completion
from ..turns.history import parts_of
from ..turns.job import ServedRequest
from ..turns.lengths import check_texts
from .events import error_body
from .listening import MessageListener
from .request import read_message


class MessageRoutes(Wire):
    """Anthropic's Messages of a handler."""

    def message_actions(self, rest: list[str]) -> Actions:
        """What to do, for what follows ``/v1/messages`` in an address."""
        self.error_body = error_body
        match rest:
            case []:
                self.account.route = "/v1/messages"
                return {"POST": self._create_message}
            case ["count_tokens"]:
                self.account.route = "/v1/messages/count_tokens"
                return {"POST": self._count_tokens}
        return {}

    def _create_message(self) -> None:
        serving, asked = self.serving, self._read_message(count=False)
        with serving.admitted():
            grammar = serving.generator.grammars.of(asked.shape)
            with serving.held(asked.memory) as memory:
                self._speak(served_request(asked, memory, self.alive, grammar), asked)

    def _speak(self, request: ServedRequest, asked: Completion) -> None:
        self.account.request = request
        listener = MessageListener(self, asked, request)
        try:
            speak(self.serving.generator, request, asked, listener)
        except ApiError as error:
            if not self.sent:
                raise
            listener.fail(error)

    def _count_tokens(self) -> None:
        asked, pair = self._read_message(count=True), self.serving.generator.pair
        lead, rest = parts_of(asked.messages or [])
        kwargs = self.settings.chat_template_args | (asked.template_kwargs or {})
        if asked.tools:
            kwargs |= {"tools": asked.tools}
        check_texts(served_request(asked, None, self.alive), kwargs, pair, self.settings)
        try:
            spans = message_spans(
                pair.tokenizer, [*lead, *rest], add_generation_prompt=True, template_kwargs=kwargs
            )
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error)[:300], param="messages", code="bad_messages") from None
        self.send_json({"input_tokens": len(spans.token_ids)})

    def _read_message(self, *, count: bool) -> Completion:
        serving, body = self.serving, parse(self.read_body())
        asked = read_message(body, self.headers, self.settings, serving.vocabulary, count=count)
        serving.provider.check(asked.model)
        return asked
