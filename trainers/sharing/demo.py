"""A web page for trying a model. A pre-trained model marks the tokens that look replaced; a fine-tuned model shows its
prediction and the exit layer. `electra-exit demo` serves it. A Space uses a copy of this file as `app.py`, so it
imports nothing from this package.
"""

import json
import os
from html import escape
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer


# In a Space: the folder of the model, or a Hub id.
CHECKPOINT = "model"
NAME = "A model"
# Auto class by the end of the name of the checkpoint's class.
KINDS = {
    "ForPreTraining": "AutoModelForPreTraining",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}
EXAMPLE = "The president signed the law and walked slowly back to the banana."
# System fonts, so that the page loads nothing from other servers.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
STYLE = """
button.primary { background: #1f5fa8; color: #fff; border-color: #1f5fa8; }
button.primary:hover { background: #174a85; }
.tokens { display: flex; flex-wrap: wrap; gap: .45rem .3rem; padding: 0; margin: .3rem 0 1rem; list-style: none; }
.tokens li { margin: 0; padding: .1rem .45rem; border-radius: .35rem; text-align: center; color: #1c2024;
             background: color-mix(in srgb, #e8590c calc(var(--p) * 62%), #eef1f4); }
.tokens small { display: block; font-size: .75rem; color: #1c2024; font-variant-numeric: tabular-nums; }
.answer { font-size: 1.5rem; font-weight: 600; }
.result.result table { border-collapse: collapse; margin: .6rem 0; }
.result.result :is(th, td) { padding: .25rem 1.4rem .25rem .5rem; text-align: left;
                             font-variant-numeric: tabular-nums; }
.result caption { text-align: left; }
"""


class Demo:
    """A model that answers a text with HTML.

    Args:
        checkpoint (`str`): folder or Hub id of a pre-trained or fine-tuned model.
        trust_remote_code (`bool`): load the code from the checkpoint.

    Raises:
        ValueError: if the checkpoint's class is not one of [`KINDS`].
    """

    def __init__(self, checkpoint: str, trust_remote_code: bool = False):
        options = {"trust_remote_code": trust_remote_code}
        self.config = AutoConfig.from_pretrained(checkpoint, **options)
        architecture = (self.config.architectures or ["unknown"])[0]
        self.kind = next((kind for kind in KINDS if architecture.endswith(kind)), None)
        if self.kind is None:
            raise ValueError(
                f"{checkpoint} must be a pre-trained model or a fine-tuned text or token model, got {architecture}"
            )
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
        self.model = getattr(transformers, KINDS[self.kind]).from_pretrained(checkpoint, **options).eval()
        self.pairs = _text_columns(checkpoint) == 2

    @torch.inference_mode()
    def answer(self, text: str, second: str = "") -> str:
        """The model's output for a text or a pair of texts, as HTML."""
        if not text.strip():
            return '<p role="status">Enter a text first.</p>'
        told = {"ForPreTraining": self._tokens, "ForTokenClassification": self._words}.get(self.kind, self._label)
        return f'<div class="result" role="status">{told(text, second)}</div>'

    def _encode(self, *texts, **options):
        length = self.config.max_position_embeddings
        return self.tokenizer(*texts, truncation=True, max_length=length, return_tensors="pt", **options)

    def _tokens(self, text: str, _: str) -> str:
        encoded = self._encode(text)
        probabilities = self.model(**encoded).logits.float().sigmoid()[0].tolist()
        ids = encoded["input_ids"][0].tolist()
        special = set(self.tokenizer.all_special_ids)
        found = [
            (self.tokenizer.convert_ids_to_tokens(number), probability)
            for number, probability in zip(ids, probabilities, strict=True)
            if number not in special or number == self.tokenizer.unk_token_id
        ]
        items = "".join(
            f'<li style="--p: {probability:.3f}">{escape(token)}<small>{probability:.0%}</small></li>'
            for token, probability in found
        )
        likely = max(found, key=lambda each: each[1], default=None)
        said = ""
        if likely is not None:
            which = "Most likely replaced" if likely[1] >= 0.5 else "No token looks replaced; the most likely is"
            said = f"<p>{which}: <b>{escape(likely[0])}</b>, {likely[1]:.0%}.</p>"
        return (f"{said}<p>Probability that each token is a replacement:</p>"
                f'<ul class="tokens" aria-label="tokens">{items}</ul>')  # fmt: skip

    def _label(self, text: str, second: str) -> str:
        encoded = self._encode(*([text, second] if self.pairs else [text]))
        outputs = self.model(**encoded)
        logits, names = outputs.logits[0].float(), self.config.id2label
        depth = self._depth(getattr(outputs, "exit_layers", None))
        if self.config.problem_type == "regression" or len(logits) == 1:
            return f'<p class="answer">{logits[0]:.3f}</p>{depth}'
        several = self.config.problem_type == "multi_label_classification"
        probabilities = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        ranked = sorted(((names[number], p) for number, p in enumerate(probabilities)), key=lambda each: -each[1])
        chosen = [name for name, p in ranked if p >= 0.5] if several else [ranked[0][0]]
        rows = "".join(f'<tr><th scope="row">{escape(str(name))}</th><td>{p:.1%}</td></tr>' for name, p in ranked[:20])
        head = '<tr><th scope="col">label</th><th scope="col">probability</th></tr>'
        answer = escape(", ".join(map(str, chosen)) or "none")
        return f'<p class="answer">{answer}</p>{depth}<table>{head}{rows}</table>'

    def _words(self, text: str, _: str) -> str:
        words = text.split()
        encoded = self._encode(words, is_split_into_words=True)
        outputs = self.model(**encoded)
        firsts: dict[int, int] = {}
        for place, number in enumerate(encoded.word_ids()):
            if number is not None:
                firsts.setdefault(number, place)
        best = outputs.logits[0].float().softmax(-1).max(-1)
        layers = getattr(outputs, "exit_layers", None)
        head = ("word", "tag", "probability", *(() if layers is None else ("exit layer",)))
        rows = [
            (words[number], self.config.id2label[int(best.indices[at])], f"{best.values[at]:.1%}",
             *(() if layers is None else (int(layers[0, at]),)))
            for number, at in firsts.items()
        ]  # fmt: skip
        cells = "".join(
            f'<tr><th scope="row">{escape(word)}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in rest)}</tr>'
            for word, *rest in rows
        )
        titles = "".join(f'<th scope="col">{title}</th>' for title in head)
        places = torch.tensor(list(firsts.values()))
        return f"{self._depth(None if layers is None else layers[0, places])}<table><tr>{titles}</tr>{cells}</table>"

    def _depth(self, layers: torch.Tensor | None) -> str:
        """The exit layer, or the mean over several, and the share of the layers saved."""
        every = self.config.num_hidden_layers
        if layers is None:
            return f"<p>Computed by all {every} layers: this model has no calibrated exits.</p>"
        mean = layers.float().mean().item()
        where = f"layer {mean:.0f}" if layers.numel() == 1 else f"{mean:.1f} layers on average"
        return f"<p>Exited after {where} of {every}: {1 - mean / every:.0%} of the layers saved.</p>"


