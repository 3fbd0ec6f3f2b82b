"""The C core (bytes <-> latents) and its binding; `edgecodec.format.coder` is what to import."""
