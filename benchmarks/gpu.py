"""The training steps of `training_step.py` on a CUDA device: ELECTRA-Small and -Base, compiled and not.

    pip install --no-deps electra-pytorch==0.1.2 rtd-gdes==0.1.4.1 liger-kernel
    python benchmarks/gpu.py [--json FILE] [--sizes electra-small electra-base] [--tokens 16384] [--repeats 3]

The variants are those of `training_step.py`, and `dense.liger`: `dense` with the generator's loss by Liger's fused
linear cross-entropy. That gives no samples, so these take the logits once more.
"""

import sys

import torch


if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.py needs a CUDA device, and this machine has none (training_step.py runs on a CPU)")

import training_step

from modeling_electra_exit.generator_head import sample_tokens


def with_liger(case: training_step.Case):
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    step, cross_entropy = training_step.ours(case, exit_policy="none"), LigerFusedLinearCrossEntropyLoss()

    def predict_tokens(states, targets, noise=None):
        head = step.model.generator.lm_head
        with torch.no_grad():
            samples = sample_tokens(head(states))
        return cross_entropy(head.weight, states, targets, head.bias), samples

    step.model._predict_tokens = predict_tokens
    return step


training_step.VARIANTS["dense.liger"] = with_liger
# A CPU's kernels are no choice here.
NAMES = [name for name in training_step.VARIANTS if name != "dense.torch-kernels"]

if __name__ == "__main__":
    training_step.main(__doc__, ["electra-small", "electra-base"], 128 * 128, NAMES)
