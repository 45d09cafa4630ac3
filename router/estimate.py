"""Token counts for an attempt whose vendor reported none: its words counted by our tokenizer, and marked as such."""

from asyncio import CancelledError
from typing import Final

import msgspec
import structlog

from router.audio import heard, is_length_told, spoken
from router.call import Attempt
from router.errors import ProtocolViolated, RouterError, StreamCut, TimedOut, Unreachable
from router.events import Usage
from router.messages import ChatRequest
from router.tokens import BrokenVocabulary, TokenCounter, measured, rough_count

_PLAUSIBLE: Final = 1.5
"""How far our count may be above a vendor's and both be right."""
_FEW: Final = 16


class Estimator:
    """`counter` None: by length alone (a token is four bytes)."""

    def __init__(self, counter: TokenCounter | None) -> None:
        self._counter = counter
        self._log = structlog.get_logger("deltaway.usage")

    async def estimate(self, request: ChatRequest, attempt: Attempt) -> Usage:
        """May wait: long texts are counted in a thread."""
        if self._counter is None:
            return self.estimate_now(request, attempt)
        model, (texts, fixed) = attempt.target.model, measured(request, recordings=False)
        generated = attempt.generated
        try:
            return told(
                request,
                attempt,
                await self._counter.count(texts, model) + fixed,
                await self._counter.count(["".join(generated.output)], model),
                await self._counter.count(["".join(generated.reasoning)], model),
            )
        except BrokenVocabulary as broken:
            # no reason to fail an answer that is complete
            self._log.error("tokens are estimated by length", reason=str(broken))
            return self.estimate_now(request, attempt)

    def estimate_now(self, request: ChatRequest, attempt: Attempt) -> Usage:
        """The same at once, for a stream that is being closed: long texts are estimated by their length."""
        model, (texts, fixed) = attempt.target.model, measured(request, recordings=False)
        generated = attempt.generated
        return told(
            request,
            attempt,
            self.count_now(texts, model) + fixed,
            self.count_now(["".join(generated.output)], model),
            self.count_now(["".join(generated.reasoning)], model),
        )

    def count_now(self, texts: list[str], model: str) -> int:
        """Tokens of the texts; by their length where a count would hold up the event loop."""
        counted = self._counter.count_now(texts, model) if self._counter is not None else None
        return rough_count(texts) if counted is None else counted


def told(request: ChatRequest, attempt: Attempt, prompt: int, output: int, reasoning: int) -> Usage:
    """The estimate of an attempt whose texts are so many tokens, with its audio, which is counted by its length.

    A length that the bytes do not tell is a guess, and flagged.
    """
    model, audio = attempt.target.model, attempt.generated.audio
    input_audio, known = heard(request, model)
    flags = [] if known else ["the length of the prompt's audio is not known"]
    if audio and not is_length_told(request):
        flags.append("the length of the answer's audio is not known")
    return Usage(
        input=prompt,
        input_audio=input_audio,
        output=output,
        reasoning=reasoning,
        output_audio=spoken(request, model, audio),
        source="estimated",
        flag="; ".join(flags) or None,
    )


def is_doubtful(reported: Usage, request: ChatRequest, attempt: Attempt) -> bool:
    """Whether more may have come than a vendor had told when its answer broke off: judged by length, which is cheap."""
    generated = attempt.generated
    come = rough_count([*generated.output, *generated.reasoning])
    come += spoken(request, attempt.target.model, generated.audio)
    return come > reported.completion_total * _PLAUSIBLE + _FEW


def mended(reported: Usage, counted: Usage) -> Usage:
    """What a vendor had reported of an answer that broke off, if that can be all: some tell the tokens of the first
    piece and no more. Where far more has come than that, the count stands for the output, and says so."""
    if counted.completion_total <= reported.completion_total * _PLAUSIBLE + _FEW:
        return reported
    return msgspec.structs.replace(
        reported,
        output=counted.output,
        reasoning=counted.reasoning,
        output_audio=counted.output_audio,
        source="estimated",
        flag=_flags(reported, counted),
    )


def filled(reported: Usage, counted: Usage) -> Usage:
    """What a vendor has reported of one side or of the total alone, with our count for what it left out."""
    if not reported.untold:
        return reported
    prompt, output = counted.prompt_total, counted.output
    reasoning, speech = max(reported.reasoning, counted.reasoning), max(reported.output_audio, counted.output_audio)
    if reported.untold == ("prompt", "completion") and (total := reported.prompt_total + reported.completion_total):
        # the total stands: our counts only divide it
        reasoning = min(reasoning, total)
        speech = min(speech, total - reasoning)
        output = min(output, total - reasoning - speech)
        prompt = total - reasoning - speech - output
    changes: dict[str, int] = {}
    if "prompt" in reported.untold:
        room = max(prompt - (reported.prompt_total - reported.input - reported.input_audio), 0)
        hearing = min(max(reported.input_audio, counted.input_audio), room)
        changes |= {"input": room - hearing, "input_audio": hearing}
    if "completion" in reported.untold:
        changes |= {"output": output, "reasoning": reasoning, "output_audio": speech}
    return msgspec.structs.replace(reported, **changes, source="estimated", flag=_flags(reported, counted), untold=())


def _flags(reported: Usage, counted: Usage) -> str | None:
    """Why the vendor's figures are in doubt, and why ours are."""
    flags = [flag for usage in (reported, counted) if (flag := usage.flag)]
    return "; ".join(dict.fromkeys(flags)) or None


def is_owed(attempt: Attempt, error: BaseException | None) -> bool:
    """Whether an attempt without reported usage has cost something all the same.

    One that has begun to answer has; so has one that a vendor was asked for and did not refuse, which may bill the
    prompt although nothing came.
    """
    if error is None or attempt.generated.began:
        return True
    if not attempt.sent or (isinstance(error, TimedOut) and error.code == "connect_timeout"):
        return False
    if isinstance(error, Unreachable):
        # what broke after the request had gone out, maybe in the middle of a whole answer
        return error.code == "connection_lost"
    unanswered = isinstance(error, CancelledError | GeneratorExit | TimedOut | StreamCut | ProtocolViolated)
    return unanswered or not isinstance(error, RouterError)
