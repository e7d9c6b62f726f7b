"""What is trained inside or on top of frozen tokens: CASTE, CASE, AVMoE, their placements, and the batch they read."""
