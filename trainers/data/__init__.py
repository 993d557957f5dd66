"""From text to packed sequences of token ids."""
