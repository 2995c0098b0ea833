"""The command line of cmrhash: one thin file a command."""
