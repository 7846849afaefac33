"""Running out of memory, and how many rollouts fit."""

from accelerate.utils.memory import should_reduce_batch_size

# What accelerate does not know: other libraries, and CUDA where the allocator did not notice first.
SPELLINGS = ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory")
SPELLINGS += ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: Exception) -> bool:
    """Does the error say that memory has run out?"""
    return should_reduce_batch_size(error) or any(words in str(error) for words in SPELLINGS)
