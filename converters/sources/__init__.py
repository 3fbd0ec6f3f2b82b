"""What is converted: checkpoints and codecs of others, and photos to judge by."""
