"""Predictions of adapters and baselines, their scores, and reports."""
