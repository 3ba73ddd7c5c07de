"""What `fleet compare` is made of."""
