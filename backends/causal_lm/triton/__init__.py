"""Triton's side: tensors in and out, responses, metrics."""
