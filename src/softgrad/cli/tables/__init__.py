"""Tables, arrays and files: read in batches, written whole or not at all."""
