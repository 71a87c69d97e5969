"""What a cell of each kind does, from its parents' folders to its own results."""
