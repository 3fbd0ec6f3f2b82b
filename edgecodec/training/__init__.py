"""Training of the codec: photos, loss, options, schedule, validation."""
