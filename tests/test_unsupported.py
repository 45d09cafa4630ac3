"""By which words a lacking feature is known, and by which a request that is wrong for everybody."""

import pytest

from router.wire.unsupported import says_unsupported


@pytest.mark.parametrize(
    "message",
    [
        # Ollama
        "registry.ollama.ai/library/gemma:2b does not support tools",
        '"gemma3:1b" does not support thinking',
        # vLLM
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        "some/model is not a multimodal model",
        "At most 0 image(s) may be provided in one prompt.",
        # llama.cpp
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "tools param requires --jinja flag",
        # OpenAI
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
        "Invalid content type. image_url is only supported by certain models.",
        "tools is not supported in this model.",
        "The requested model does not support logprobs",
        # Anthropic
        "This model does not support assistant message prefill. The conversation must end with a user message.",
        # Google
        "Unable to submit request because the model does not support function calling.",
        "Function calling is not enabled for models/gemma-3-1b-it",
        "Image input modality is not enabled for models/gemma-3-1b-it",
        "JSON mode is not enabled for models/gemma-3-1b-it",
        # Groq, DeepSeek, Moonshot
        "`tool calling` is not supported with this model",
        "deepseek-reasoner does not support Function Calling",
        "deepseek-reasoner does not support this tool_choice",
        "This response_format type is unavailable now",
        # OpenRouter
        "No endpoints found that support tool use. To learn more about provider routing, visit: https://openrouter.ai",
        "No endpoints found that support image input",
        # DashScope
        "This model does not support enable_search.",
        "<400> InternalError.Algo.InvalidParameter: The tool call is not supported.",
        "Json mode response is not supported when enable_thinking is true",
    ],
)
def test_a_lacking_feature_is_known_by_its_words(message: str) -> None:
    assert says_unsupported(message)


@pytest.mark.parametrize(
    "message",
    [
        "Invalid 'messages[0].content': expected a string",
        "Unknown parameter: 'toolz'.",
        "Unrecognized request argument supplied: enable_magic",
        "Invalid schema for function 'look': 'allOf' is not permitted.",
        "Invalid schema for response_format 'x': schema must be an object",
        "Invalid image format: 'image/tiff' is not supported",
        "You uploaded an unsupported image. Please make sure your image is valid.",
        "The file type application/zip is not supported",
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.",
        "tool_choice is only allowed when tools are specified",
        "temperature must be between 0 and 2",
        "The currently set language is not supported!",
        "Country, region, or territory not supported",
        "The model `gpt-9` does not exist or you do not have access to it.",
        "This endpoint does not support your account; contact support about the tools of your plan",
        "",
    ],
)
def test_a_wrong_request_is_no_lacking_feature(message: str) -> None:
    assert not says_unsupported(message)
