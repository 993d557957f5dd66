"""The generator's output layer: loss, samples and gradients at the masked positions from a single softmax.

The logits of all masked tokens are by far the largest tensor of an ELECTRA step. A plain implementation holds five
tensors of that size: logits, log-softmax, its gradient, the probabilities to sample from and their cumulative sum.
Here the rows are processed in chunks, gradients included, and each chunk uses one buffer.
"""

import contextlib
import math

import torch


# Maximum number of logits per chunk: on a CPU 16 MB in fp32, beyond which larger chunks are hardly faster. On other
# devices 256 MB: a chunk needs about twenty kernel launches, and each should occupy the whole device.
CHUNK_ELEMENTS = 2**22
CHUNK_ELEMENTS_OF_A_DEVICE = 2**26
# Columns per block when sampling; about the square root of a typical vocabulary size.
BLOCK = 128


def sample_in_proportion(weights: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """Sample one column per row with probabilities proportional to `weights`.

    Inverts the cumulative distribution in two steps: first a block of columns, then a column of that block. This is
    exact, and the cumulative sums run over hundreds of numbers per row instead of the whole vocabulary.

    Args:
        weights (`torch.FloatTensor` of shape `(rows, columns)`): fp32, at least 0, with a positive sum in every row;
            need not sum to 1.
        noise (`torch.FloatTensor` of shape `(rows, 2)`, *optional*): uniform in [0, 1), for the two steps. If omitted,
            drawn from torch's generator.

    Returns:
        `torch.LongTensor` of shape `(rows,)`: the sampled columns.
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
    """Sample tokens from softmax(logits), computed in fp32.

    Args:
        logits (`torch.FloatTensor` of shape `(rows, vocabulary)`).
        draws (`int`, *optional*): samples per row, with replacement. If omitted, one.

    Returns:
        `torch.LongTensor` of shape `(rows,)`, or `(rows, draws)` if `draws` is given.
    """
    probabilities = logits.detach().float().softmax(dim=-1)
    if draws is None:
        return sample_in_proportion(probabilities)
    return torch.multinomial(probabilities, draws, replacement=True)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    cumulative = weights.cumsum(dim=1)
    # Scaled by the last entry, because a sum computed separately would differ from it by rounding.
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_max(weights.shape[1] - 1)


class PredictMaskedTokens(torch.autograd.Function):
    """Cross-entropy of, and samples from, softmax(hidden @ weight.T + bias), chunk by chunk.

    The forward pass also computes the gradients, while a chunk's probabilities are in memory. The backward pass scales
    them by the incoming gradient (as in Liger's fused linear cross-entropy). Under autocast the matrix products use
    its dtype; softmax, loss and sampling always use fp32.

    Args:
        hidden (`torch.FloatTensor` of shape `(rows, width)`).
        weight (`torch.FloatTensor` of shape `(vocabulary, width)`).
        bias (`torch.FloatTensor` of shape `(vocabulary,)`).
        targets (`torch.LongTensor` of shape `(rows,)`): -100 excludes a row from loss and gradients.
        noise (`torch.FloatTensor` of shape `(rows, 2)`, *optional*): as in [`sample_in_proportion`].

    Returns:
        The mean cross-entropy in nats, fp32 of shape `()`, 0 without rows; and one sample per row, `torch.LongTensor`
        of shape `(rows,)`, not differentiable.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, noise=None):
        device = hidden.device.type
        casts = device != "meta"  # `torch.amp.is_autocast_available` would break the graph in PyTorch 2.11
        dtype = torch.get_autocast_dtype(device) if casts and torch.is_autocast_enabled(device) else hidden.dtype
        needs_gradients = any(ctx.needs_input_grad)
        loss = torch.zeros((), device=hidden.device)
        counted = (targets != -100).unsqueeze(1)
        targets = targets.clamp_min(0).unsqueeze(1)
        grad_hidden, grad_weight, grad_bias = torch.zeros_like(hidden), None, torch.zeros_like(bias)
        samples = torch.empty(len(targets), dtype=torch.long, device=hidden.device)
        scale = counted.sum().clamp_min(1).reciprocal()
        scales = counted * scale
        # Chunks of equal size: a last chunk of a few rows would cost nearly as much as a full one.
        elements = CHUNK_ELEMENTS if device == "cpu" else CHUNK_ELEMENTS_OF_A_DEVICE
        chunks = max(1, math.ceil(len(targets) / max(1, elements // len(weight))))
        rows = max(1, math.ceil(len(targets) / chunks))
        with torch.autocast(device, enabled=False) if casts else contextlib.nullcontext():
            matrix, offset = weight.to(dtype), bias.to(dtype)
            for start in range(0, len(targets), rows):
                here = slice(start, start + rows)
                states, target = hidden[here].to(dtype), targets[here]
                logits = torch.addmm(offset, states, matrix.t()).float()
                logits -= logits.amax(dim=1, keepdim=True)
                target_logits = logits.gather(1, target)
                weights = logits.exp_()
                total = weights.sum(dim=1, keepdim=True)
                loss += (total.log() - target_logits).where(counted[here], 0).sum() * scale
                samples[here] = sample_in_proportion(weights, None if noise is None else noise[here])
                if not needs_gradients:
                    continue
                # d loss / d logits = (softmax - one-hot) / rows
                gradient = weights.mul_(scales[here] * total.reciprocal()).scatter_add_(1, target, -scales[here])
                grad_bias += gradient.sum(dim=0)
                gradient = gradient.to(dtype)
                grad_hidden[here] = gradient @ matrix
                chunk_gradient = states.t() @ gradient  # transposed back once, after all chunks
                grad_weight = chunk_gradient.float() if grad_weight is None else grad_weight.add_(chunk_gradient)
        if needs_gradients:
            transposed = torch.zeros_like(weight.t()) if grad_weight is None else grad_weight.to(weight.dtype)
            grad_weight = transposed.t().contiguous()
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(samples)
        return loss, samples

    @staticmethod
    def backward(ctx, grad_loss, _):
        # In place: the gradients are used once, and `grad_weight` is as large as the vocabulary matrix.
        return *(gradient.mul_(grad_loss) for gradient in ctx.saved_tensors), None, None
