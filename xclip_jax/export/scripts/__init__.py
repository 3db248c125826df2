"""What is copied into an export, to show how its graphs are called: these scripts need no xclip_jax."""
