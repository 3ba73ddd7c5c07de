"""What a policy does, by situation, and why it did it in one episode."""
