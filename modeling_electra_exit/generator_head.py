"""The generator's output layer: loss, samples and gradients at the masked positions, the softmax computed once.

The logits of all masked tokens are the largest tensor of an ELECTRA step by far, and a plain implementation holds five
of that size: logits, log-softmax, its gradient, the probabilities to sample from and their cumulative sum. Here a few
rows at a time are taken through everything that needs them, the gradients included, and one buffer serves it all.
"""

import contextlib
import math

import torch


# Logits held at a time, at most: on a CPU 16 MB of fp32, of which larger blocks are hardly faster. On any other device
# 256 MB: a chunk has some twenty launches, and each should have work for all of the device.
CHUNK_ELEMENTS = 2**22
CHUNK_ELEMENTS_OF_A_DEVICE = 2**26
# Probabilities summed at a time when sampling; about the square root of a usual vocabulary.
BLOCK = 128


def sample_in_proportion(weights: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """One column a row, by inverting the cumulative distribution in two steps: first a block of columns, then a
    column of it. That is exact, and adds up hundreds of numbers a row instead of the whole vocabulary.

    Args:
        weights (`torch.FloatTensor` of shape `(rows, columns)`): at least 0, in fp32, not all 0 in a row; need not sum
            to 1.
        noise (`torch.FloatTensor` of shape `(rows, 2)`, *optional*): uniform in [0, 1), for the two steps. Left out:
            from torch's generator.

    Returns:
        `torch.LongTensor` of shape `(rows,)`.
    """
    noise = torch.rand(len(weights), 2, device=weights.device) if noise is None else noise
    columns = weights.shape[1]
    whole = columns - columns % BLOCK
    sums = torch.cat(
        [weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=2), weights[:, whole:].sum(dim=1, keepdim=True)], dim=1
    )
    block = _invert(sums, noise[:, :1])
    inside = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    chosen = weights.gather(1, inside.clamp_max(columns - 1)).masked_fill(inside >= columns, 0.0)
    return (block * BLOCK + _invert(chosen, noise[:, 1:])).squeeze(1).clamp_max(columns - 1)


def sample_tokens(logits: torch.Tensor, draws: int | None = None) -> torch.Tensor:
    """Tokens from softmax(logits), in fp32.

    Args:
        logits (`torch.FloatTensor` of shape `(rows, vocabulary)`).
        draws (`int`, *optional*): how many a row. Left out: one.

    Returns:
        `torch.LongTensor` of shape `(rows,)`, or `(rows, draws)`.
    """
    probabilities = logits.detach().float().softmax(dim=-1)
    if draws is None:
        return sample_in_proportion(probabilities)
    return torch.multinomial(probabilities, draws, replacement=True)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    cumulative = weights.cumsum(dim=1)
    # Scaled by the last entry instead of by a sum computed elsewhere, which rounding would leave beside it.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_max(weights.shape[1] - 1)


class PredictMaskedTokens(torch.autograd.Function):
    """Cross-entropy of, and samples from, softmax(hidden @ weight.T + bias), chunk by chunk.

    The gradients are computed on the way forward, while a chunk's probabilities are at hand, and multiplied on the way
    back by the gradient that arrives (as in Liger's fused linear cross-entropy). Under autocast the matrix products
    run in its dtype; softmax, loss and sampling are in fp32 always.

    Args:
        hidden (`torch.FloatTensor` of shape `(rows, width)`).
        weight (`torch.FloatTensor` of shape `(vocabulary, width)`).
        bias (`torch.FloatTensor` of shape `(vocabulary,)`).
        targets (`torch.LongTensor` of shape `(rows,)`): -100 leaves a row out of loss and gradients.
        noise (`torch.FloatTensor` of shape `(rows, 2)`, *optional*): as in [`sample_in_proportion`].

    Returns:
        The mean cross-entropy, fp32 of shape `()` and 0 for no rows; and one sample a row, `torch.LongTensor` of shape
        `(rows,)`, through which no gradient flows.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, noise=None):
        device = hidden.device.type
        casts = torch.amp.is_autocast_available(device)  # not on `meta`
        dtype = torch.get_autocast_dtype(device) if casts and torch.is_autocast_enabled(device) else hidden.dtype
        wants_gradients = any(ctx.needs_input_grad)
        loss = torch.zeros((), device=hidden.device)
        counted = (targets != -100).unsqueeze(1)
        targets = targets.clamp_min(0).unsqueeze(1)
        grad_hidden, grad_weight, grad_bias = torch.zeros_like(hidden), None, torch.zeros_like(bias)
        samples = torch.empty(len(targets), dtype=torch.long, device=hidden.device)
        scale = counted.sum().clamp_min(1).reciprocal()
        scales = counted * scale
        # As many in each chunk: a rest of a few rows would cost nearly as much as a whole one.
        elements = CHUNK_ELEMENTS if device == "cpu" else CHUNK_ELEMENTS_OF_A_DEVICE
        chunks = max(1, math.ceil(len(targets) / max(1, elements // len(weight))))
        rows = max(1, math.ceil(len(targets) / chunks))
        with torch.autocast(device, enabled=False) if casts else contextlib.nullcontext():
            matrix, offset = weight.to(dtype), bias.to(dtype)
            for start in range(0, len(targets), rows):
                here = slice(start, start + rows)
                states, wanted = hidden[here].to(dtype), targets[here]
                logits = torch.addmm(offset, states, matrix.t()).float()
                logits -= logits.amax(dim=1, keepdim=True)
                of_target = logits.gather(1, wanted)
                weights = logits.exp_()
                total = weights.sum(dim=1, keepdim=True)
                loss += (total.log() - of_target).where(counted[here], 0).sum() * scale
                samples[here] = sample_in_proportion(weights, None if noise is None else noise[here])
                if not wants_gradients:
                    continue
                # d loss / d logits = (softmax - one-hot) / rows
                gradient = weights.mul_(scales[here] * total.reciprocal()).scatter_add_(1, wanted, -scales[here])
                grad_bias += gradient.sum(dim=0)
                gradient = gradient.to(dtype)
                grad_hidden[here] = gradient @ matrix
                of_chunk = states.t() @ gradient  # transposed back once, when all chunks are in it
                grad_weight = of_chunk.float() if grad_weight is None else grad_weight.add_(of_chunk)
        if wants_gradients:
            transposed = torch.zeros_like(weight.t()) if grad_weight is None else grad_weight.to(weight.dtype)
            grad_weight = transposed.t().contiguous()
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(samples)
        return loss, samples

    @staticmethod
    def backward(ctx, grad_loss, _):
        # In place: the gradients are needed once, and a vocabulary's worth of them is not worth a copy.
        return *(gradient.mul_(grad_loss) for gradient in ctx.saved_tensors), None, None
