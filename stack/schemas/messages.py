"""Messages of a conversation, and how tools are offered to a model."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue
from typing_extensions import TypeAliasType

from stack.schemas.common import Schema
from stack.schemas.content import BuiltinTool as BuiltinTool
from stack.schemas.content import InterleavedContent
from stack.schemas.content import ToolCall as ToolCall

StopReason = TypeAliasType("StopReason", Literal["end_of_turn", "end_of_message", "out_of_tokens"])
"""end_of_message: the model called a tool and waits for its response; out_of_tokens: the budget ran out."""

ToolChoice = TypeAliasType("ToolChoice", Literal["auto", "required", "none"])
ToolPromptFormat = TypeAliasType("ToolPromptFormat", Literal["json", "function_tag", "python_list"])
"""json: a JSON object; function_tag: <function=name>{…}</function>; python_list: [name(argument=value)]."""

SystemMessageBehavior = TypeAliasType("SystemMessageBehavior", Literal["append", "replace"])


class UserMessage(Schema):
    """A message from the user in a chat conversation."""

    role: Literal["user"] = "user"
    content: InterleavedContent
    context: InterleavedContent | None = Field(None, description="Retrieved context; put after the content")


class SystemMessage(Schema):
    """Instructions or context for the model. Several system messages are concatenated."""

    role: Literal["system"] = "system"
    content: InterleavedContent


class ToolResponseMessage(Schema):
    """The result of a tool invocation."""

    role: Literal["tool"] = "tool"
    call_id: str = Field(description="The tool call that this answers")
    content: InterleavedContent


class CompletionMessage(Schema):
    """A message of the model (assistant)."""

    role: Literal["assistant"] = "assistant"
    content: InterleavedContent
    stop_reason: StopReason
    tool_calls: list[ToolCall] | None = None


Message = TypeAliasType(
    "Message",
    Annotated[
        UserMessage | SystemMessage | ToolResponseMessage | CompletionMessage, Field(discriminator="role")
    ],
)


class ToolParamDefinition(Schema):
    param_type: str = Field(description='A JSON Schema type ("integer") or a Python one ("int", "list[str]")')
    description: str | None = None
    required: bool = True
    default: JsonValue = None


class ToolDefinition(Schema):
    tool_name: BuiltinTool | str
    description: str | None = None
    parameters: dict[str, ToolParamDefinition] | None = None


class ToolConfig(Schema):
    """How tools are used."""

    tool_choice: ToolChoice | str = Field(
        "auto", description="Whether tools may, must or must not be called, or the one tool that must be"
    )
    tool_prompt_format: ToolPromptFormat | None = Field(
        None, description="How the model is told to write a tool call. Default: the model's own format"
    )
    system_message_behavior: SystemMessageBehavior = Field(
        "append",
        description="Whether the caller's system message follows the tool instructions or replaces them. "
        "{{function_definitions}} in a replacing message marks where the tools' definitions go",
    )
