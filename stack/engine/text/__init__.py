"""A text model: messages in, text and tool calls out."""
