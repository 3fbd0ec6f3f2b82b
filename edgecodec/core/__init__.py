"""The C core (bytes <-> latents) and its binding; `edgecodec.entropy` is what to import."""
