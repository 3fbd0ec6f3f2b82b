"""A model on disk: manifest, tables, artefacts stored as parts of shared weights."""
