"""MPI, processes and threads: the communicator, the session, the watchdog, the kernel cache."""
