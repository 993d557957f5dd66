"""The config's fields as flags."""

import re
from dataclasses import fields

from modeling_electra_exit import ElectraEarlyExitConfig


# Set from the tokenizer, from the class, by calibration or by Transformers itself; a flag could only conflict.
_NOT_A_FLAG = {
    "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "is_encoder_decoder",
    "id2label", "label2id", "problem_type", "pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id",
    "sep_token_id", "is_decoder", "add_cross_attention", "use_cache", "electra_exit_version", "pretraining_depths",
    "inference_exit_criterion", "inference_exit_thresholds", "inference_exit_temperatures",
}  # fmt: skip


def config_flags() -> dict[str, dict]:
    """The config's fields as command-line flags: name -> keyword arguments for `add_argument`.

    Every default is `None`, meaning "not given", so the config remains the only place that defines defaults.
    """
    flags, described = {}, _described_fields(ElectraEarlyExitConfig.__doc__)
    for config_field in fields(ElectraEarlyExitConfig):
        if config_field.name in _NOT_A_FLAG:
            continue
        default = config_field.default
        annotation = str(config_field.type)
        if "list" in annotation:
            parse = {"type": float if "float" in annotation else int, "nargs": "*"}
        elif "bool" in annotation:
            parse = {"type": _parse_bool}
        elif "float" in annotation:
            parse = {"type": float}
        elif "int" in annotation:
            parse = {"type": int}
        else:
            parse = {"type": str}
        text = described.get(config_field.name, f"Default: {default}.")
        flags[config_field.name] = {**parse, "default": None, "help": text.replace("%", "%%")}
    return flags


def _described_fields(docstring: str) -> dict[str, str]:
    """Map each field to its description in the docstring's "Args" section, which is also the text of --help."""
    entry = re.compile(r"^ {8}(\w+) \([^\n]*?(?:defaults to `?([^`)]*)`?)?\):\n((?: {12}[^\n]*\n)+)", re.MULTILINE)
    texts = {}
    for name, default, text in entry.findall(docstring):
        texts[name] = " ".join(text.split()) + (f" (default: {default})" if default else "")
    return texts


def _parse_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise ValueError(f"must be true or false, got {text}")
