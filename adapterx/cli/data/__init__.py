"""From what a user names to rows, and from rows to examples: files of every kind, in memory or on the disk."""
