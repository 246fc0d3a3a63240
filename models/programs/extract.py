"""The answer in a text, by a named rule."""

import ast
import dataclasses
import functools
import json
import operator
import re
from collections.abc import Callable
from typing import Any

RULES = ("last_line", "boxed", "regex:PATTERN", "json:FIELD")
LARGEST = 10_000  # characters of an expression, and digits that a power may come to: what is longer is left as it is written


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Reads the answer in a text; two of one name are equal, so that compiled code is shared. See `extractor`."""

    name: str

    def __call__(self, text: str) -> str:
        kind, _, detail = self.name.removesuffix("+sympy").partition(":")
        answer = _READ[kind](text, detail)
        return canonical(answer) if self.name.endswith("+sympy") else answer


def extractor(rule: str | Callable[[str], str]) -> Callable[[str], str]:
    r"""The function, text -> answer, that a rule names. Where a text has no answer, the answer is the empty text.

    Args:
      rule: "last_line"; "boxed", what stands in the last `\boxed{...}`; "regex:PATTERN", the last match (its first group, where it has one);
        "json:FIELD", that field of the last JSON object in the text (also "json:FIELD.FIELD"); each may be followed by "+sympy", which writes equal
        expressions alike (`canonical`). Or a function of one's own.

    Raises:
      ValueError: for another rule, or a pattern that is none.
      TypeError: when it is neither a text nor a function.

    >>> extractor("boxed+sympy")(r"so it is \boxed{\frac{2}{4}}")
    '1/2'
    >>> extractor("json:result.value")('{"result": {"value": 7}}')
    '7'
    """
    if callable(rule):
        return rule
    if not isinstance(rule, str):
        raise TypeError(f"extract must be the name of a rule or a function of a text, got {type(rule).__name__}")
    kind, _, detail = rule.removesuffix("+sympy").partition(":")
    if kind not in _READ or bool(detail) != (kind in ("regex", "json")):
        raise ValueError(f'extract must be one of {", ".join(RULES)}, perhaps with "+sympy" after it, or a function of a text; got {rule!r}')
    if kind == "regex":
        try:
            re.compile(detail)
        except re.error as error:
            raise ValueError(f"extract: {detail!r} is no regular expression: {error}") from None
    if rule.endswith("+sympy"):
        _sympy()
    return Extractor(rule)


def canonical(answer: str) -> str:
    r"""An expression as SymPy simplifies it, so that equal ones are written alike; what is no expression stays as it is.

    Numbers, names, `+ - * / ^ ( )`, `sqrt`, `\frac{}{}`, `\sqrt{}`, `\cdot`, `\pi` and a percent sign are understood. Nothing is evaluated as Python.

    Raises:
      ImportError: without SymPy.

    >>> canonical("0.50"), canonical("x*(x+1)") == canonical("x^2 + x"), canonical("none of these")
    ('1/2', True, 'none of these')
    """
    sympy, text = _sympy(), _plain(answer)
    if not text or len(text) > LARGEST:
        return answer
    try:
        return str(sympy.simplify(sympy.expand(_expression(ast.parse(text, mode="eval").body, sympy))))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, TypeError):
        return answer


def _last_line(text: str, _: str) -> str:
    return text.rstrip().rpartition("\n")[2].strip()


def _boxed(text: str, _: str) -> str:
    start = text.rfind("\\boxed{")
    depth, inside = 0, start + len("\\boxed{")
    for position in range(inside, len(text) if start >= 0 else inside):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth < 0:
            return text[inside:position].strip()
    return ""


def _regex(text: str, pattern: str) -> str:
    found = list(re.finditer(pattern, text))
    return "" if not found else (found[-1][1] or "" if found[-1].re.groups else found[-1][0])


def _json(text: str, field: str) -> str:
    value = _last_object(text)
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, sort_keys=True)


def _last_object(text: str) -> Any:
    decoder, found, position = json.JSONDecoder(), None, text.find("{")
    while position >= 0:
        try:
            found, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        position = text.find("{", end)
    return found


_READ: dict[str, Callable[[str, str], str]] = {"last_line": _last_line, "boxed": _boxed, "regex": _regex, "json": _json}

_OPERATORS: dict[type, Callable] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def _plain(answer: str) -> str:
    """The expression in Python's notation, as far as a few replacements go."""
    text = answer.strip().strip("$").removesuffix(".").replace("\\left", "").replace("\\right", "").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    inner = r"\{((?:[^{}])*)\}"
    before = None
    while before != text:
        before = text
        text = re.sub(r"\\frac\s*" + inner + r"\s*" + inner, r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt\s*" + inner, r"sqrt(\1)", text)
        text = re.sub(r"\^\s*" + inner, r"^(\1)", text)
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\pi", "pi").replace("\\%", "%").replace("^", "**")
    text = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text)
    return re.sub(r"%$", "/100", text)


def _expression(node: ast.AST, sympy: Any) -> Any:
    """A syntax tree as an expression: nothing but numbers, names, arithmetic and square roots."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return sympy.Rational(str(node.value))
    if isinstance(node, ast.Name):
        return sympy.pi if node.id == "pi" else sympy.Symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _expression(node.operand, sympy)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_expression(node.left, sympy), _expression(node.right, sympy))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, exponent = _expression(node.left, sympy), _expression(node.right, sympy)
        if exponent.is_number and (not exponent.is_Rational or abs(exponent) > 64 or len(str(base)) * abs(exponent) > LARGEST):
            raise ValueError("a power that is not worked out")
        return base**exponent
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "sqrt" and len(node.args) == 1 and not node.keywords:
        return sympy.sqrt(_expression(node.args[0], sympy))
    raise ValueError("no expression")


@functools.cache
def _sympy() -> Any:
    try:
        import sympy
    except ImportError as error:
        raise ImportError('answers merged by SymPy need it: pip install "posterity[symbolic]"') from error
    return sympy
