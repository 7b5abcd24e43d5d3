"""RoPE on q_pe and k_pe together with the latent cache write."""
