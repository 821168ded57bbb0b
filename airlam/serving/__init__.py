"""Fine-tuned LAMs as services that share what they have in common, and the server that runs them."""
