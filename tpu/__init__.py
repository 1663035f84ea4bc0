"""TPU pods: what a program will need there (`tpu.plan`), and scripts that run it there."""
