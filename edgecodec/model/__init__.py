"""The codec's networks in torch, their training, and the export of the integer tables.

Host side only: nothing that decodes a file on a device imports this package.
"""
