"""JSON Schemas as automata over bytes: to a regular expression by outlines-core, after a look at what it would pass over in silence."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from posterity.models.potentials.automaton import Automaton
from posterity.models.potentials.regex import outlines_core, regex
from posterity.models.potentials.texts import without

ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated", "readOnly", "writeOnly"}
DECIDING = [  # the keyword that outlines-core goes by, the first of these that is there, with those that it heeds beside it
    ("$ref", set()),
    ("enum", {"type"}),
    ("const", {"type"}),
    ("anyOf", set()),
    ("properties", {"type", "required", "additionalProperties"}),
    ("prefixItems", {"type", "items"}),
    ("pattern", {"type"}),
    ("format", {"type"}),
    ("type", {"items", "minItems", "maxItems", "minLength", "maxLength", "additionalProperties"}),
]
ASCII = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}  # what these mean in ECMA 262, which schemas follow
_DATE = r"[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_WORD, _LABEL, _PART = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+", "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", r"[A-Za-z0-9._~!$&'()*+,;=:@-]*"
FORMATS = {  # of RFC 3339, 4122, 5321 and 3986; the library's own write quotes and backslashes that end a string of JSON (0.2.14: time, email, uri)
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "email": rf"{_WORD}(?:\.{_WORD})*@{_LABEL}(?:\.{_LABEL})+",
    "uri": rf"[a-z][a-z0-9+.-]*://{_LABEL}(?:\.{_LABEL})*(?::[0-9]{{1,5}})?(?:/{_PART})*(?:\?{_PART})?(?:#{_PART})?",
}
UNSAFE = [chr(i) for i in range(32)] + ['"', "\\", "\x7f"]  # what a string of JSON may not hold as it is


def json_schema(schema: Mapping[str, Any] | str, *, whitespace: str | None = None) -> Automaton:
    r"""The JSON texts that satisfy a schema.

    Objects have their properties in the schema's order and no others, unless `additionalProperties` says which.

    Args:
      schema: a JSON Schema, as a mapping or as JSON. Understood are `type`, `properties` with `required`, `items` with `minItems` and
        `maxItems`, `prefixItems`, `enum`, `const`, `anyOf`, `$ref` within the schema, `minLength`, `maxLength`, `pattern`, and as `format`
        date (never 29 February), time, date-time, uuid, email and uri (with a host in ASCII).
      whitespace: a regular expression for what may stand between the parts; by default one space or none.

    Raises:
      ValueError: for a schema that is no JSON, that nothing satisfies, or that has a keyword which would not be kept, with its place.
      ModuleNotFoundError: without outlines-core (the extra `constraints`).

    >>> numbers = json_schema({"type": "array", "items": {"type": "integer"}, "minItems": 1})
    >>> numbers.accepts("[1, -20]"), numbers.accepts("[]")
    (True, False)
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise ValueError(f"json_schema: no JSON: {error}") from error
    for place, part in _schemas(schema, "#"):
        _check(place, part)
    library = outlines_core().json_schema
    try:
        pattern = library.build_regex_from_schema(json.dumps(_spelled_out(schema), ensure_ascii=False), whitespace)
    except ValueError as error:
        raise ValueError(f"json_schema: {str(error).splitlines()[0]}") from error
    return regex(re.sub(r"\\.", lambda escape: ASCII.get(escape[0], escape[0]), pattern, flags=re.DOTALL))


def _schemas(schema: Any, place: str) -> Iterator[tuple[str, Any]]:
    """A schema and those in it, with their places."""
    yield place, schema
    if not isinstance(schema, Mapping):
        return
    for key in ("properties", "$defs", "definitions"):
        for name, part in schema.get(key, {}).items():
            yield from _schemas(part, f"{place}/{key}/{name}")
    for key in ("anyOf", "prefixItems"):
        for i, part in enumerate(schema.get(key, [])):
            yield from _schemas(part, f"{place}/{key}/{i}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from _schemas(schema[key], f"{place}/{key}")


def _spelled_out(schema: Any) -> Any:
    """The schema with formats as patterns, and the names of properties as JSON writes them: the library would leave quotes as they are."""
    if not isinstance(schema, Mapping):
        return [_spelled_out(part) for part in schema] if isinstance(schema, list) else schema
    found = {key: part if key in ("enum", "const") else _spelled_out(part) for key, part in schema.items()}
    for key in ("$defs", "definitions", "properties"):
        if key in schema:
            found[key] = {_escaped(name) if key == "properties" else name: _spelled_out(part) for name, part in schema[key].items()}
    if "required" in schema:
        found["required"] = [_escaped(name) for name in schema["required"]]
    if "format" in schema:
        found |= {"type": "string", "pattern": FORMATS[found.pop("format")]}
    return found


def _escaped(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _check(place: str, schema: Any) -> None:
    """Refuses what would be passed over."""
    if not isinstance(schema, Mapping):
        raise ValueError(f"json_schema: a schema must be an object, at {place} it is {schema!r}")
    keywords = set(schema) - ANNOTATIONS
    deciding, heeded = next(((key, beside) for key, beside in DECIDING if key in keywords), (None, set()))
    if passed := sorted(keywords - heeded - {deciding}):
        beside = f" beside {deciding!r}" if deciding else ""
        raise ValueError(f"json_schema: {', '.join(map(repr, passed))} at {place} would not be kept{beside}")
    if missing := sorted(set(schema.get("required", [])) - set(schema.get("properties", {}))):
        raise ValueError(f"json_schema: {', '.join(map(repr, missing))} is required at {place} and no property there")
    if "additionalProperties" in keywords and deciding == "properties" and schema["additionalProperties"] is not False:
        raise ValueError(f"json_schema: 'additionalProperties' beside 'properties' at {place} must be false: others are never written")
    if deciding in ("enum", "const") and "type" in keywords:
        _check_values(place, schema)
    if deciding == "format" and schema["format"] not in FORMATS:
        raise ValueError(f"json_schema: the format {schema['format']!r} at {place} is not known; known are {', '.join(FORMATS)}")
    if "pattern" in keywords and not (regex(schema["pattern"]) & ~without(*UNSAFE)).empty:
        raise ValueError(f"json_schema: the pattern at {place} matches texts with quotes, backslashes or control characters, which JSON writes in another way")


def _check_values(place: str, schema: Mapping[str, Any]) -> None:
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list, "object": Mapping}
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    for value in schema.get("enum", [schema.get("const")]):
        if not any(isinstance(value, kinds.get(kind, ())) and (kind == "boolean" or not isinstance(value, bool)) for kind in types):
            raise ValueError(f"json_schema: {value!r} at {place} is not of type {schema['type']!r}")
