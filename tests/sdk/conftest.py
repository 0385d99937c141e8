"""Each story here is told of the release of a2a-sdk that is installed, with each of its engines and bindings."""
