"""Small tokenizers of the kinds that models have, with what transformers makes of texts and conversations.

usage: make_tokenizers.py OUT

Each kind goes to OUT/KIND: tokenizer.json and tokenizer_config.json as transformers saves them, trained on a few pages of
examples/calibration/calibration.txt; and OUT/KIND.json: `before` (what its template puts before a text), `texts` ([text, ids without special
tokens]) and `chats` ([template, line of JSONL, rendered, ids]).
"""
import json, os, sys

os.environ["HF_HUB_OFFLINE"] = "1"
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
    "  two  spaces,\ttabs\tand\n\n\nempty lines \n at the end  ",
    "Déjà vu – naïve façade; e\u0301 is é in two. ½ ﬁne ①",
    "中文字符 और हिन्दी, العربية and Ελληνικά: 12345678901, 3.14, -7e-12",
    "emoji 😀👩‍👩‍👧 and a lone \u200b zero width; \u00a0no break\u00a0",
    "special <s> tokens </s> in <|im_start|>user text [CLS] are [SEP] parsed <unk>",
    "x",
    "CamelCaseWords, don't, WE'RE, I'll it's 'quoted' \"twice\" --- ... !!!???",
    "def f(x):\n    return {'a': [1, 2]}  # comment\n",
]
CONVERSATION = [{"role": "user", "content": " Where is the ball? "}, {"role": "assistant", "content": "On the lawn.\nIt's blue."},
                {"role": "user", "content": "Merci, 再见!"}, {"role": "assistant", "content": "Good bye 👋"}]
LINES = [{"messages": CONVERSATION}, {"messages": [{"role": "system", "content": "Be brief."}, *CONVERSATION]},
         {"messages": [{"role": "user", "content": "weather?"}],
          "tools": [{"type": "function", "function": {"name": "weather", "description": "It's \"now\" <é>", "parameters": {"a": [1, 2.5, None, True]}}}]}]

# As the main families have them, shortened.
TEMPLATES = {
    "chatml": "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {%- for tool in tools %}\n        {{- \"\\n\" }}\n        {{- tool | tojson }}\n    {%- endfor %}\n"
              "    {{- '<|im_end|>\\n' }}\n{%- elif messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n{%- endif %}\n"
              "{%- for message in messages %}\n    {%- if not (message.role == 'system' and loop.first) %}\n"
              "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
              "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "headers": "{{- bos_token }}\n{%- if custom_tools is defined %}{% set tools = custom_tools %}{%- endif %}\n{%- if not tools is defined %}{%- set tools = none %}{%- endif %}\n"
               "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n"
               "{%- else %}\n    {%- set system_message = \"\" %}\n{%- endif %}\n{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n{{- system_message }}\n"
               "{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- \"\\n\\n\" }}{%- endfor %}{%- endif %}\n{{- \"<|eot_id|>\" }}\n"
               "{%- for message in messages %}\n    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n",
    "inst": "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% endif %}"
            "{% endfor %}{% for message in messages | selectattr('role', 'ne', 'system') %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + (ns.system + '\\n\\n' if loop.last and ns.system else '') + message['content'] + ' [/INST]' }}"
            "{% else %}{{ ' ' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}",
    "turns": "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}"
             "{%- else -%}{%- set first = '' -%}{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
             "{%- if (message['role'] == 'assistant') -%}{%- set role = \"model\" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
             "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}{%- if message['content'] is string -%}{{ message['content'] | trim }}"
             "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}{{ item['text'] }}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\\n' }}{%- endfor -%}",
    "bars": "{% for message in messages %}{% if message['role'] in ['system', 'user', 'assistant'] and message['content'] %}{{ '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] ~ '<|end|>\\n' }}"
            "{% endif %}{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
    "blocks": "{% generation %}{{ messages | map(attribute='role') | join(',') | upper }}{% endgeneration %}\n{% macro show(m) %}{{ m.role.title() }}: {{ m.content.split('\\n')[0].rstrip() }};{% endmacro %}\n"
              "    {% for m in messages %}\n        {{ show(m) }}\n        {% if loop.index > 2 %}{% break %}{% endif %}\n    {% endfor %}\n{{ messages | length }} {{ messages[-1]['content'].startswith('Good') }} {{ {'b': 1, 'a': [none, true]} | tojson }}\n",
}


