"""What of a text need not be computed again: prefixes and parked conversations."""
