"""Chat templates: rendered as `transformers` renders them, in a sandbox, with errors that say what went wrong."""

import datetime

import pytest

from posterity.models.lm.chat import render

MESSAGES = [{"role": "user", "content": "<Hi> & bye"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}\n  {% if true %}\n{{ m.role }}: {{ m['content'] }}\n  {% endif %}\n{% endfor %}\n", "user: <Hi> & bye\nassistant: Hello\n"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<Hi> & bye"}'),
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{% if add_generation_prompt %}go{% endif %}{{ missing }}", "go"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}.", "Hello."),
        ("{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ strftime_now('%Y') }}", str(datetime.date.today().year)),
        ("{{ bos_token }}{{ tools is none }}", "<s>True"),
    ],
    ids=["white space", "json", "break", "flags", "generation", "namespace", "date", "special"],
)
def test_templates_have_what_they_ask_for(template, expected):
    assert render(template, MESSAGES, bos_token="<s>", tools=None) == expected


def test_a_generation_prompt_is_optional():
    assert render("{% if add_generation_prompt %}go{% endif %}", MESSAGES, add_generation_prompt=False) == ""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", r"not valid Jinja \(line 1\)"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[7].content }}", "refuses these messages"),
        ("{{ 1 / 0 }}", "refuses these messages: division by zero"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "refuses these messages: access to attribute 'append'"),
        ("{% set ns = namespace(__class__=1) %}", "may not set '__class__'"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "may not set '_x'"),
        ("{{ raise_exception.__globals__['json'] }}", "refuses these messages: access to attribute '__globals__'"),
        ("{% for i in range(10**9) %}x{% endfor %}", "refuses these messages"),
    ],
)
def test_templates_that_fail_refuse_or_leave_the_sandbox_are_refused(template, reason):
    with pytest.raises(ValueError, match=reason):
        render(template, MESSAGES)


@pytest.mark.parametrize("messages", [["hello"], [{"content": "hello"}]])
def test_messages_of_another_form_are_named(messages):
    with pytest.raises(ValueError, match=r"messages\[0\] must be a mapping with a 'role'"):
        render("", messages)