def bpe(**kw):
    return Tokenizer(models.BPE(**kw))


def template(before, after=()):
    def make(tokenizer):
        single = " ".join([*before, "$A", *after])
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(t, tokenizer.token_to_id(t)) for t in {*before, *after}])
    return make


def byte_level(pattern, before):
    tokenizer = bpe()
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    return tokenizer, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), template(before)


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(metaspace):
    """Llama 2 (by its normalizer) or Mistral (by Metaspace): BPE with byte fallback."""
    tokenizer = bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *BYTES]
    return tokenizer, trainers.BpeTrainer(vocab_size=420, special_tokens=special, max_token_length=8), template(["<s>"])


def gemma():
    tokenizer = bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True, ignore_merges=False)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "</s>", "<s>", "<unk>", "<start_of_turn>", "<end_of_turn>", *BYTES]
    return tokenizer, trainers.BpeTrainer(vocab_size=420, special_tokens=special, max_token_length=8), template(["<s>"])


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return tokenizer, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>"), template(["<s>"], ["</s>"])


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special), template(["[CLS]"], ["[SEP]"])


KINDS = {
    "byte-level": lambda: byte_level(None, []),
    "byte-level-bos": lambda: byte_level(LLAMA3, ["<s>"]),
    "sentencepiece": lambda: sentencepiece(False),
    "metaspace": lambda: sentencepiece(True),
    "gemma": gemma,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


def main():
    out = sys.argv[1]
    with open(os.path.join(HERE, "..", "..", "examples", "calibration", "calibration.txt"), encoding="utf-8") as f:
        text = f.read()[:30000]
    for name, make in KINDS.items():
        tokenizer, trainer, finish = make()
        trainer.show_progress = False
        tokenizer.train_from_iterator(text.split("\n"), trainer)
        finish(tokenizer)
        # Bytes are words of the vocabulary, and no tokens that a text can name.
        saved = json.loads(tokenizer.to_str())
        saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] not in BYTES]
        tokenizer = Tokenizer.from_str(json.dumps(saved))
        is_bert = name == "wordpiece"
        bos, eos = ("[CLS]", "[SEP]") if is_bert else ("<s>", "</s>")
        folder = os.path.join(out, name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos).save_pretrained(folder)
        opened = AutoTokenizer.from_pretrained(folder)
        path = os.path.join(folder, "tokenizer.json")
        with open(path, encoding="utf-8") as f:
            saved = json.load(f)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(saved, f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
        plain = opened("a", add_special_tokens=False).input_ids
        whole = opened("a").input_ids
        before = whole[: next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)]
        texts = [[t, opened(t, add_special_tokens=False).input_ids] for t in TEXTS]
        chats = []
        for template_name, source in TEMPLATES.items() if name in ("byte-level", "byte-level-bos", "metaspace") else ():
            opened.chat_template = source
            for line in LINES:
                args = dict(tools=line.get("tools"))
                rendered = opened.apply_chat_template(line["messages"], tokenize=False, **args)
                ids = opened(rendered, add_special_tokens=False).input_ids
                chats.append([template_name, line, rendered, ids])
        used = {t: TEMPLATES[t] for t in {c[0] for c in chats}}
        with open(os.path.join(out, name + ".json"), "w", encoding="utf-8") as f:
            json.dump({"before": before, "texts": texts, "templates": dict(sorted(used.items())), "chats": chats}, f, ensure_ascii=False)
            f.write("\n")
        print(name, len(opened), before, len(chats))


if __name__ == "__main__":
    main()
