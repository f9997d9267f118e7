"""One request while it runs: its tokens, how they are chosen, its text."""
