"""`electra-exit demo`."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .hub import check_reachable
from .info import NoModelError, find
from .parser import Parser


SHOWN = ("ForPreTraining", "ForSequenceClassification", "ForTokenClassification")


def run(argv: Sequence[str]) -> int:
    parser = demo_parser()
    args = parser.parse_args(list(argv))
    check_reachable(parser, [args.model])
    try:
        files, _ = find(args.model)
        config = files.json("config.json")
    except NoModelError as error:
        parser.error(str(error))
    architecture = (config.get("architectures") or ["unknown"])[0]
    if not architecture.endswith(SHOWN):
        parser.error(
            f"{args.model} must be a pre-trained model or a fine-tuned text or token model, got {architecture}"
        )
    if find_spec("gradio") is None:
        parser.error("the demo needs Gradio: pip install 'electra-early-exit[web]'")
    checkpoint = str(getattr(files, "path", args.model))
    name = Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint
    if args.space is not None:
        from modeling_electra_exit.trainers.sharing.space import write_space

        folder = write_space(checkpoint, name, args.space)
        print(f"{folder}: upload it with `hf upload USER/NAME {folder} --repo-type space`")
        return 0
    return serve(checkpoint, name, args.port)


def serve(checkpoint: str, name: str, port: int | None) -> int:
    """Serve the page on 127.0.0.1 until Ctrl-C."""
    from modeling_electra_exit.trainers.errors import UsageError, naming_failures
    from modeling_electra_exit.trainers.sharing.demo import Demo, launch, page

    with naming_failures(checkpoint):
        blocks = page(Demo(checkpoint), name)
    try:
        _, url, _ = launch(blocks, server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True)
    except OSError as error:
        raise UsageError(f"--port {port} is in use; choose another, or leave it out") from error
    print(f"{url} (press Ctrl-C to stop)", flush=True)
    try:
        blocks.block_thread()
    finally:
        blocks.close(verbose=False)
    return 0


def demo_parser() -> Parser:
    parser = Parser(
        prog="electra-exit demo",
        description="Serve a local web page for trying a model. A pre-trained model shows how likely each token of a "
        "text is to be a replacement; a fine-tuned model shows its prediction, the exit layer and the layers saved.",
    )
    parser.add_argument("model", metavar="FOLDER", help="a pre-trained or fine-tuned model, folder or Hub id")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: the first free port from 7860 on)")
    parser.add_argument("--space", type=Path, metavar="OUT", help="write the page as a Space to this folder instead")
    return parser
