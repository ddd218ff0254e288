"""What keeps a student's code in: bubblewrap, limits, and kernels that are forked ready inside."""
