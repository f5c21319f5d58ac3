"""Values of the field: envelopes, header sections, replies. Pure; imports nothing else of ours."""
