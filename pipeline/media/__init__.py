"""Media in, frames and audio out: interchangeable decoders, and what their output is checked against."""
