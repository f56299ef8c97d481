"""How good a predicted mask is, beside what a guess that sees no pixel reaches."""
