"""Chat templates that behave as those of the common families do, each with its answers in {% generation %}.

Written for these tests. `unmarked` is the same template without the marks, as most tokenizers bring it.
"""

import re

CHATML = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{- m.content + '<|im_end|>' }}{% endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Tools in the system turn, calls as JSON, results of several tools in one turn of the user.
QWEN = """{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools' }}{%- for t in tools %}{{- '\n' + (t | tojson) }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}{% generation %}
{%- if m.content %}{{- m.content }}{%- endif %}
{%- for call in m.tool_calls or [] %}
{%- if call.function %}{%- set call = call.function %}{%- endif %}
{{- '\n' if m.content or not loop.first else '' }}
{{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' + (call.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- elif not (loop.first and m.role == 'system') %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Reasoning only behind the last question; arguments as they come, text or object.
QWEN_THINKING = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}{{- '<|im_start|>system\n' }}{%- for t in tools %}{{- (t | tojson) + '\n' }}{%- endfor %}
{{- '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content = m.content if m.content is string else '' %}
{%- set thought = '' %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}{% generation %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}
{{- content }}
{%- for call in m.tool_calls or [] %}
{%- set f = call.function if call.function else call %}
{{- '\n<tool_call>{"name": "' + f.name + '", "arguments": ' }}
{%- if f.arguments is string %}{{- f.arguments }}{%- else %}{{- f.arguments | tojson }}{%- endif %}
{{- '}</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Trimmed contents between headers; a result as JSON, whatever it is; one call in a turn, ended by another token.
LLAMA3 = """{{- '<s>' }}
{%- for m in messages %}
{%- if m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('only one call at a time') }}{%- endif %}
{{- '<|header|>assistant<|/header|>\n\n' }}{% generation %}
{{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- (m.tool_calls[0].function.arguments | tojson) + '}<|eom|>' }}{% endgeneration %}
{%- elif m.role == 'tool' %}
{{- '<|header|>ipython<|/header|>\n\n' + (m.content | tojson) + '<|eot|>' }}
{%- elif m.role == 'user' and loop.first and tools %}
{{- '<|header|>user<|/header|>\n\n' }}{%- for t in tools %}{{- (t | tojson(indent=4)) + '\n\n' }}{%- endfor %}
{{- (m.content | trim) + '<|eot|>' }}
{%- elif m.role == 'assistant' %}
{{- '<|header|>assistant<|/header|>\n\n' }}{% generation %}{{- (m.content | trim) + '<|eot|>' }}{% endgeneration %}
{%- else %}{{- '<|header|>' + m.role + '<|/header|>\n\n' + (m.content | trim) + '<|eot|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\n\n' }}{%- endif %}"""

# The system text inside the first question; only questions and answers in turn; no generation prompt.
LLAMA2 = """{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}
{%- for m in rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
{%- if m.role == 'user' %}
{{- '<s>[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}
{%- else %}{% generation %}{{- ' ' + m.content.strip() + ' <|endoftext|>' }}{% endgeneration %}
{%- endif %}
{%- endfor %}"""

# Tools before the last question; calls as a JSON list with ids of nine letters; results as JSON objects.
MISTRAL = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{{- '<s>' }}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == ns.last %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
{%- endif %}{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' and m.tool_calls %}{% generation %}{{- '[TOOL_CALLS][' }}
{%- for call in m.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}{{- raise_exception('ids have nine letters') }}{%- endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']<|endoftext|>') }}
{%- endfor %}{% endgeneration %}
{%- elif m.role == 'assistant' %}{% generation %}{{- m.content + '<|endoftext|>' }}{% endgeneration %}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS]{"content": ' + (m.content | tojson) + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- elif m.role == 'system' %}{{- '[SYSTEM]' + m.content + '[/SYSTEM]' }}
{%- endif %}
{%- endfor %}"""

# Another name for the assistant; the system text before the first question; trimmed.
GEMMA = """{{- '<s>' }}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\n\n' %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}
{%- for m in rest %}
{%- if m.role not in ('user', 'assistant') %}{{- raise_exception('unknown role ' + m.role) }}{%- endif %}
{{- '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{- (m.content | trim) + '<end>' }}{% endgeneration %}
{%- else %}{{- (system if loop.first else '') + (m.content | trim) + '<end>' }}{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\n' }}{%- endif %}"""

PHI = """{%- for m in messages %}
{{- '<|' + m.role + '|>\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|end|>' }}{% endgeneration %}
{%- else %}{{- m.content + '<|end|>' }}{%- endif %}{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"""

# Calls before or instead of text, arguments taken as text; reasoning cut from the answer's text.
DEEPSEEK = """{{- '<s>' }}
{%- for m in messages if m.role == 'system' %}{{- m.content }}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}{{- '<|Assistant|>' }}{% generation %}
{%- if m.content is defined and m.content %}{{- m.content.split('</think>')[-1] }}{%- endif %}
{%- for call in m.tool_calls or [] %}
{{- '<call>' + call.type + ':' + call.function.name + '\n```json\n' + call.function.arguments + '\n```</call>' }}
{%- endfor %}
{{- '<|endoftext|>' }}{% endgeneration %}
{%- elif m.role == 'tool' %}{{- '<out>' + m.content + '</out>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|>' }}{%- endif %}"""

# Two templates in one tokenizer; the one for tools has a preamble and lists of actions.
COHERE = """{{- '<s>' }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<T><|BOT|>' }}{% generation %}{{- m.content + '<E>' }}{% endgeneration %}
{%- elif m.role in ('system', 'user') %}{{- '<T><|' + m.role | upper + '|>' + m.content + '<E>' }}
{%- else %}{{- raise_exception('no role ' + m.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<T><|BOT|>' }}{%- endif %}"""
COHERE_TOOLS = """{{- '<s><T><|SYSTEM|># Tools' }}
{%- for t in tools %}{{- '\n' + t.function.name + ': ' + (t.function.description or '') }}{%- endfor %}
{{- '<E>' }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<T><|BOT|>' }}{% generation %}
{%- if m.tool_calls %}{{- (m.content or '') + 'Action: [' }}
{%- for call in m.tool_calls %}
{{- {'tool_name': call.function.name, 'parameters': call.function.arguments} | tojson(indent=4) }}
{%- endfor %}{{- ']' }}
{%- else %}{{- m.content }}{%- endif %}{{- '<E>' }}{% endgeneration %}
{%- else %}{{- '<T><|' + m.role | upper + '|>' + m.content + '<E>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<T><|BOT|>' }}{%- endif %}"""

# Nothing ends a turn but the next header; results are observations.
GLM = """{{- '[gMASK]' }}
{%- if tools %}{{- '<|system|>\n' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<|assistant|>' }}{% generation %}{{- '\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}
{{- '\n<call>' + call.function.name }}
{%- for key, value in call.function.arguments.items() %}
{{- '\n<key>' + key + '</key><value>' }}
{{- (value if value is string else value | tojson) + '</value>' }}
{%- endfor %}{{- '</call>' }}{%- endfor %}{% endgeneration %}
{%- elif m.role == 'tool' %}
{{- '<|observation|>\n' + (m.content if m.content is string else m.content | tojson) }}
{%- else %}{{- '<|' + m.role + '|>\n' + m.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""

GRANITE = """{%- if tools %}{{- '<r>tools</r>' + (tools | tojson(indent=2)) + '<|endoftext|>\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<r>assistant</r>' }}{% generation %}{{- m.content or '' }}
{%- if m.tool_calls %}{{- '<|tool_call|>' + (m.tool_calls | tojson) }}{%- endif %}
{{- '<|endoftext|>' }}{% endgeneration %}
{%- else %}{{- '<r>' + m.role + '</r>' + m.content + '<|endoftext|>' }}{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<r>assistant</r>' }}{%- endif %}"""

# Channels: reasoning in one of its own, kept only where a call follows or the turn is the last.
CHANNELS = """{%- for m in messages %}
{%- if m.role == 'assistant' %}
{{- '<|start|>assistant' }}{% generation %}
{%- if m.thinking and (loop.last or m.tool_calls) %}{{- '<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
{{- '<|start|>assistant' }}{%- endif %}
{%- if m.tool_calls %}
{%- set f = m.tool_calls[0].function %}
{{- ' to=functions.' + f.name + '<|channel|>commentary json<|message|>' + (f.arguments | tojson) + '<|call|>' }}
{%- else %}{{- '<|channel|>final<|message|>' + m.content + '<|return|>' }}{%- endif %}{% endgeneration %}
{%- elif m.role == 'tool' %}{{- '<|start|>functions to=assistant<|message|>' + (m.content | tojson) + '<|end|>' }}
{%- elif m.role in ('system', 'developer') %}
{{- '<|start|>developer<|message|>' + m.content }}
{%- for t in tools or [] %}{{- '\ntype ' + t.function.name + ' = ' + (t.function.parameters | tojson) }}{%- endfor %}
{{- '<|end|>' }}
{%- else %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

# Arguments one by one, as XML.
CODER = """{%- if tools %}{{- '<|im_start|>system\n' }}{%- for t in tools %}
{{- '<function><name>' + t.function.name + '</name>' }}
{%- for name, schema in (t.function.parameters.properties or {}).items() %}
{{- '<parameter>' + name + ': ' + (schema | tojson) + '</parameter>' }}{%- endfor %}
{{- '</function>\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}{% generation %}
{{- m.content | trim if m.content is defined else '' }}
{%- for call in m.tool_calls or [] %}
{{- '\n<function=' + call.function.name + '>' }}
{%- for key, value in call.function.arguments | items %}
{{- '\n<parameter=' + key + '>\n' + (value | tojson if value is mapping else value | string) + '\n</parameter>' }}
{%- endfor %}{{- '\n</function>' }}{%- endfor %}
{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Contents as text or as parts, as models that see pictures have it.
PARTS = """{%- macro written(content) %}
{%- if content is string %}{{- content }}
{%- else %}{%- for part in content %}{{- '[' + part.type + ']' + part.text }}{%- endfor %}{%- endif %}
{%- endmacro %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{- written(m.content) + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{- written(m.content) + '<|im_end|>' }}{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

ALPACA = """{%- for m in messages %}
{%- if m.role == 'system' %}{{- m.content + '\n\n' }}
{%- elif m.role == 'user' %}{{- '### Instruction:\n' + m.content + '\n\n### Response:\n' }}
{%- elif m.role == 'assistant' %}{% generation %}{{- m.content + eos_token }}{% endgeneration %}{{- '\n\n' }}
{%- endif %}
{%- endfor %}"""

ZEPHYR = """{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|user|>\n' + m.content + eos_token }}
{%- elif m.role == 'system' %}{{- '<|system|>\n' + m.content + eos_token }}
{%- elif m.role == 'assistant' %}{{- '<|assistant|>\n' }}{% generation %}{{- m.content + eos_token }}{% endgeneration %}
{%- endif %}{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}"""

TWO_ENDS = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|im_end|><|endoftext|>' }}{% endgeneration %}
{%- else %}{{- m.content + '<|im_end|><|endoftext|>' }}{%- endif %}{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# Whole messages and calls as JSON: whatever a record has in them is in the text.
WHOLE = """{%- for t in tools or [] %}{{- '<tool>' + (t | tojson) + '</tool>\n' }}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- '<a>' }}{% generation %}{{- (m | tojson) + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{- '<q>' + (m | tojson) + '<|im_end|>' }}{%- endif %}{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<a>' }}{%- endif %}"""

# An empty list of tools is tools, too.
LISTS = """{%- if tools is not none %}
{{- 'Environment: ' + (tools | map(attribute='function.name') | join(', ')) + '\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{- 'A: ' }}{% generation %}{{- (m.content or '') }}
{%- for call in m.tool_calls or [] %}{{- ' !' + call.function.name + '(' + call.function.arguments | string + ')' }}
{%- endfor %}{{- '<|im_end|>' }}{% endgeneration %}
{%- else %}{{- m.role + ': ' + m.content | string + '<|im_end|>' }}{%- endif %}{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'A: ' }}{%- endif %}"""

FAMILIES = {
    "chatml": CHATML,
    "qwen": QWEN,
    "qwen_thinking": QWEN_THINKING,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi": PHI,
    "deepseek": DEEPSEEK,
    "cohere": {"default": COHERE, "tool_use": COHERE_TOOLS},
    "glm": GLM,
    "granite": GRANITE,
    "channels": CHANNELS,
    "coder": CODER,
    "parts": PARTS,
    "alpaca": ALPACA,
    "zephyr": ZEPHYR,
    "two_ends": TWO_ENDS,
    "whole": WHOLE,
    "lists": LISTS,
}


def unmarked(family):
    """The same without the marks."""
    if isinstance(family, dict):
        return {name: unmarked(text) for name, text in family.items()}
    return re.sub(r"\{%-? (end)?generation -?%\}", "{{- '' }}", family)
