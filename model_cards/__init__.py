"""The model card's template, and the rendered cards of the checkpoints this project measured."""
