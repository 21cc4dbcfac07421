"""The gateway's chat templates and text agree with transformers', which workers' bases were trained through."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from transformers import PreTrainedTokenizerFast

from octavo_gateway.detokenizer import Detokenizer
from octavo_gateway.openai import Ask, Kind, Turn
from octavo_gateway.text import BaseText
from support.fakes import TEMPLATE, tiny_manifest, tiny_tokenizer

TEMPLATES = {
    "tiny": TEMPLATE,
    "default_system": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "bos": (
        "{{ bos_token }}\n    {% for m in messages %}\n  {% if m.role == 'assistant' %}{% generation %}"
        "{{ m['content'] | trim }}{{ eos_token }}{% endgeneration %}{% else %}{{ m | tojson }}{% endif %}\n{% endfor %}"
    ),
}
TURNS = (Turn("user", "  Wie spät ist es? <é> 😀"), Turn("assistant", "late "), Turn("user", "a\n\nb"))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_rendering_and_tokens_are_those_of_transformers(name: str) -> None:
    tokenizer = tiny_tokenizer()
    manifest = msgspec.structs.replace(tiny_manifest(tokenizer), chat_template=TEMPLATES[name])
    text = BaseText(manifest, tokenizer.to_str().encode(), ThreadPoolExecutor(1))
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=manifest.bos_token,
        eos_token=manifest.eos_token,
        chat_template=TEMPLATES[name],
        clean_up_tokenization_spaces=False,
    )
    messages = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    assert text.render(TURNS) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ask = Ask(Kind.CHAT, "a/b", TURNS, None, "max_tokens", 1.0, 1.0, 1, (), False, False)
    tokens = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert list(text.encode(ask)) == list(tokens["input_ids"])
    assert Detokenizer(tokenizer).push(text.encode(ask)) == theirs.decode(tokens["input_ids"], skip_special_tokens=True)
