"""llama-guard: a text model that is asked whether a message is safe; Llama Guard 3, or any other one.

Who writes the prompt depends on the model, since a guard's own chat template already does:

    llama-3   the template is a Llama 3 guard's: the whole prompt goes to `completion`, so that categories can
              be left out and a conversation may begin with the assistant
    template  the template writes it: another generation, images, or a guard behind a remote endpoint
    message   the template is for chatting: the prompt is a user's message
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from stack.engine.base import Inference
from stack.engine.fold import fold_chat_completion, fold_completion
from stack.errors import ContextTooLong, UpstreamError
from stack.safety.guard_prompt import (
    NoVerdict,
    Turn,
    answer_format,
    llama_3_prompt,
    prompt_text,
    turns_of,
    violated,
)
from stack.safety.provider import Call, ShieldParams, ShieldProvider, check_model, content_text, images_of
from stack.safety.taxonomy import BY_CODE, CATEGORIES, code_of
from stack.schemas.content import ImageContentItem, TextContentItem
from stack.schemas.inference import ChatCompletionRequest, CompletionRequest
from stack.schemas.messages import CompletionMessage, Message, UserMessage
from stack.schemas.safety import SafetyViolation, ViolationLevel
from stack.schemas.sampling import GrammarResponseFormat, GreedySamplingStrategy, SamplingParams
from stack.schemas.shields import Shield

Form = Literal["llama-3", "template", "message"]

USER_MESSAGE = "I can't answer that. Can I help with something else?"
_SAMPLING = SamplingParams(strategy=GreedySamplingStrategy(), max_tokens=80)


class LlamaGuardParams(ShieldParams):
    excluded_categories: list[str] = Field([], max_length=100, description="Codes (S9) or names (Privacy)")
    prompt: Literal["auto", "llama-3", "template", "message"] = Field(
        "auto", description="Who writes the prompt; see docs/safety.md"
    )
    level: ViolationLevel = "error"

    @field_validator("excluded_categories")
    @classmethod
    def _codes(cls, categories: list[str]) -> list[str]:
        codes = [code_of(category) for category in categories]
        if len(set(codes)) == len(CATEGORIES):
            raise ValueError("all categories are excluded, so nothing would be unsafe")
        return codes


class LlamaGuard(ShieldProvider[LlamaGuardParams]):
    params = LlamaGuardParams

    async def check(self, shield: Shield, params: LlamaGuardParams) -> None:
        await check_model(self._serving, shield, classifier=False)

    async def run(self, call: Call[LlamaGuardParams]) -> SafetyViolation | None:
        """The last message is assessed; those before it are its context, if the model has room for them."""
        model_id, excluded = call.shield.provider_resource_id, call.params.excluded_categories
        model, form, constrained = await self._model(call)
        guard = _Guard(model_id, model, form, excluded, constrained, images_of(call.messages))
        turns = turns_of(call.messages)
        try:
            answer = await guard.ask(turns)
        except ContextTooLong:
            if len(turns) == 1:
                raise
            answer = await guard.ask(turns[-1:])
        try:
            codes = violated(answer, excluded)
        except NoVerdict:
            raise UpstreamError(
                f"model {model_id!r} gave no verdict but {answer[:80]!r}: it is no guard, or params.prompt "
                "does not suit it"
            ) from None
        if codes is None:
            return None
        return SafetyViolation(
            violation_level=call.params.level,
            user_message=USER_MESSAGE,
            metadata={
                "violation_type": ",".join(codes) or "unsafe",
                "categories": [BY_CODE[code].name for code in codes if code in BY_CODE],
            },
        )

    async def _model(self, call: Call[LlamaGuardParams]) -> tuple[Inference, Form, bool]:
        """The model, who writes its prompt, and whether its answer can be constrained."""
        model_id = call.shield.provider_resource_id
        inference = await self._serving(model_id, "llm", call.provider_data)
        model, status = await self._serving.find(model_id)
        remote = model.provider_id == "openai"
        if call.params.prompt != "auto":
            form: Form = call.params.prompt
        elif remote:
            named = f"{model.identifier} {model.provider_resource_id}".lower()
            form = "template" if "guard" in named else "message"
        else:
            own = (status.description if status else {}).get("guard_prompt")
            form = "message" if own is None else "llama-3" if own == "llama-3" else "template"
        if form == "llama-3" and images_of(call.messages):
            form = "template"
        return inference, form, not remote


class _Guard:
    """One model, and how it is asked."""

    def __init__(
        self,
        model_id: str,
        model: Inference,
        form: Form,
        excluded: Sequence[str],
        constrained: bool,
        images: Sequence[ImageContentItem],
    ) -> None:
        self._model_id, self._model, self._form = model_id, model, form
        self._excluded, self._images = excluded, images
        self._format: GrammarResponseFormat | None = None
        if constrained:
            self._format = answer_format(excluded, own_categories=form == "template")

    async def ask(self, turns: Sequence[Turn]) -> str:
        """What the model says about the last turn."""
        task = prompt_text(turns, self._excluded, descriptions=self._form == "message")
        if self._form == "llama-3":
            request = CompletionRequest(
                model_id=self._model_id,
                content=llama_3_prompt(task),
                sampling_params=_SAMPLING,
                response_format=self._format,
            )
            return (await fold_completion(self._model.completion(request))).content
        if self._form == "message":
            return await self._chat([UserMessage(content=[*self._images, TextContentItem(text=task)])])
        return await self._chat(self._conversation(turns))

    def _conversation(self, turns: Sequence[Turn]) -> list[Message]:
        """Guards' templates want users and assistants in turn, a user first."""
        messages: list[Message] = [UserMessage(content="")] if turns[0].role == "Agent" else []
        for turn in turns:
            if turn.role == "User":
                messages.append(UserMessage(content=turn.text))
            else:
                messages.append(CompletionMessage(content=turn.text, stop_reason="end_of_turn"))
        if self._images:
            last = max(n for n, message in enumerate(messages) if isinstance(message, UserMessage))
            text = TextContentItem(text=content_text(messages[last].content))
            messages[last] = UserMessage(content=[*self._images, text])
        return messages

    async def _chat(self, messages: list[Message]) -> str:
        request = ChatCompletionRequest(
            model_id=self._model_id,
            messages=messages,
            sampling_params=_SAMPLING,
            response_format=self._format,
        )
        answer = await fold_chat_completion(self._model.chat_completion(request))
        return content_text(answer.completion_message.content)
