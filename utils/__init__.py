"""What OpenMP and PyTorch's allocator read when torch is loaded, so import this package before torch."""
import os

# Threads that wait must not spin: beside loading workers, spinning makes a step up to 10 times slower.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
# Large tensors in huge pages: a step that allocates anew otherwise waits for thousands of page faults.
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
