"""Edge, SMTP in: who may send, which certificate is shown, and what each command is answered."""
