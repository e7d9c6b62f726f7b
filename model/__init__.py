"""Stage two: adapters, heads and training on cached tokens. Never imports a decoder or a backbone."""
