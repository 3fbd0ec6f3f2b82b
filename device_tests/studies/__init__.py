"""Long measurements behind figures of the docs, each a command of the source tree.

A wheel does not hold them.
"""
