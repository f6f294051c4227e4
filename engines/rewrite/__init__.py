"""Graph rewriting: one rule per file, each equal to the graph it replaces."""
