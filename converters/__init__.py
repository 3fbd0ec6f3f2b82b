"""From a trained checkpoint to the graphs of a bundle, one writer per target.

Every stage is read once into the small graph of `graph` and written from there to ONNX, OpenVINO,
TFLite and torch, so that all targets hold the same numbers and no vendor's exporter decides what
the network becomes. Runs on the host that has torch; nothing here is imported on a device.
"""
