"""Operations as functions: signature, torch reference, gradient; backends make them faster."""
