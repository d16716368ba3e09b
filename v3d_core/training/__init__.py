"""Training of orbit models: objects to learn from, and what they look like."""
