"""Function calls that a model wrote, in Python, Java or JavaScript -> names and arguments; runs in a child.

    [geometry.area(base=10, height=5), weather("Berlin")]

The rules are those of the Berkeley Function-Calling Leaderboard (Patil et al. 2025,
https://github.com/ShishirPatil/gorilla): arguments are named; in Java and JavaScript they stay texts, which
`stack.scoring.literals` reads by the types that the function declares.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

Call = tuple[str, dict[str, Any]]

_OPEN, _CLOSE = "([{", ")]}"


class NoCalls(ValueError):
    """What the model wrote is no list of calls."""


def parse_calls(answer: str, language: str) -> list[Call]:
    """Raises NoCalls."""
    code = answer.replace("\n", "").strip()
    if language == "python":
        return _python(code)
    code = code.removeprefix("[").removesuffix("]") if code.startswith("[") else code
    return [_call(part) for part in split(code.removesuffix(";"), ",")]


def _python(code: str) -> list[Call]:
    code = code if code.startswith("[") else f"[{code}"
    code = code if code.endswith("]") else f"{code}]"
    try:
        body = ast.parse(code.strip("[]'"), mode="eval").body
        calls = body.elts if isinstance(body, ast.Tuple | ast.List) else [body]
        return [_python_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, ArithmeticError) as error:
        raise NoCalls(str(error)) from None


def _python_call(call: ast.expr) -> Call:
    if not isinstance(call, ast.Call):
        raise NoCalls(f"{ast.unparse(call)[:80]} is no call")
    arguments: dict[str, Any] = {}
    for position in call.args:  # one dictionary holds them all
        if isinstance(position, ast.Dict):
            arguments |= {str(name): value for name, value in _python_value(position).items()}
    for keyword in call.keywords:
        arguments[str(keyword.arg)] = _python_value(keyword.value)
    return ast.unparse(call.func), arguments


def _python_value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value):
            return "..." if value is Ellipsis else value
        case ast.List(items):
            return [_python_value(item) for item in items]
        case ast.Tuple(items):
            return tuple(_python_value(item) for item in items)
        case ast.Dict(keys, values):
            pairs = zip(keys, values, strict=True)
            return {_python_value(key): _python_value(value) for key, value in pairs if key is not None}
        case ast.UnaryOp(ast.USub(), operand):
            return -_python_value(operand)
        case ast.UnaryOp(ast.UAdd(), operand):
            return +_python_value(operand)
        case ast.BinOp(left, operator, right):
            return _arithmetic(_python_value(left), operator, _python_value(right))
        case ast.Name(name):
            return name
        case ast.Call(keywords=[_, *_]):
            name, arguments = _python_call(node)
            return {name: arguments}
        case ast.Call() | ast.Subscript() | ast.Lambda():
            return ast.unparse(node)
    raise NoCalls(f"{type(node).__name__} is no value")


def _arithmetic(left: Any, operator: ast.operator, right: Any) -> Any:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.Pow():
            return left**right
    raise NoCalls(f"{type(operator).__name__} is not computed")


def _call(code: str) -> Call:
    name, bracket, rest = code.strip().removesuffix(";").rstrip().partition("(")
    if not bracket or not rest.endswith(")") or not name.strip():
        raise NoCalls(f"{code[:80]!r} is no call")
    arguments: dict[str, Any] = {}
    for part in split(rest[:-1], ","):
        argument, sign, value = part.partition("=")
        if not sign or not argument.strip():
            raise NoCalls(f"{part[:80]!r} has no name")
        arguments[argument.strip()] = unquoted(value.strip())
    return name.strip(), arguments


def unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def split(code: str, separator: str) -> list[str]:
    """What stands between separators that are in no brackets and no quotes; none for nothing."""
    parts = list(_split(code, separator))
    return parts if len(parts) > 1 or parts[0].strip() else []


def _split(code: str, separator: str) -> Iterator[str]:
    start = depth = 0
    quote = ""
    escaped = False
    for place, character in enumerate(code):
        if quote:
            if not escaped and character == quote:
                quote = ""
            escaped = character == "\\" and not escaped
        elif character in "\"'`":
            quote = character
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth < 0:
                raise NoCalls(f"{code[:80]!r} closes a bracket that it does not open")
        elif character == separator and depth == 0:
            yield code[start:place]
            start = place + 1
    if depth or quote:
        raise NoCalls(f"{code[:80]!r} does not close what it opens")
    yield code[start:]
