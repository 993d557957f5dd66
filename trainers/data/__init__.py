"""Reading, tokenizing and packing of text."""
