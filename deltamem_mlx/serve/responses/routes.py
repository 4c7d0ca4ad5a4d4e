"""The routes under ``/v1/responses``."""

from collections.abc import Sequence
from functools import partial

from ..errors import ApiError, refuse
from ..grammars.compiling import Grammar
from ..http.management import Actions
from ..http.speaking import served_request, speak
from ..kept.items import Item, as_messages
from ..kept.responses import KeptResponse, no_response
from ..memories.memory import Memory
from ..requests.bodies import parse
from .conversation_routes import ConversationRoutes
from .listening import ResponseListener
from .pages import page_of
from .places import Places
from .request import ResponseRequest, read_response


class ResponseRoutes(ConversationRoutes):
    """OpenAI's Responses of a handler."""

    def response_actions(self, rest: list[str]) -> Actions:
        """What to do, for what follows ``/v1/responses`` in an address."""
        self.account.route = "/v1/responses" + "/{id}" * bool(rest)
        match rest:
            case []:
                return {"POST": self._create_response}
            case [id]:
                return {
                    "GET": partial(self._show_response, id),
                    "DELETE": partial(self._delete_response, id),
                }
            case [id, "input_items"]:
                self.account.route += "/input_items"
                return {"GET": partial(self._show_input, id)}
            case [id, "cancel"]:
                self.account.route += "/cancel"
                return {"POST": partial(self._cancel_response, id)}
        return {}

    def _create_response(self) -> None:
        serving, body = self.serving, parse(self.read_body())
        given = read_response(body, self.headers, self.settings, serving.vocabulary)
        serving.provider.check(given.asked.model)
        self.check_conversation(given.conversation)
        places = Places(serving.memories, serving.responses)
        with serving.admitted():
            grammar = serving.generator.grammars.of(given.asked.shape)
            with places.held(given) as memory:
                self._respond(given, memory, grammar)

    def _respond(
        self, given: ResponseRequest, memory: Memory | None, grammar: Grammar | None
    ) -> None:
        found = self.serving.conversations.find(given.conversation or "")
        pending = found.pending if found is not None else ()
        if pending:
            given = given.after(as_messages(pending))
        request = served_request(given.asked, memory, self.alive, grammar, store=given.store)
        self.account.request = request
        keep = partial(self._keep_response, given, pending)
        listener = ResponseListener(self, given, request, keep)
        try:
            speak(self.serving.generator, request, given.asked, listener)
        except ApiError as error:
            if not self.sent:
                raise
            listener.fail(error)

    def _keep_response(
        self, given: ResponseRequest, pending: Sequence[Item], response: dict[str, object]
    ) -> None:
        if not given.store:
            return
        options, job = given.asked.memory, self.account.job
        point = job.kept.saved if given.named and job is not None and job.kept else None
        key = options.session if options is not None else None
        kept = KeptResponse(response, given.items, key, point)
        self.serving.responses.add(given.id, kept)
        output = response["output"]
        if given.conversation is not None and kept.point is not None and isinstance(output, list):
            said = [*given.items, *output]
            self.serving.conversations.change(
                given.conversation, lambda conversation: conversation.told(pending, said)
            )

    def _show_response(self, id: str) -> None:
        if self.query.get("stream", "false") != "false":
            refuse("stream", "false: a response that is stored is shown whole")
        self.send_json(self.serving.responses.get(id).response)

    def _show_input(self, id: str) -> None:
        items = self.serving.responses.get(id).items
        self.send_json(page_of(items, self.query))

    def _delete_response(self, id: str) -> None:
        known = self.serving.responses.remove(id)
        try:
            if not id.startswith("resp_"):
                no_response()
            self.serving.memories.delete(id)
        except ApiError as error:
            if error.code != "memory_not_found" or not known:
                raise
        self.send_json({"id": id, "object": "response", "deleted": True})

    def _cancel_response(self, id: str) -> None:
        self.serving.responses.get(id)
        raise ApiError(
            400,
            "Only a response in the background can be cancelled, and this server has none. Close "
            "the connection to stop one.",
            code="not_in_background",
        )
