"""What each kind of server can be asked without touching its GPU, one module a kind."""
