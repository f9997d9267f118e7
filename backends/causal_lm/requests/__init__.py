"""What a request may ask: the tensor contract's values and ranges."""
