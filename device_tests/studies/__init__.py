"""Long measurements behind figures of the docs, each a command."""
