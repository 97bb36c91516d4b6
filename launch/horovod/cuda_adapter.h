// Stands in for XLA's client/xla_builder.h, which Horovod 0.28.1 includes in xla_mpi_ops.cc only, and
// which TensorFlow 2.21 has no longer. Mends what else keeps a build for GPUs from working.

#if HAVE_CUDA
#include <cuda_runtime.h>

#include "xla/stream_executor/stream.h"

// mpi_ops.cc declares and calls this function, which TensorFlow has removed.
namespace stream_executor {
namespace gpu {

cudaStream_t AsGpuStreamValue(Stream* stream) {
  return static_cast<cudaStream_t>(stream->platform_specific_handle().stream);
}

}  // namespace gpu
}  // namespace stream_executor
#endif

// xla_mpi_ops.cc registers operations with an interface that XLA has no longer. Without GPUs, the rest
// of that file is empty. Ranks do not compile with XLA, so nothing needs it.
#undef HAVE_GPU