def _text_columns(checkpoint: str) -> int:
    """The number of texts per example of the model's task, as recorded by its run."""
    path = Path(checkpoint, "metrics.json")
    if not path.is_file():
        return 1
    how = json.loads(path.read_text(encoding="utf-8")).get("finetuning", {})
    return len(how.get("text_columns", ["text"]))


def page(demo: Demo, name: str) -> gr.Blocks:
    """Build the page. It is usable by keyboard alone, and screen readers announce its results."""
    task = {
        "ForPreTraining": "Enter a text. The model estimates for each token whether it is a replacement.",
        "ForSequenceClassification": "Enter a text. The model predicts its label and shows the exit layer.",
        "ForTokenClassification": "Enter a text. The model tags its words and shows the exit layer of each.",
    }[demo.kind]
    with gr.Blocks(title=f"{name}: electra-early-exit", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {escape(name)}\n\n{task}")
        text = gr.Textbox(EXAMPLE, label="Text", lines=3, autofocus=True, max_length=100_000)
        second = gr.Textbox(label="Second text", lines=3, visible=demo.pairs, max_length=100_000)
        button = gr.Button("Run", variant="primary")
        result = gr.HTML(demo.answer(EXAMPLE), label="Result")
        said = {"fn": demo.answer, "inputs": [text, second], "outputs": result}
        button.click(**said, api_name="predict")
        text.submit(**said, api_visibility="private")
    return blocks


def launch(blocks: gr.Blocks, **options):
    """Serve the page without a public link; `options` are those of `Blocks.launch`."""
    own = {"share": False, "ssr_mode": False, "footer_links": []}
    return blocks.launch(**own, **options, theme=gr.themes.Default(**FONTS), css=STYLE)


if __name__ == "__main__":
    launch(page(Demo(CHECKPOINT, trust_remote_code=True), NAME))
