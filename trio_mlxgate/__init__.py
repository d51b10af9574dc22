"""The gate in front of a local LLM server."""
