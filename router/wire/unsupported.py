"""The words by which vendors say that a model, or its server, lacks a feature. Pure.

Most have no code for it. What is read here is a refusal that another model may not give: of tools, images, audio, JSON
schemas, reasoning, web search. A request that is wrong for everybody (`unknown parameter`, a broken schema, a file of
the wrong format) is not among them.

Sources, quoted in `tests/test_unsupported.py`: the servers' code (vLLM, llama.cpp, Ollama; Apache 2.0 and MIT) and what
users of OpenAI, Google, Groq, DeepSeek, OpenRouter and DashScope have reported; Alibaba's page of error messages.
"""

import re
from typing import Final

_FEATURE: Final = (
    r"(?:tools?(?:[ _](?:use|calls?|calling|choice))?|functions?(?:[ _]call(?:s|ing)?)?"
    r"|images?(?:_url)?|vision|audio|input_audio|videos?|files?|multi-?modal(?:ity)?|modalities"
    r"|json[ _](?:mode|schema|object|output)|structured[ _]outputs?|response_format|log_?probs|logit_bias"
    r"|thinking(?:_budget)?|reasoning(?:_effort)?|streaming|system[ _](?:messages?|prompts?|roles?|instructions?)"
    r"|developer[ _](?:messages?|instructions?)|web[ _]search|enable_[a-z_]+|parallel_tool_calls"
    r"|(?:assistant message )?prefill)"
)
_NOT: Final = r"(?:is|are)(?: not|n['’]t)(?: currently| yet)? (?:supported|enabled|available)"
_SAID: Final = re.compile(
    # "`gemma:2b` does not support tools", "does not support this tool_choice", "does not support image input"
    rf"\bdo(?:es)?(?: not|n['’]t)(?: currently| yet)? support (?:\w+ ){{0,2}}['\"`“]?{_FEATURE}\b(?! (?:format|type))"
    # "tools is not supported", "image input is not supported", "Function calling is not enabled"
    rf"|\b{_FEATURE}['\"`”]?(?: (?:inputs?|parts?|contents?|parameters?|modality|mode|responses?)){{0,2}} {_NOT}"
    # "'response_format' of type 'json_schema' is not supported with this model"
    rf"|\b{_FEATURE}\b[^.]{{0,60}} {_NOT} (?:with|for|by|in|on) (?:this|the|your)\b[^.]{{0,20}}\bmodel"
    # "image_url is only supported by certain models"
    rf"|\b{_FEATURE}['\"`”]? (?:is|are) only (?:supported|available)\b[^.]{{0,20}}\bmodels"
    r"|\bno endpoints found that support\b"
    r"|\bis not a multi-?modal model\b|\bat most 0 (?:image|audio|video)"
    r"|\btool choice requires --enable-auto-tool-choice|\btools param requires --jinja"
    r"|\bresponse_format type is unavailable",
    re.I,
)


def says_unsupported(message: str) -> bool:
    """Whether a vendor's message says that its model or server lacks what the request asks for."""
    return _SAID.search(message) is not None
