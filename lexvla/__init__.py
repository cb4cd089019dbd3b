"""LexVLA: images and texts as weighted words."""
