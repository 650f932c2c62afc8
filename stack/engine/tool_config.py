"""How tools are used, from a request's `tool_config` and the deprecated fields beside it."""

from __future__ import annotations

from stack.errors import BadRequest
from stack.schemas.inference import ChatCompletionRequest
from stack.schemas.messages import ToolChoice, ToolConfig, ToolPromptFormat


def merged(
    config: ToolConfig | None, tool_choice: ToolChoice | None, tool_prompt_format: ToolPromptFormat | None
) -> ToolConfig | None:
    """The config with the deprecated fields moved into it, where alone engines look. Raises BadRequest."""
    given = {"tool_choice": tool_choice, "tool_prompt_format": tool_prompt_format}
    old = {name: value for name, value in given.items() if value is not None}
    if not old:
        return config
    config = config or ToolConfig()
    for name, value in old.items():
        if name in config.model_fields_set and getattr(config, name) not in (None, value):
            raise BadRequest(
                f"{name} is {value!r}, but tool_config.{name} is {getattr(config, name)!r}: "
                f"leave {name} out, it is deprecated"
            )
    return config.model_copy(update=old)


def with_tool_config(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """The request with its deprecated fields moved into `tool_config`."""
    config = merged(request.tool_config, request.tool_choice, request.tool_prompt_format)
    if config is request.tool_config:
        return request
    return request.model_copy(update={"tool_config": config, "tool_choice": None, "tool_prompt_format": None})
