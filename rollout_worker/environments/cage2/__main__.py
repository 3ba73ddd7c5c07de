"""`python -m rollout_worker.environments.cage2` compiles the kernels ahead of their first use."""

from rollout_worker.environments.cage2.kernels import compile_kernels

if __name__ == "__main__":
    compile_kernels()
