"""Lenses that are fitted: affine maps of hidden states in front of the model's own head."""
