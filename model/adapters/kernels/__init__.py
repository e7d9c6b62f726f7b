"""Hand-written operations, each beside the plain formula that it equals."""
