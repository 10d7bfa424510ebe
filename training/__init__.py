"""Recipes, two-stage training, and what a run will cost."""
