"""Journal: what survives a manager's death: what it wanted, what it had, and how the next one finds it again."""
