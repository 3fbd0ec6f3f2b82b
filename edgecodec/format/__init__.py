"""What a file is: container, tables, and the entropy coder over both."""
