"""Answers that must have a form: compiled grammars and the tokens that keep to them."""
