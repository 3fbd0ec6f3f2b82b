"""From pictures to files and back: tiles, encoder, decoder, effort, profiling."""
