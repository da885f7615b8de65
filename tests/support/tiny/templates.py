"""Chat templates: one small one per style, with the image placeholder of the VLM it is for."""

_TURNS: dict[str, tuple[str, str]] = {
    "llama2": ("{{ role | upper }}: ", " "),
    "llama3": ("<|start_header_id|>{{ role }}<|end_header_id|>\n\n", "<|eot_id|>"),
    "tekken": ("[INST]", "[/INST]"),
    "qwen": ("<|im_start|>{{ role }}\n", "<|im_end|>\n"),
    "smollm": ("<|im_start|>{{ role }}\n", "<|im_end|>\n"),
    "glm": ("<|{{ role }}|>\n", ""),
    "gemma": ("<start_of_turn>{{ role }}\n", "<end_of_turn>\n"),
    "gemma4": ("<|turn>{{ role }}\n", "<turn|>\n"),
    "llama4": ("<|header_start|>{{ role }}<|header_end|>\n\n", "<|eot|>"),
}
"""What stands before and behind a message."""

PLACEHOLDERS: dict[str, str] = {
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "vipllava"), "<image>"),
    **dict.fromkeys(("idefics3", "smolvlm", "paligemma"), "<image>"),
    **dict.fromkeys(("pixtral", "mistral3"), "[IMG]"),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"),
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    **dict.fromkeys(("glm4v", "glm46v"), "<|begin_of_image|><|image|><|end_of_image|>"),
    **dict.fromkeys(("mllama", "llama4"), "<|image|>"),
    "gemma3": "<start_of_image>",
    "gemma4": "<|image|>",
    "internvl": "<IMG_CONTEXT>",
}
"""What a text says where an image goes."""

_BEGINS = {"llama2", "llama3", "tekken", "gemma", "gemma4", "llama4"}
_OWN_LINE = {"llava", "llava_next", "vipllava", "internvl"}


def chat_template(style: str, sees: str = "") -> str:
    """Return a Jinja template that takes contents as text or as a list of parts."""
    before, after = _TURNS[style]
    shown = PLACEHOLDERS.get(sees, "") + ("\\n" if sees in _OWN_LINE else "")
    before, after = before.replace("\n", "\\n"), after.replace("\n", "\\n")
    start = "{{ bos_token }}" if style in _BEGINS else ""
    before = "{{ '" + before.replace("{{ role }}", "' + role + '") + "' }}"
    before = before.replace("{{ role | upper }}", "' + role | upper + '")
    return (
        start + "{% for message in messages %}{% set role = message['role'] %}" + before + "{% if"
        " message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '" + shown + "' }}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '" + after + "' }}"
        "{% endfor %}{% if add_generation_prompt %}{% set role = 'assistant' %}"
        + ("" if style == "tekken" else before)
        + "{% endif %}"
    )
