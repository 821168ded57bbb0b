"""TR 38.901: Sionna draws users, large-scale parameters and rays, and the ray sum makes channels of them."""
