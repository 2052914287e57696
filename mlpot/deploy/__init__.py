"""A trained model as something a host can call: one file, one call, whatever engine runs it."""
