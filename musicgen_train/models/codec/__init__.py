"""EnCodec, the neural codec: audio to codes and back."""
