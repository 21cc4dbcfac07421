"""One answer to a request: its events from whichever worker, turned into text that may be shown."""

import contextlib
from collections.abc import Callable

from octavo_gateway.attempt import Plan
from octavo_gateway.call import ChoiceEnd, Piece, ShownToken
from octavo_gateway.detokenizer import Detokenizer, StopStrings
from octavo_gateway.dispatcher import Dispatcher
from octavo_gateway.text import BaseText
from octavo_shared.messages.generation import Finished, Started, TokenChunk, TokenLogprobs


class Choice:
    """``run`` generates the answer; afterwards the counts are those of the whole of it."""

    def __init__(self, plan: Plan, text: BaseText, stops: tuple[str, ...], show: Callable[[Piece], None]) -> None:
        self._plan = plan
        self._text = text
        self._detokenizer = Detokenizer(text.tokenizer)
        self._stops = StopStrings(stops)
        self._show = show
        self._tokens: list[ShownToken] = []
        self.num_completion_tokens = 0
        self.finished: Finished | None = None
        """The worker's last word; None when a stop string ended the answer first."""

    async def run(self, dispatcher: Dispatcher, on_started: Callable[[Started], None]) -> ChoiceEnd:
        """Show the answer piece by piece and return how it ended; raises what the dispatcher raises."""
        async with contextlib.aclosing(dispatcher.run(self._plan)) as events:
            async for event in events:
                match event:
                    case Started():
                        on_started(event)
                    case TokenChunk():
                        self._push(event)
                    case Finished():
                        self.finished = event
                        self._say(self._stops.push(self._detokenizer.flush()))
                        self._say(self._stops.flush())
                if self._stops.is_found:
                    # Leaving the generator cancels the sequence on its worker.
                    break
        reason = "stop" if self._stops.is_found or self.finished is None else self.finished.reason.value
        return ChoiceEnd(self._plan.sampling.choice, reason, tuple(self._tokens))

    def _push(self, chunk: TokenChunk) -> None:
        for place, token in enumerate(chunk.tokens):
            # One by one: where a stop string ends must not depend on how tokens were sent.
            self.num_completion_tokens += 1
            if chunk.logprobs:
                self._tokens.append(self._shown(token, chunk.logprobs[place]))
            self._say(self._stops.push(self._detokenizer.push((token,))))
            if self._stops.is_found:
                return

    def _say(self, text: str) -> None:
        if text:
            tokens, self._tokens = tuple(self._tokens), []
            self._show(Piece(self._plan.sampling.choice, text, tokens))

    def _shown(self, token: int, logprobs: TokenLogprobs) -> ShownToken:
        top = tuple(ShownToken(*self._text.spelling(other), logprob) for other, logprob in logprobs.top)
        return ShownToken(*self._text.spelling(token), logprobs.chosen, top)
