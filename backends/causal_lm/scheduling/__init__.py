"""Who runs next, who waits, when text leaves; pure policy."""
