"""What do tests need of hopwatch? The parts of the pytest plugin `hopwatch.pytest_plugin`; nothing is imported here."""
