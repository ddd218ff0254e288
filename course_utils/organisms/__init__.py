"""The suspects: chat models that refuse for reasons that we planted."""
