"""Counts the tokens of a call's request, once for all the layers that want to know."""

import structlog

from router.call import Call
from router.tokens import BrokenVocabulary, TokenCounter, measured, rough_count


async def input_tokens(call: Call, counter: TokenCounter | None, model: str) -> int:
    """An estimate, as `model` would count. Without a counter by length alone. May wait: long texts are counted in a
    thread."""
    request, counted = call.request, call.trip.counted
    if counter is not None:
        for known, name, tokens in counted:
            if known is request and name == model:
                return tokens
        try:
            tokens = await counter.count_request(request, model)
        except BrokenVocabulary as broken:
            structlog.get_logger("deltaway.tokens").error("tokens are estimated by length", reason=str(broken))
        else:
            counted.append((request, model, tokens))
            return tokens
    texts, fixed = measured(request)
    return rough_count(texts) + fixed
