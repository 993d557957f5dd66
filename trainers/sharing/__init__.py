"""The Hub, and the cards of models and data sets."""
