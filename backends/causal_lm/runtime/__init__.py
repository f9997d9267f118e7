"""A graph and its states in memory: what a runtime must do, and ONNX Runtime's way."""
