"""Media in, frames and sound out: interchangeable decoders, what they are checked against, and their killable homes."""
