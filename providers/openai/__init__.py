"""The adapter for every vendor that speaks OpenAI's Chat Completions."""

from providers.openai.adapter import OpenAI
from providers.openai.options import Options

__all__ = ["OpenAI", "Options"]
