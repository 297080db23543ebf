"""What a target would compute otherwise than meant is mended or refused; models that come quantized are read."""
