"""Chat templates: Jinja text that comes with a model and turns a conversation into its prompt."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def render(template: str, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = True, **special: object) -> str:
    """The text of a conversation, `messages = [{"role": ..., "content": ...}, ...]`, as `transformers` renders it.

    `special` holds what templates ask for beside the messages (`bos_token`, `eos_token`, `tools`). The template is a file's
    text and not trusted: it runs in Jinja's immutable sandbox.

    Raises:
      ValueError: for messages of another form, a template that is not valid Jinja, fails, or refuses the conversation.

    >>> render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", [{"role": "user", "content": "Hi"}])
    '<user>Hi'
    """
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise ValueError(f"messages[{i}] must be a mapping with a 'role' (and a 'content'), got {message!r}")
    try:
        return _compile(template).render(messages=messages, add_generation_prompt=add_generation_prompt, **special)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the model's chat template is not valid Jinja (line {error.lineno}): {error.message}") from error
    except Exception as error:  # a template can fail in any way that Python can
        raise ValueError(f"the model's chat template refuses these messages: {error}") from error


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.filters["tojson"] = _to_json  # Jinja's own escapes HTML
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "namespace": _Namespace}
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, by which some templates mark what the model wrote, is its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's namespace, without the underscored names that lead out of the sandbox."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name, value):
        if str(name).startswith("_"):
            raise SecurityError(f"a chat template may not set {name!r}")
        super().__setitem__(name, value)


def _to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str):
    raise jinja2.TemplateError(message)
