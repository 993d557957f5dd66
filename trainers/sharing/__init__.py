"""Pushing to the Hub, cards of models and datasets, reports and the demo."""
